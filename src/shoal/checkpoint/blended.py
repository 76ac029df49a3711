"""A checkpoint between two of one shape, file to file: every tensor of floats ``t`` of the way from the one to the other.

For a cut and its healed student this is a knob behind the training (WiSE-FT, arXiv 2109.01903). One tensor is in memory at a
time; names, files, config and what lies beside them are those of the first.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from shoal.checkpoint.config_json import CONFIG
from shoal.checkpoint.copy_shards import Copy, copied_bytes, copy_shard, write_index
from shoal.checkpoint.new_folder import copy_side_files
from shoal.engine.shards import INDEX, SINGLE, Shard, TensorSlot, read_shards
from shoal.engine.streamed import TORCH_DTYPES, read_tensor
from shoal.words.progress import megabytes

StoredTensors = Mapping[str, tuple[Shard, TensorSlot]]


class Blend:
    """What is written in place of the first checkpoint's tensors."""

    def __init__(self, ours: StoredTensors, theirs: StoredTensors, t: float) -> None:
        self.ours, self.theirs, self.t = ours, theirs, t

    def written_dtype(self, name: str, slot: TensorSlot) -> torch.dtype | None:
        return None

    @torch.no_grad()
    def value(self, name: str, position: int | None) -> Tensor | None:
        a = _read(self.ours, name)
        if not a.is_floating_point() or self.t == 0:
            return None
        exact = torch.promote_types(a.dtype, torch.float32)
        b = _read(self.theirs, name).to(exact)
        return b if self.t == 1 else torch.lerp(a.to(exact), b, self.t)


def write_blend(source: Path, other: Path, t: float, folder: Path) -> None:
    """Write the point ``t`` of the way into a folder that is there.

    Args:
        source, other: checkpoint folders.
        t: 0 is the one, 1 the other.
    Raises:
        ValueError: their tensors have other names, shapes or kinds.
    """
    shards = read_shards(source)
    ours, theirs = _by_name(shards), _by_name(read_shards(other))
    for name in sorted(ours.keys() ^ theirs.keys()):
        raise ValueError(f"{name!r} is in one of {source} and {other} alone; a point between them needs two of one shape")
    for name, (_, slot) in ours.items():
        kinds = [TORCH_DTYPES[one.dtype].is_floating_point for one in (slot, theirs[name][1])]
        if slot.shape != theirs[name][1].shape or kinds[0] != kinds[1]:
            raise ValueError(f"{name!r} is {slot.shape} and {theirs[name][1].shape}; a point between needs two of one shape")
    blend = Blend(ours, theirs, t)
    places: dict[str, str] = {}
    cuts = [(shard, [Copy(name, name, None) for name in shard.slots]) for shard in shards]
    n_bytes = sum(copied_bytes(shard, copies, blend) for shard, copies in cuts)
    written = megabytes("write the checkpoint", n_bytes)
    for shard, copies in cuts:
        copy_shard(shard, copies, folder / shard.path.name, new=blend, written=written)
        places.update(dict.fromkeys(shard.slots, shard.path.name))
    if len(shards) > 1 or shards[0].path.name != SINGLE:
        write_index(folder / INDEX, places, n_bytes)
    shutil.copyfile(source / CONFIG, folder / CONFIG)
    copy_side_files(source, folder)


def _by_name(shards: list[Shard]) -> dict[str, tuple[Shard, TensorSlot]]:
    return {name: (shard, slot) for shard in shards for name, slot in shard.slots.items()}


def _read(stored: StoredTensors, name: str) -> Tensor:
    shard, slot = stored[name]
    return read_tensor(shard, slot, torch.empty(slot.n_bytes, dtype=torch.uint8))
