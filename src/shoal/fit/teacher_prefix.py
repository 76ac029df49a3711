"""The teacher's states in front of the earliest of several cuts: made once, for every candidate that is repaired on that text.

Up to its first cut a candidate is the teacher, so all walks over the same batches pass through the same states there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from shoal.engine.spill import Spill
from shoal.engine.student import Step
from shoal.engine.view import DecoderView
from shoal.engine.workers import ALONE, Workers
from shoal.fit.boundary_states import BoundaryStates, SpilledStates, advance, free, read_all
from shoal.fit.kept_layers import KeptLayers
from shoal.words.types import Batch


class TeacherPrefix:
    """The states of this process's batches at one boundary, made when they are first asked for.

    Args:
        batches: of all workers together.
        boundary: no walk that shares the states may change a layer before it; 0: there is nothing to share.
    """

    def __init__(self, view: DecoderView, batches: Sequence[Batch], boundary: int, *, workers: Workers = ALONE) -> None:
        self._view, self._batches, self._boundary, self._workers = view, batches, boundary, workers
        self._states: SpilledStates | None = None

    @torch.no_grad()
    def known(self) -> Mapping[int, BoundaryStates]:
        """The boundary with its states; empty where there is nothing to share."""
        if self._boundary == 0:
            return {}
        if self._states is None:
            readings, states = read_all(self._view, self._workers.share(self._batches), Spill(self._view.residency.state_bytes))
            for layer in range(self._boundary):
                with self._view.residency.layer(layer):
                    before, states = states, advance(self._view, Step(layer), readings, states)
                free(before)
            self._states = states
        return {self._boundary: self._states}


@dataclass(frozen=True, eq=False)
class Reuse:
    """What a fit takes from those before it, so that it is not made again.

    Attributes:
        kept: fitted layers of an earlier run of the same fit, and the place for those of this one.
        prefix: the teacher's states in front of the cuts, on the same batches.
    """

    kept: KeptLayers | None = None
    prefix: TeacherPrefix | None = None

    def known(self) -> Mapping[int, BoundaryStates]:
        """The teacher's states that need not be run again."""
        return {} if self.prefix is None else self.prefix.known()
