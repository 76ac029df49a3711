"""What a training run leaves: the learning curve, the best step and what it rests on. Plain data."""

from pathlib import Path
from typing import Literal

from shoal.train.config import TrainConfig
from shoal.words.records import Record, write_atomically
from shoal.words.types import Span


class CurvePoint(Record):
    """One validation.

    Attributes:
        step: optimiser steps done, over all stages; 0 is the start. ``tokens``: training tokens read so far.
        lr: learning rate of the last step done; of the first one at step 0.
        loss, grad_norm: training loss (of the stage) and gradient norm before clipping, means over the steps since the last
            point; None at 0.
        validation: the last stage's objective on ``selection``, of the values as they would be saved (in the model's dtype).
        quality: the caller's measure of the whole student, if any (true KL); lower is better.
        seconds: of training so far, validation included, interruptions not.
    """

    step: int
    tokens: int
    lr: float
    loss: float | None
    grad_norm: float | None
    validation: float
    quality: float | None
    seconds: float


class TrainResult(Record):
    """One trained student.

    Attributes:
        start, stop: the boundaries where its trained parts begin and end; ``trained``: those parts, front to back.
        objective: of the stages in order.
        decided_by: what chose the best step: ``quality`` where the caller measured it, else ``validation``.
        best_step: optimiser steps of the kept values; 0: training did not help and the start was kept.
        n_steps, n_tokens, n_parameters, seconds: of the whole run.
        data, data_hash: the training text; ``config``: as used, with the learning rates that follow from the width.
    """

    start: int
    stop: int
    trained: tuple[str, ...]
    objective: str
    decided_by: Literal["quality", "validation"]
    best_step: int
    n_steps: int
    n_tokens: int
    n_parameters: int
    seconds: float
    data: str
    data_hash: str
    config: TrainConfig
    curve: tuple[CurvePoint, ...]

    @property
    def span(self) -> Span:
        return Span(self.start, self.stop)

    @property
    def first(self) -> CurvePoint:
        """The start."""
        return self.curve[0]

    @property
    def best(self) -> CurvePoint:
        """The point whose values were kept."""
        return next(point for point in self.curve if point.step == self.best_step)

    def __str__(self) -> str:
        first, best = self.first, self.best
        what = ", ".join(self.trained[:2]) + (f" and {len(self.trained) - 2} more" if len(self.trained) > 2 else "")
        parts = [f"{what} on {self.objective}: loss on selection {first.validation:.4g} -> {best.validation:.4g}"]
        if first.quality is not None and best.quality is not None:
            parts.append(f"KL to the teacher {first.quality:.4g} -> {best.quality:.4g}")
        return ", ".join(
            [*parts, f"best step {self.best_step} of {self.n_steps}, {self.n_tokens:,} tokens, {self.seconds:.0f} s"]
        )


class TrainResults(Record):
    """``train.json``: how the values of a plan were trained, in order, and the digest of ``train.safetensors``."""

    results: tuple[TrainResult, ...]
    values_digest: str = ""


def save_curve(path: Path, curve: tuple[CurvePoint, ...]) -> None:
    """The curve as JSON lines, one validation each, for plots and for watching a run."""
    write_atomically(path, "".join(point.model_dump_json() + "\n" for point in curve).encode())
