"""One shard to another: tensors under new names, byte for byte unless there are new values or another dtype for them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import torch
from torch import Tensor

from shoal.engine.shards import Shard, Slot
from shoal.engine.streamed import TORCH_DTYPES

CHUNK = 8 * 2**20  # bytes held in memory while copying
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


class Changes(Protocol):
    """What is written differently from how it is stored. Names are those on disk."""

    def written_dtype(self, name: str, slot: Slot) -> torch.dtype | None:
        """The dtype to write a tensor in; None: as it is stored."""
        ...

    def value(self, name: str) -> Tensor | None:
        """The new value of a tensor, in any float dtype; None: the stored one."""
        ...


def written_slot(name: str, slot: Slot, start: int, new: Changes) -> Slot:
    """The place of a tensor that is written from byte ``start`` of the data on."""
    dtype = new.written_dtype(name, slot)
    if dtype is None:
        return replace(slot, start=start, stop=start + slot.n_bytes)
    n_bytes = slot.n_bytes // TORCH_DTYPES[slot.dtype].itemsize * dtype.itemsize
    return Slot(DTYPE_NAMES[dtype], slot.shape, start, start + n_bytes)


def copied_bytes(shard: Shard, names: Mapping[str, str], new: Changes) -> int:
    """Data bytes that :func:`copy_shard` writes for some tensors of a shard."""
    return sum(written_slot(name, shard.slots[name], 0, new).n_bytes for name in names)


def copy_shard(shard: Shard, names: Mapping[str, str], target: Path, *, new: Changes) -> None:
    """Write a safetensors file of some tensors of a shard.

    Args:
        names: name in the shard to name in the file, in the order of the file.
    Raises:
        ValueError: the shard became shorter while it was read.
    """
    slots: dict[str, Slot] = {}
    end = 0
    for name, given in names.items():
        slots[given] = written_slot(name, shard.slots[name], end, new)
        end = slots[given].stop
    header: dict[str, Any] = {"__metadata__": shard.metadata} if shard.metadata else {}
    header.update({n: {"dtype": s.dtype, "shape": list(s.shape), "data_offsets": [s.start, s.stop]} for n, s in slots.items()})
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # the format wants the data aligned to 8 bytes
    with shard.path.open("rb") as reader, target.open("wb") as writer:
        writer.write(len(raw).to_bytes(8, "little") + raw)
        for name in names:
            slot, dtype, value = shard.slots[name], new.written_dtype(name, shard.slots[name]), new.value(name)
            if value is not None:
                _write_tensor(writer, value.to(dtype or TORCH_DTYPES[slot.dtype]))
            else:
                _copy_range(reader, writer, shard, slot, dtype)
        writer.flush()
        os.fsync(writer.fileno())


def _copy_range(reader: BinaryIO, writer: BinaryIO, shard: Shard, slot: Slot, dtype: torch.dtype | None) -> None:
    reader.seek(shard.data_start + slot.start)
    left = slot.n_bytes
    while left:
        piece = reader.read(min(CHUNK, left))
        if len(piece) < min(CHUNK, left):
            raise ValueError(f"{shard.path} became shorter while it was copied")
        if dtype is None:
            writer.write(piece)
        else:
            _write_tensor(writer, torch.frombuffer(bytearray(piece), dtype=TORCH_DTYPES[slot.dtype]).to(dtype))
        left -= len(piece)


def _write_tensor(writer: BinaryIO, value: Tensor) -> None:
    raw = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    writer.write(memoryview(cast(Any, raw)))


def write_index(path: Path, places: Mapping[str, str], n_bytes: int) -> None:
    """The index of a sharded checkpoint: tensor name to file, and the bytes of all tensors."""
    content = {"metadata": {"total_size": n_bytes}, "weight_map": dict(sorted(places.items()))}
    path.write_text(json.dumps(content, indent=2) + "\n")
