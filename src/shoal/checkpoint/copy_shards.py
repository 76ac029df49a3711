"""One shard to another: tensors under new names, byte for byte unless there are new values or another dtype for them."""

import json
import math
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
class Blocks:
    """Which blocks of a tensor stay that holds one for every layer along a dimension.

    Attributes:
        dim: the dimension.
        n: blocks that are stored.
        order: those that stay, in the order in which they are written.
    """

    dim: int
    n: int
    order: tuple[int, ...]

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """What stays of a shape."""
        return (*stored[: self.dim], stored[self.dim] // self.n * len(self.order), *stored[self.dim + 1 :])


@dataclass(frozen=True)
class Copy:
    """One tensor to write.

    Attributes:
        name, given: its name in the source, and the name it is given.
        position: the layer of the checkpoint it belongs to.
        blocks: the part of it that is written; None: all of it.
    """

    name: str
    given: str
    position: int | None
    blocks: Blocks | None = None


class Changes(Protocol):
    """What is written differently from how it is stored. Names are those on disk."""

    def written_dtype(self, name: str, slot: TensorSlot) -> torch.dtype | None:
        """The dtype to write a tensor in; None: as it is stored."""
        ...

    def value(self, name: str, position: int | None) -> Tensor | None:
        """The new value of a tensor of a layer of the checkpoint, in any float dtype; None: the stored one."""
        ...


def written_slot(one: Copy, slot: TensorSlot, start: int, new: Changes) -> TensorSlot:
    """The place of a tensor that is written from byte ``start`` of the data on."""
    dtype = new.written_dtype(one.name, slot)
    shape, n_bytes = slot.shape, slot.n_bytes
    if one.blocks is not None:
        shape = one.blocks.shape(slot.shape)
        n_bytes = n_bytes // one.blocks.n * len(one.blocks.order)
    if dtype is None:
        return replace(slot, shape=shape, start=start, stop=start + n_bytes)
    n_bytes = n_bytes // TORCH_DTYPES[slot.dtype].itemsize * dtype.itemsize
    return TensorSlot(DTYPE_NAMES[dtype], shape, start, start + n_bytes)


def copied_bytes(shard: Shard, copies: Sequence[Copy], new: Changes) -> int:
    """Data bytes that :func:`copy_shard` writes for some tensors of a shard."""
    return sum(written_slot(one, shard.slots[one.name], 0, new).n_bytes for one in copies)


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
        slots[one.given] = written_slot(one, shard.slots[one.name], end, new)
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
            elif one.blocks is not None:
                _copy_blocks(reader, writer, shard, slot, one.blocks, dtype)
            else:
                _copy_range(reader, writer, shard, slot, dtype)
            written(slots[one.given].n_bytes)
        writer.flush()
        os.fsync(writer.fileno())


def _copy_range(reader: BinaryIO, writer: BinaryIO, shard: Shard, slot: TensorSlot, dtype: torch.dtype | None) -> None:
    reader.seek(shard.data_start + slot.start)
    left = slot.n_bytes
    while left:
        piece = _read(reader, min(CHUNK, left), shard)
        if dtype is None:
            writer.write(piece)
        else:
            _write_tensor(writer, torch.frombuffer(bytearray(piece), dtype=TORCH_DTYPES[slot.dtype]).to(dtype))
        left -= len(piece)


def _copy_blocks(
    reader: BinaryIO, writer: BinaryIO, shard: Shard, slot: TensorSlot, blocks: Blocks, dtype: torch.dtype | None
) -> None:
    """As :func:`_copy_range`, some blocks of every row before their dimension."""
    reader.seek(shard.data_start + slot.start)
    left = math.prod(slot.shape[: blocks.dim])
    n_bytes = slot.n_bytes // left if left else 0
    at_once = max(1, CHUNK // max(1, n_bytes))
    while left:
        n = min(at_once, left)
        piece = torch.frombuffer(bytearray(_read(reader, n * n_bytes, shard)), dtype=torch.uint8)
        kept = piece.view(n, blocks.n, -1)[:, list(blocks.order)].reshape(-1)
        _write_tensor(writer, kept if dtype is None else kept.view(TORCH_DTYPES[slot.dtype]).to(dtype))
        left -= n


def _read(reader: BinaryIO, n_bytes: int, shard: Shard) -> bytes:
    piece = reader.read(n_bytes)
    if len(piece) < n_bytes:
        raise ValueError(f"{shard.path} became shorter while it was copied")
    return piece


def _write_tensor(writer: BinaryIO, value: Tensor) -> None:
    raw = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    writer.write(memoryview(cast(Any, raw)))


def write_index(path: Path, places: Mapping[str, str], n_bytes: int) -> None:
    """The index of a sharded checkpoint: tensor name to file, and the bytes of all tensors."""
    content = {"metadata": {"total_size": n_bytes}, "weight_map": dict(sorted(places.items()))}
    path.write_text(json.dumps(content, indent=2) + "\n")
