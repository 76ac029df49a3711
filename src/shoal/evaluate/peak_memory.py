"""Peak memory of a run on top of what is there before it: activations, logits, key/value cache.

CUDA: the allocator's own peak. Elsewhere: the bytes of all tensors that operations return and that are alive at one time, each
storage once; scratch inside a kernel is not seen.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(run: Callable[[], object], *, held: Iterable[Tensor], device: torch.device) -> int:
    """Most bytes that ``run`` holds at one time.

    Args:
        held: tensors from before (weights, inputs); views of them cost nothing.
        device: where it runs.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    with _LiveBytes(held) as live:
        run()
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Counts storages from the operation that returns them until the last tensor lets go."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._known = {one.untyped_storage()._cdata for one in held}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, Tensor):
                self._add(one.untyped_storage())
        self.peak = max(self.peak, self._now)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, n_bytes = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self._now += n_bytes
        weakref.finalize(storage, self._drop, key, n_bytes)

    def _drop(self, key: int, n_bytes: int) -> None:
        self._known.discard(key)
        self._now -= n_bytes
