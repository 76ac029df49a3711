"""Which layers a repair refits, and the teacher's boundary that each is fitted to."""

from __future__ import annotations

from shoal.edits.plan import Plan
from shoal.fit.fit_result import CannotRefit
from shoal.words.types import spans_of


def before_cuts(plan: Plan) -> dict[int, int]:
    """The last kept layer before each cut, with the teacher's boundary where the next kept layer begins.

    Raises:
        CannotRefit: the first layer is gone, so a cut has no layer before it.
    """
    runs = spans_of(plan.removed_layers)
    if runs and runs[0].start == 0:
        raise CannotRefit("the cut starts at layer 0, so no layer before it can be set; protect layer 0, or --repair sweep")
    return {run.start - 1: run.stop for run in runs}


def from_first_cut(plan: Plan) -> dict[int, int]:
    """Every kept layer from the last one before the first cut on, each with the boundary where the next kept layer begins."""
    if not plan.removed_layers:
        return {}
    first = max(0, plan.removed_layers[0] - 1)
    ends = [*plan.kept_layers[1:], plan.n_layers]
    return {layer: end for layer, end in zip(plan.kept_layers, ends, strict=True) if layer >= first}
