"""A GGUF model in one file or in several: the parts of a split model are found by the name of the one that is given.

Names of parts are made from that name alone, never from what a file says, so no file can lead out of its folder or in a circle.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from shoal.engine.gguf_head import GgufHead, Place, Stamp, Value, read_head
from shoal.words.reading import reason_of

PART = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
CHUNK = 8 * 2**20  # So many bytes are held in memory while copying.
AGAIN = "start again when it is complete"


@dataclass(frozen=True)
class Stored:
    """One tensor and the file that holds it.

    Attributes:
        stamp: of the file when its head was read.
    """

    file: Path
    place: Place
    stamp: Stamp

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, piece by piece. Raises ValueError when the file is no longer the one whose head was read."""
        try:
            reader = self.file.open("rb")
        except OSError as error:
            raise ValueError(f"{self.file} cannot be read any more ({reason_of(error)}); {AGAIN}") from None
        with reader:
            self._refuse_changed(reader)
            reader.seek(self.place.start)
            left = self.place.n_bytes
            while left:
                piece = reader.read(min(CHUNK, left))
                if not piece:
                    break
                left -= len(piece)
                yield piece
            self._refuse_changed(reader)

    def _refuse_changed(self, reader: BinaryIO) -> None:
        if Stamp.of(reader) != self.stamp:
            raise ValueError(f"{self.file} was changed while it was read; {AGAIN}")


@dataclass(frozen=True)
class GgufModel:
    """Keys and tensors of a model.

    Attributes:
        files: its parts, in order.
        keys: of the first part, without those that describe the splitting.
        tensors: of all parts, in order.
    """

    files: tuple[Path, ...]
    version: int
    alignment: int
    keys: dict[str, Value]
    tensors: tuple[Stored, ...]

    @property
    def path(self) -> Path:
        return self.files[0]

    @property
    def architecture(self) -> str:
        """Raises ValueError where none is stated."""
        stated = self.keys.get("general.architecture")
        if stated is None or stated.kind != Value.of("", 8).kind or not stated.value:
            raise ValueError(f"{self.path} states no general.architecture; it is no model, or damaged")
        return str(stated.value)

    @property
    def n_layers(self) -> int:
        """Raises ValueError where the file states no number of blocks."""
        key = f"{self.architecture}.block_count"
        n = self.keys[key].value if key in self.keys else None
        if type(n) is not int or n < 1:
            raise ValueError(f"{self.path} states no {key}; it is no language model, or damaged")
        return n


def open_model(path: Path) -> GgufModel:
    """Read the heads of a GGUF file and, where it is one part of several, of all parts.

    Raises:
        ValueError: as :func:`shoal.engine.gguf_head.read_head`; a part is missing, out of place or of another model.
        ImportError: the ``gguf`` package is missing.
    """
    path = Path(path)
    given = read_head(path)
    n_parts = _count(given)
    heads = [given] if n_parts == 1 else _parts(path, given, n_parts)
    stated = heads[0].get("split.tensors.count")
    tensors = tuple(Stored(head.path, place, head.stamp) for head in heads for place in head.tensors)
    if n_parts > 1 and stated is not None and stated != len(tensors):
        raise ValueError(f"{path}: {len(tensors)} tensors in {n_parts} parts, split.tensors.count says {stated}; parts differ")
    names = [stored.place.name for stored in tensors]
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path}: the tensor {double!r} is in two parts; these are not the parts of one model")
    if not tensors:
        raise ValueError(f"{path} holds no weights; a file with the model is needed, not its vocabulary alone")
    keys = {name: value for name, value in heads[0].keys.items() if name not in SPLIT_KEYS}
    return GgufModel(tuple(head.path for head in heads), heads[0].version, heads[0].alignment, keys, tensors)


def _count(head: GgufHead) -> int:
    n = head.get("split.count", 1)
    if type(n) is not int or n < 0:
        raise ValueError(f"{head.path}: split.count is {n!r}, a number of parts is needed; download it again")
    return max(n, 1)


def _parts(path: Path, given: GgufHead, n_parts: int) -> list[GgufHead]:
    """Heads of all parts of a split model, each checked to be the part its name says."""
    named = PART.match(path.name)
    if named is None or int(named["count"]) != n_parts:
        raise ValueError(
            f"{path} is one of {n_parts} parts, so its name must end in -00001-of-{n_parts:05d}.gguf; give the parts their "
            "names back, or join them with llama-gguf-split --merge"
        )
    files = [path.with_name(f"{named['stem']}-{i + 1:05d}-of-{n_parts:05d}.gguf") for i in range(n_parts)]
    missing = next((file for file in files if not file.exists()), None)
    if missing is not None:
        raise ValueError(f"{missing} is not there; all {n_parts} parts must lie in one folder")
    heads = []
    for i, file in enumerate(files):
        head = given if file == path else read_head(file)
        if head.get("split.no") != i or _count(head) != n_parts:
            raise ValueError(
                f"{file} says it is part {head.get('split.no')} (from 0) of {_count(head)}, its name says part {i} of "
                f"{n_parts}; download the parts again"
            )
        heads.append(head)
    return heads
