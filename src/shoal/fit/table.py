"""The closed-form repairs by name. What each does in a line is in :data:`shoal.fit.repairs.REPAIRS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from shoal.edits.plan import Plan
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.engine.workers import ALONE, Workers
from shoal.fit.boundary_states import BoundaryStates
from shoal.fit.norm_scale import scale_cuts
from shoal.fit.repairs import FitConfig, RepairName
from shoal.fit.sites.bias import find_bias
from shoal.fit.sites.folded_map import find_output
from shoal.fit.sites.site import MapKind
from shoal.fit.sweep import WHOLE, Find, Swept, sweep_layers
from shoal.fit.targets import before_cuts, from_first_cut
from shoal.words.types import Batch, spans_of

MAPS: tuple[MapKind, ...] = ("mlp", "attn", "mlp")
"""What is solved for in each layer, in order. The MLP's map first: its change reaches the stream as it is, while a change of
the attention's map also moves what the MLP reads. docs/repair.md has the figures."""

SHARE = 2 / 3
"""What of a cut a sweep asks of the layer before it; those behind the cut make up the rest. On all cuts tried a whole share
left more KL. docs/log.md has the figures."""


class Fit(Protocol):
    """Solves a plan's cuts; arguments as for :func:`shoal.fit.sweep.sweep_layers`."""

    def __call__(
        self,
        view: DecoderView,
        plan: Plan,
        student: Student,
        batches: Sequence[Batch],
        *,
        config: FitConfig,
        known: Mapping[int, BoundaryStates] | None = None,
        after_layer: Callable[[int], None] | None = None,
        workers: Workers = ALONE,
    ) -> Swept: ...

    def last_layer(self, plan: Plan) -> int:
        """The last layer it reads, for progress."""
        ...


@dataclass(frozen=True)
class Maps:
    """Places of layers, solved in order: ``targets`` says of which layers, ``kinds`` of which sublayers, ``finds`` what.

    ``share`` and ``gathers`` are :func:`shoal.fit.sweep.sweep_layers`'s.
    """

    targets: Callable[[Plan], dict[int, int]]
    kinds: tuple[MapKind, ...]
    finds: tuple[Find, ...] = WHOLE
    share: float = 1.0
    gathers: bool = False

    def __call__(
        self,
        view: DecoderView,
        plan: Plan,
        student: Student,
        batches: Sequence[Batch],
        *,
        config: FitConfig,
        known: Mapping[int, BoundaryStates] | None = None,
        after_layer: Callable[[int], None] | None = None,
        workers: Workers = ALONE,
    ) -> Swept:
        return sweep_layers(
            view,
            student,
            batches,
            targets=self.targets(plan),
            kinds=self.kinds,
            finds=self.finds,
            share=self.share,
            gathers=self.gathers,
            config=config,
            known=known,
            after_layer=after_layer,
            workers=workers,
        )

    def last_layer(self, plan: Plan) -> int:
        return max(self.targets(plan))


@dataclass(frozen=True)
class Magnitude:
    """One scale per cut. It takes one pass: every worker makes it for itself."""

    def __call__(
        self,
        view: DecoderView,
        plan: Plan,
        student: Student,
        batches: Sequence[Batch],
        *,
        config: FitConfig,
        known: Mapping[int, BoundaryStates] | None = None,
        after_layer: Callable[[int], None] | None = None,
        workers: Workers = ALONE,
    ) -> Swept:
        cuts = spans_of(plan.removed_layers)
        return scale_cuts(view, student, batches, cuts=cuts, config=config, known=known, after_layer=after_layer)

    def last_layer(self, plan: Plan) -> int:
        return plan.n_layers - 1


FITS: dict[RepairName, Fit] = {
    "magnitude": Magnitude(),
    "map": Maps(before_cuts, ("mlp",), (find_output,)),
    "bias": Maps(before_cuts, ("mlp", "attn"), (find_bias,)),
    "refit": Maps(before_cuts, MAPS),
    "sweep": Maps(from_first_cut, MAPS, share=SHARE, gathers=True),
}
