"""Safetensors files as byte ranges: which tensor lies where, without loading any.

Format: 8 bytes little-endian header length, a JSON header ``{name: {dtype, shape, data_offsets}}``, then the data; offsets
count from the end of the header. A truncated or corrupt file is found here by its sizes, before any weight is read.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library itself
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Slot:
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
    slots: dict[str, Slot]
    metadata: dict[str, str]
    data_start: int


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ValueError in one line when it is none."""
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); download or write it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, an object is needed; download or write it again")
    return content


def read_shard(path: Path) -> Shard:
    """Header of one safetensors file, checked against the file's size.

    Raises:
        ValueError: truncated, too long, or with a header that is not one.
    """
    size = path.stat().st_size
    cure = "download or copy it again"
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
            raise ValueError(f"{path} is truncated or not a safetensors file ({size} bytes, header of {length}); {cure}")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
        slots = {name: Slot(one["dtype"], tuple(one["shape"]), *one["data_offsets"]) for name, one in header.items()}
        slots = dict(sorted(slots.items(), key=lambda item: (item[1].start, item[1].stop)))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{path} has a corrupt safetensors header; {cure}") from None
    end = 0
    for name, slot in slots.items():
        bits = BITS.get(slot.dtype, 0) * math.prod(slot.shape)
        if slot.start != end or slot.stop < slot.start or (slot.dtype in BITS and bits != 8 * slot.n_bytes):
            raise ValueError(f"{path} has a corrupt safetensors header at {name!r}; {cure}")
        end = slot.stop
    if size != 8 + length + end:
        fault = "truncated" if size < 8 + length + end else "longer than its header says"
        raise ValueError(f"{path} is {fault}: {size} bytes, its header needs {8 + length + end}; {cure}")
    return Shard(path, slots, metadata, 8 + length)


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
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index} has no weight_map; download or write it again")
    names = sorted(set(places.values()))
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise ValueError(
            f"{index} names {len(missing)} of {len(names)} shards that are not there, first {missing[0]}; download them"
        )
    shards = [read_shard(folder / name) for name in names]
    by_name = {shard.path.name: shard.slots for shard in shards}
    for tensor, place in places.items():
        if tensor not in by_name[place]:
            raise ValueError(
                f"{index} places {tensor!r} in {place}, which does not hold it; index and shards are not of one checkpoint"
            )
    return shards


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
