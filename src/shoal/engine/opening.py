"""How models are opened. Plain data, free of torch."""

from dataclasses import dataclass, replace
from typing import Self

from shoal.engine.workers import Workers


@dataclass(frozen=True)
class Opening:
    """Where, in which precision and with how much trust models are opened: the same for every model of a run.

    The value goes from the command line to the last stage as it is, and an opened model keeps it, so that its student is opened
    in the same way.

    Attributes:
        device: a torch device; ``cuda`` is a card of its own for each process of a job.
        dtype: float32, bfloat16 or float16; None keeps the checkpoint's own.
        resident: layers in memory: ``all``, a number (the rest is read from disk as needed), or ``auto``. Read where the inputs
            of a run are opened; what is opened beside them is in memory.
        trust: code that comes with a model may run.
    """

    device: str = "cpu"
    dtype: str | None = None
    resident: str = "auto"
    trust: bool = False

    def for_process(self, workers: Workers) -> Self:
        """With the card of this process."""
        return replace(self, device=workers.device(self.device))

    def in_memory(self) -> Self:
        """With all layers in memory, for work that asks for all of them at once."""
        return replace(self, resident="all")

    def trusting(self, also: bool) -> Self:
        """Trusting, too, where ``also`` is true: for a checkpoint whose code Shoal wrote."""
        return replace(self, trust=self.trust or also)
