"""How long a run will take as a whole: what was expected of its stages, corrected by what those took that are done."""

import time
from collections.abc import Callable, Sequence

BELIEF = 0.02
"""Share of the whole that counts as if it had taken as long as expected, so that a first stage of seconds decides nothing."""


class Expected:
    """The minutes of a run of several stages.

    A pace that was measured while other work took the cores promises hours. So when a stage begins, what was expected of those
    that are left is scaled by what the finished ones took over what was expected of them.

    Args:
        seconds: expected of each stage, in order; 0 for those that were finished before.
        now: a clock in seconds.
    """

    def __init__(self, seconds: Sequence[float], *, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._now, self._began = tuple(seconds), now, now()
        self._k, self._scale, self._before = 1, 1.0, 0.0

    def begin(self, k: int) -> None:
        """The ``k``-th stage is at work, counted from 1; those before it are done."""
        if self._k < k <= len(self._seconds):
            self._k, self._before = k, self.taken
            belief = BELIEF * sum(self._seconds)
            done = sum(self._seconds[: k - 1])
            self._scale = (self._before + belief) / (done + belief) if done + belief else 1.0

    @property
    def taken(self) -> float:
        """Seconds since the first stage began."""
        return self._now() - self._began

    @property
    def whole(self) -> float:
        """Seconds that all stages will have taken: never fewer than have passed, with the stages that follow."""
        here, behind = self._seconds[self._k - 1], sum(self._seconds[self._k :])
        return max(self._before + self._scale * here, self.taken) + self._scale * behind

    def __str__(self) -> str:
        """``3 of ~12 min``; empty where it is a matter of seconds."""
        return f"{self.taken / 60:.0f} of ~{self.whole / 60:.0f} min" if self.whole >= 60 else ""
