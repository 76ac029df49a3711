"""The head of a GGUF file: its keys and where its tensors lie, read with limits and without the weights.

A file can claim anything: strings of 2^60 bytes, a billion keys, tensors beyond its end or on top of each other. Every count is
compared with the bytes that are left before anything is made of it. Values stay the bytes they are until somebody asks, so what
is not understood can be copied as it stands. The file is read, not mapped: a map of a file that is cut short meanwhile ends the
process without a word.

Source: the format's description, docs/gguf.md of ggml (versions 2 and 3, little endian).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from shoal.words.reading import reason_of, refuse_irregular, shortened

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # The data has this alignment where ``general.alignment`` says nothing else.
MOST_DIMENSIONS, MOST_TENSOR_NAME, MOST_KEY = 4, 63, 65535  # These are bounds of the format and of llama.cpp.
AGAIN = "download it again"

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class Value:
    """One value of the metadata.

    Attributes:
        kind: number of its type in the format.
        raw: its bytes as they stand in a file; of an array with the type and number of its elements.
    """

    kind: int
    raw: bytes

    @property
    def is_array(self) -> bool:
        return self.kind == ARRAY

    @property
    def element_kind(self) -> int:
        """Type of an array's elements."""
        return int.from_bytes(self.raw[:4], "little")

    def __len__(self) -> int:
        """Elements of an array."""
        return int.from_bytes(self.raw[4:12], "little")

    @property
    def value(self) -> Any:
        """The number, truth value, text, or list of them. Raises ValueError for a text that is no UTF-8."""
        if self.kind == STRING:
            return _text(self.raw[8:], "a text")
        if not self.is_array:
            return struct.unpack(f"<{SCALARS[self.kind]}", self.raw)[0]
        if self.element_kind != STRING:
            return list(struct.unpack(f"<{len(self)}{SCALARS[self.element_kind]}", self.raw[12:]))
        texts, at = [], 12
        for _ in range(len(self)):
            n = int.from_bytes(self.raw[at : at + 8], "little")
            texts.append(_text(self.raw[at + 8 : at + 8 + n], "a text"))
            at += 8 + n
        return texts

    @classmethod
    def of(cls, value: Any, kind: int) -> Value:
        """A text, number or truth value of the format's type ``kind``."""
        if kind == STRING:
            raw = value.encode()
            return cls(STRING, len(raw).to_bytes(8, "little") + raw)
        return cls(kind, struct.pack(f"<{SCALARS[kind]}", value))

    @classmethod
    def of_list(cls, values: Sequence[Any], kind: int) -> Value:
        """A list of values of the format's type ``kind``."""
        raw = b"".join(cls.of(value, kind).raw for value in values)
        return cls(ARRAY, kind.to_bytes(4, "little") + len(values).to_bytes(8, "little") + raw)


@dataclass(frozen=True)
class Place:
    """One tensor of a file.

    Attributes:
        shape: as the format orders it: the dimension that is contiguous in memory first.
        kind: number of its block format.
        start, n_bytes: where its bytes lie in the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    n_bytes: int

    @property
    def n_values(self) -> int:
        n = 1
        for size in self.shape:
            n *= size
        return n


@dataclass(frozen=True)
class Stamp:
    """Which file it is and when it was last written, to see whether it is still the one whose head was read."""

    device: int
    inode: int
    n_bytes: int
    written_ns: int

    @classmethod
    def of(cls, file: BinaryIO) -> Stamp:
        """Of an open file."""
        now = os.fstat(file.fileno())
        return cls(now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns)


@dataclass(frozen=True)
class GgufHead:
    """What a file says of itself.

    Attributes:
        stamp: of the file when this was read.
        keys: in the order of the file.
    """

    path: Path
    stamp: Stamp
    version: int
    alignment: int
    keys: dict[str, Value]
    tensors: tuple[Place, ...]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or ``default`` where the file has no such key."""
        return self.keys[key].value if key in self.keys else default


@lru_cache(maxsize=1)
def block_sizes() -> dict[int, tuple[str, int, int]]:
    """Block formats by number: name, values of a block, bytes of a block.

    Raises:
        ImportError: the ``gguf`` package is missing.
    """
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError:
        raise ImportError("GGUF files need the gguf package: pip install 'shoal[gguf]'") from None
    return {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}


def read_head(path: Path) -> GgufHead:
    """Read keys and tensor places of one GGUF file; its weights are not touched.

    Raises:
        ValueError: one line: not a GGUF file, cut short, counts or sizes that the file does not have, types that are not
            known, names or keys twice, tensors that overlap or do not lie where the format wants them.
        ImportError: the ``gguf`` package is missing.
    """
    path = Path(path)
    refuse_irregular(path)
    size = path.stat().st_size
    if size < 24:
        raise ValueError(f"{path} has {size} bytes, too few for a GGUF file; {AGAIN}")
    try:
        with path.open("rb") as file:
            return _Reader(path, file).head()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({reason_of(error)}); check the file and its permissions") from None


class _Reader:
    """A cursor in a file that never goes beyond its end."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file, self.stamp, self.at = path, file, Stamp.of(file), 0
        self.size = self.stamp.n_bytes

    def head(self) -> GgufHead:
        if self.take(4, "magic") != MAGIC:
            raise self.fault("it does not start with GGUF")
        version = self.number(4, "version")
        if version & 0xFFFF == 0:
            raise ValueError(f"{self.path} is of the other byte order; convert it with gguf-convert-endian first")
        if version not in VERSIONS:
            raise self.fault(f"it is of version {version}, {' and '.join(map(str, VERSIONS))} are known")
        n_tensors, n_keys = self.number(8, "number of tensors"), self.number(8, "number of keys")
        self.refuse_more_than_left(n_keys, 13, "keys")
        self.refuse_more_than_left(n_tensors, 24, "tensors")
        keys: dict[str, Value] = {}
        for _ in range(n_keys):
            name = self.text(MOST_KEY, "a key")
            if name in keys:
                raise self.fault(f"the key {shortened(name)!r} is there twice")
            keys[name] = self.any_value(name)
        infos = [self.info() for _ in range(n_tensors)]
        alignment = self.alignment(keys)
        start = self.at + -self.at % alignment
        return GgufHead(self.path, self.stamp, version, alignment, keys, self.places(infos, start, alignment))

    def alignment(self, keys: dict[str, Value]) -> int:
        stated = keys.get("general.alignment")
        if stated is None:
            return ALIGNMENT
        value = stated.value if stated.kind == UINT32 else 0
        if value < 1 or value & (value - 1):
            raise self.fault("general.alignment is no power of two")
        return int(value)

    def any_value(self, name: str) -> Value:
        kind, start = self.number(4, f"the type of {shortened(name)!r}"), self.at
        if kind in SCALARS:
            self.take(struct.calcsize(SCALARS[kind]), f"the value of {shortened(name)!r}")
        elif kind == STRING:
            self.skip_text(name)
        elif kind == ARRAY:
            self.skip_array(name)
        else:
            raise self.fault(f"the key {shortened(name)!r} has the unknown type {kind}")
        n, self.at = self.at - start, start
        self.file.seek(start)
        return Value(kind, self.take(n, f"the value of {shortened(name)!r}"))

    def skip_text(self, name: str) -> None:
        n = self.number(8, f"the length of {shortened(name)!r}")
        self.refuse_more_than_left(n, 1, f"bytes in {shortened(name)!r}")
        self.skip(n)

    def skip_array(self, name: str) -> None:
        kind, n = self.number(4, f"the type of {shortened(name)!r}"), self.number(8, f"the length of {shortened(name)!r}")
        if kind in SCALARS:
            width = struct.calcsize(SCALARS[kind])
            self.refuse_more_than_left(n, width, f"elements in {shortened(name)!r}")
            self.skip(n * width)
        elif kind == STRING:
            self.refuse_more_than_left(n, 8, f"texts in {shortened(name)!r}")
            for _ in range(n):
                self.skip_text(name)
        else:
            raise self.fault(f"the list {shortened(name)!r} has elements of type {kind}, which is no plain value")

    def info(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, kind and offset of one tensor."""
        name = self.text(MOST_TENSOR_NAME, "a tensor's name")
        n = self.number(4, f"the dimensions of {name!r}")
        if n > MOST_DIMENSIONS:
            raise self.fault(f"the tensor {name!r} has {n} dimensions, at most {MOST_DIMENSIONS} are allowed")
        shape = tuple(self.number(8, f"the shape of {name!r}") for _ in range(n))
        return name, shape, self.number(4, f"the type of {name!r}"), self.number(8, f"the offset of {name!r}")

    def places(self, infos: list[tuple[str, tuple[int, ...], int, int]], data_start: int, alignment: int) -> tuple[Place, ...]:
        kinds, found, names = block_sizes(), [], set()
        for name, shape, kind, offset in infos:
            if name in names:
                raise self.fault(f"the tensor {name!r} is there twice")
            names.add(name)
            if kind not in kinds:
                raise ValueError(
                    f"{self.path}: the tensor {name!r} has the type {kind}, which the installed gguf package does not know; "
                    "pip install -U gguf"
                )
            what, values, width = kinds[kind]
            n_values = Place(name, shape, kind, 0, 0).n_values
            if (shape[0] if shape else 1) % values:
                raise self.fault(f"rows of the tensor {name!r} are no whole blocks of {what} ({values} values)")
            n_bytes = n_values // values * width
            if offset % alignment:
                raise self.fault(f"the tensor {name!r} does not lie at a multiple of {alignment} bytes")
            if data_start + offset + n_bytes > self.size:
                raise self.fault(f"the tensor {name!r} ends beyond the file; it is cut short")
            found.append(Place(name, shape, kind, data_start + offset, n_bytes))
        end, before = data_start, ""
        for place in sorted(found, key=lambda one: (one.start, one.n_bytes)):
            if place.start < end:
                raise self.fault(f"the tensors {before!r} and {place.name!r} overlap")
            end, before = place.start + place.n_bytes, place.name
        return tuple(found)

    def text(self, most: int, what: str) -> str:
        n = self.number(8, f"the length of {what}")
        if n > most:
            raise self.fault(f"{what} has {n:,} bytes, at most {most} are allowed")
        return _text(self.take(n, what), f"{self.path} is damaged: {what}")

    def number(self, n_bytes: int, what: str) -> int:
        return int.from_bytes(self.take(n_bytes, what), "little")

    def take(self, n: int, what: str) -> bytes:
        found = self.file.read(n) if n <= self.size - self.at else b""
        if len(found) < n:
            raise self.fault(f"it ends inside {what}")
        self.at += n
        return found

    def skip(self, n: int) -> None:
        """Go on behind ``n`` bytes, which are known to be left."""
        self.at += n
        self.file.seek(self.at)

    def refuse_more_than_left(self, n: int, width: int, what: str) -> None:
        left = self.size - self.at
        if n * width > left:
            raise self.fault(f"it states {shortened(f'{n:,}')} {what}, {left:,} bytes are left")

    def fault(self, why: str) -> ValueError:
        return ValueError(f"{self.path} is damaged or no GGUF file: {why}; {AGAIN}")


def _text(raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{what} is no UTF-8 text; {AGAIN}") from None
