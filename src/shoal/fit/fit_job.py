"""What a closed form is solved for, and on: the one value that every repair is given."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace

from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.engine.workers import ALONE, Workers
from shoal.fit.boundary_states import BoundaryStates
from shoal.fit.fit_config import FitConfig
from shoal.fit.kept_layers import KeptLayers
from shoal.fit.walk import Goal, Here, walk
from shoal.words.types import Batch


@dataclass(frozen=True, eq=False)
class FitJob:
    """A student to be repaired.

    Attributes:
        student: before the repair.
        batches: text for the sums; of all workers together.
        config: how tokens count, and the ridge.
        known: the teacher's states of this process's batches at some boundaries, so that they are not run again.
        kept: what an earlier run of the same sweep set, layer by layer, and the place for what this one sets.
        after_layer: called with each finished layer, for progress.
        workers: the processes that share the batches; all of them get the same values.
    """

    view: DecoderView
    student: Student
    batches: Sequence[Batch]
    config: FitConfig = FitConfig()
    known: Mapping[int, BoundaryStates] | None = None
    kept: KeptLayers | None = None
    after_layer: Callable[[int], None] | None = None
    workers: Workers = ALONE

    def walk(self, goals: Mapping[int, Goal]) -> Generator[Here, None, None]:
        """Stop at every layer that has a goal; see :func:`shoal.fit.walk.walk`."""
        return walk(
            self.view,
            self.student,
            self.batches,
            goals=goals,
            known=self.known,
            after_layer=self.after_layer,
            workers=self.workers,
        )

    def alone(self) -> FitJob:
        """The same job for a process that reads all of the text itself: its sums are small, so sharing it would save little."""
        known = self.known if self.workers.size == 1 else None  # The known states are of the share of this process alone.
        return replace(self, workers=ALONE, known=known)
