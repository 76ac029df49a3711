"""One shard to another: tensors under new names, byte for byte unless there are new values or another dtype for them."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import torch
from torch import Tensor

from shoal.engine.shards import Shard, TensorSlot
from shoal.engine.streamed import TORCH_DTYPES

CHUNK = 8 * 2**20  # So many bytes are held in memory while copying.
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True)
class Copy:
    """One tensor to write: its name in the source, the name it is given, and the layer of the checkpoint it belongs to."""

    name: str
    given: str
    position: int | None


class Changes(Protocol):
    """What is written differently from how it is stored. Names are those on disk."""

    def written_dtype(self, name: str, slot: TensorSlot) -> torch.dtype | None:
        """The dtype to write a tensor in; None: as it is stored."""
        ...

    def value(self, name: str, position: int | None) -> Tensor | None:
        """The new value of a tensor of a layer of the checkpoint, in any float dtype; None: the stored one."""
        ...


def written_slot(name: str, slot: TensorSlot, start: int, new: Changes) -> TensorSlot:
    """The place of a tensor that is written from byte ``start`` of the data on."""
    dtype = new.written_dtype(name, slot)
    if dtype is None:
        return replace(slot, start=start, stop=start + slot.n_bytes)
    n_bytes = slot.n_bytes // TORCH_DTYPES[slot.dtype].itemsize * dtype.itemsize
    return TensorSlot(DTYPE_NAMES[dtype], slot.shape, start, start + n_bytes)


def copied_bytes(shard: Shard, copies: Sequence[Copy], new: Changes) -> int:
    """Data bytes that :func:`copy_shard` writes for some tensors of a shard."""
    return sum(written_slot(one.name, shard.slots[one.name], 0, new).n_bytes for one in copies)


def copy_shard(
    shard: Shard, copies: Sequence[Copy], target: Path, *, new: Changes, written: Callable[[int], None] = lambda n_bytes: None
) -> None:
    """Write a safetensors file of some tensors of a shard.

    Args:
        copies: in the order of the file.
        written: called with the bytes of every tensor when it is there.
    Raises:
        ValueError: the shard became shorter while it was read.
    """
    slots: dict[str, TensorSlot] = {}
    end = 0
    for one in copies:
        slots[one.given] = written_slot(one.name, shard.slots[one.name], end, new)
        end = slots[one.given].stop
    header: dict[str, Any] = {"__metadata__": shard.metadata} if shard.metadata else {}
    header.update({n: {"dtype": s.dtype, "shape": list(s.shape), "data_offsets": [s.start, s.stop]} for n, s in slots.items()})
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # The format wants the data aligned to 8 bytes.
    with shard.path.open("rb") as reader, target.open("wb") as writer:
        writer.write(len(raw).to_bytes(8, "little") + raw)
        for one in copies:
            slot = shard.slots[one.name]
            dtype, value = new.written_dtype(one.name, slot), new.value(one.name, one.position)
            if value is not None:
                _write_tensor(writer, value.to(dtype or TORCH_DTYPES[slot.dtype]))
            else:
                _copy_range(reader, writer, shard, slot, dtype)
            written(slots[one.given].n_bytes)
        writer.flush()
        os.fsync(writer.fileno())


def _copy_range(reader: BinaryIO, writer: BinaryIO, shard: Shard, slot: TensorSlot, dtype: torch.dtype | None) -> None:
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
