"""Safetensors files as byte ranges: which tensor lies where, without loading any.

Format: 8 bytes little-endian header length, a JSON header ``{name: {dtype, shape, data_offsets}}``, then the data; offsets
count from the end of the header. A truncated or corrupt file is found here by its sizes, before any weight is read.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.words.reading import parse_json, plain_name, read_json, refuse_irregular, shortened

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER = 100_000_000  # This many bytes are the limit of the safetensors library itself.
LFS_POINTER = b"version "  # The text file that Git leaves where a large file was not fetched begins so.
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class TensorSlot:
    """One tensor of a shard: its bytes are ``start .. stop-1`` of the data, which begins at ``Shard.data_start``."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def n_bytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Shard:
    """A checked safetensors file. ``slots`` are in the order of the data."""

    path: Path
    slots: dict[str, TensorSlot]
    metadata: dict[str, str]
    data_start: int


def read_shard(path: Path) -> Shard:
    """Header of one safetensors file, checked against the file's size.

    Raises:
        ValueError: not a file, truncated, too long, or with a header that is not one.
    """
    refuse_irregular(path)
    size = path.stat().st_size
    cure = "download or copy it again"
    try:
        with path.open("rb") as file:
            first = file.read(8)
            if first == LFS_POINTER:
                raise ValueError(f"{path} is a pointer of Git LFS, not the weights themselves; fetch them: git lfs pull")
            length = int.from_bytes(first, "little")
            if size < 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
                raise ValueError(f"{path} is truncated or not a safetensors file ({size} bytes, header of {length}); {cure}")
            raw = file.read(length)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); check the file and its permissions") from None
    header = parse_json(raw, f"the corrupt safetensors header of {path}", unique=True)
    if not isinstance(header, dict):
        raise ValueError(f"{path} has a corrupt safetensors header (no object); {cure}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{path} has a corrupt safetensors header at '__metadata__' (texts are needed); {cure}")
    slots = {name: _slot(name, one, path) for name, one in header.items()}
    slots = dict(sorted(slots.items(), key=lambda item: (item[1].start, item[1].stop)))
    end = 0
    for name, slot in slots.items():
        if slot.start != end:
            raise ValueError(f"{path} has a corrupt safetensors header at {shortened(name)!r} (a gap, or an overlap); {cure}")
        end = slot.stop
    if size != 8 + length + end:
        fault = "truncated" if size < 8 + length + end else "longer than its header says"
        raise ValueError(f"{path} is {fault}: {size} bytes, its header needs {8 + length + end}; {cure}")
    return Shard(path, slots, metadata, 8 + length)


def _slot(name: str, stated: Any, path: Path) -> TensorSlot:
    """One entry of a header, its types and sizes checked.

    Raises:
        ValueError: anything but ``{dtype: known name, shape: [n, ...], data_offsets: [start, stop]}`` of the right size.
    """
    faults = []
    if not isinstance(stated, Mapping) or set(stated) != {"dtype", "shape", "data_offsets"}:
        faults.append("dtype, shape and data_offsets are needed")
    else:
        dtype, shape, offsets = stated["dtype"], stated["shape"], stated["data_offsets"]
        if not isinstance(dtype, str) or dtype not in BITS:
            faults.append(f"dtype {shortened(repr(dtype), 40)}; known: {', '.join(BITS)}")
        if not _are_counts(shape):
            faults.append("the shape needs whole numbers from 0")
        if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            faults.append("data_offsets need two whole numbers, start and stop")
        if not faults and BITS[dtype] * math.prod(shape) != 8 * (offsets[1] - offsets[0]):
            faults.append(f"{offsets[1] - offsets[0]} bytes for shape {shortened(str(shape), 40)} of {dtype}")
        if not faults:
            return TensorSlot(dtype, tuple(shape), *offsets)
    raise ValueError(f"{path} has a corrupt safetensors header at {shortened(name)!r} ({faults[0]}); download or copy it again")


def _are_counts(values: Any) -> bool:
    """Whether a value is a list of whole numbers that a file can hold; ``True`` is no number here."""
    return isinstance(values, list) and all(type(one) is int and 0 <= one < 2**63 for one in values)


def read_shards(folder: Path) -> list[Shard]:
    """All shards of a checkpoint folder, checked, in the order of their names.

    Raises:
        ValueError: no weights, pickled weights only, a missing or corrupt shard, an index that disagrees with its shards.
    """
    index = folder / INDEX
    if not index.exists():
        if (folder / SINGLE).exists():
            return [read_shard(folder / SINGLE)]
        refuse_absent_weights(folder)
    places = read_json(index, unique=True).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index} has no weight_map; download or write it again")
    names = sorted({plain_name(place, str(index)) for place in places.values()})
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise ValueError(
            f"{index} names {len(missing)} of {len(names)} shards that are not there, first {missing[0]}; download them"
        )
    shards = [read_shard(folder / name) for name in names]
    refuse_doubled_tensors(shards)
    by_name = {shard.path.name: shard.slots for shard in shards}
    for tensor, place in places.items():
        if tensor not in by_name[place]:
            raise ValueError(
                f"{index} places {tensor!r} in {place}, which does not hold it; index and shards are not of one checkpoint"
            )
    return shards


def refuse_doubled_tensors(shards: list[Shard]) -> None:
    """Raises ValueError when two shards of one checkpoint hold a tensor of one name."""
    seen: dict[str, Path] = {}
    for shard in shards:
        for name in shard.slots:
            if name in seen:
                raise ValueError(
                    f"{seen[name]} and {shard.path.name} both hold {shortened(name)!r}; the shards are not of one checkpoint"
                )
            seen[name] = shard.path


def refuse_absent_weights(folder: Path) -> None:
    """Always raises ValueError: says which weights the folder has instead of safetensors."""
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickled:
        raise ValueError(
            f"{folder} has only pickled weights ({pickled[0]}), which can run code when opened; convert them where you "
            "trust them: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder) writes safetensors"
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    found = f" (found {others[0]}, but neither {SINGLE} nor {INDEX})" if others else ""
    raise ValueError(f"{folder} has no weights{found}; a folder with {SINGLE}, or shards and their index, is needed")
