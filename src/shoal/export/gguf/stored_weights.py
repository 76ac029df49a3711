"""The tensors of a checkpoint folder, one at a time as fp32, by the names on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from shoal.engine.shards import Shard, TensorSlot, read_shards


class StoredWeights:
    """Names and shapes of a folder's tensors; values are read when they are asked for.

    Raises:
        ValueError: the folder's safetensors are damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._slots: dict[str, tuple[Shard, TensorSlot]] = {
            name: (shard, slot) for shard in read_shards(folder) for name, slot in shard.slots.items()
        }
        self.names = tuple(self._slots)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._slots[name][1].shape

    def __contains__(self, name: str) -> bool:
        return name in self._slots

    def values(self, name: str) -> np.ndarray[Any, Any]:
        """A tensor as fp32."""
        return self._tensor(name).float().numpy()

    def rounded(self, name: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Some values in the precision in which a tensor is stored, as fp32."""
        import torch

        return torch.from_numpy(values).to(self._tensor(name).dtype).float().numpy()

    def is_same(self, name: str, other: StoredWeights, its_name: str) -> bool:
        """Whether two checkpoints hold equal values under these names, in whatever precision each stores them."""
        a, b = self._tensor(name), other._tensor(its_name)
        return a.shape == b.shape and bool((a == b.to(a.dtype)).all())

    def _tensor(self, name: str) -> Any:
        import torch

        from shoal.engine.streamed import read_tensor

        shard, slot = self._slots[name]
        return read_tensor(shard, slot, torch.empty(slot.n_bytes, dtype=torch.uint8))
