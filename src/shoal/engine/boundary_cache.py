"""Boundary states that later passes over the same text can begin with, in bounded memory.

A search measures students that are nearly alike, call after call. Whatever a student shares with an earlier one from the first
layer on need not be run again: the states behind it have the same bits.
Shapes: B samples, T positions, D hidden size.
"""

from torch import Tensor

from shoal.engine.route import History
from shoal.engine.spill import ONE_IN, free_memory, free_on_card


class BoundaryCache:
    """States by history and batch, on the device they were made on.

    States that the running pass has asked for or made stay until it ends. All others give way, those that were not used for the
    longest time first. A pass reads its batches in order, so without this rule a cache that is smaller than one pass would
    always drop what is asked for next.

    Args:
        limit: bytes that states may take; None: a quarter of what is free when the first one comes.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.n_bytes = 0
        self._states: dict[tuple[History, int], Tensor] = {}
        self._used: dict[tuple[History, int], int] = {}  # The value is the pass, the order is that of the last use.
        self._n_passes = 0

    def begin(self) -> None:
        """A new pass begins."""
        self._n_passes += 1

    def has(self, history: History | None, index: int) -> bool:
        """Whether the states of a batch are here; they then stay until the pass ends."""
        if history is None or (history, index) not in self._states:
            return False
        self._touch((history, index))
        return True

    def get(self, history: History | None, index: int) -> Tensor:
        """States (B, T, D) that :meth:`has` said are here; not to be edited."""
        assert history is not None
        return self._states[history, index]

    def put(self, history: History | None, index: int, h_BTD: Tensor) -> None:
        """Keep states if there is room, or room can be made of what this pass does not use."""
        if history is None or (history, index) in self._states:
            return
        if self.limit is None:
            free = free_on_card(h_BTD.device) if h_BTD.device.type == "cuda" else free_memory()
            self.limit = free // ONE_IN
        size = _bytes(h_BTD)
        while self.n_bytes + size > self.limit:
            oldest = next(iter(self._used), None)
            if oldest is None or self._used[oldest] == self._n_passes:
                return
            self.n_bytes -= _bytes(self._states.pop(oldest))
            del self._used[oldest]
        self._states[history, index] = h_BTD
        self.n_bytes += size
        self._touch((history, index))

    def _touch(self, key: tuple[History, int]) -> None:
        self._used.pop(key, None)
        self._used[key] = self._n_passes


def _bytes(h_BTD: Tensor) -> int:
    return h_BTD.numel() * h_BTD.element_size()
