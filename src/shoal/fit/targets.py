"""Which layers a repair refits, and the teacher's boundary that each is fitted to."""

from __future__ import annotations

from shoal.edits.plan import Plan
from shoal.fit.fit_result import CannotRefit
from shoal.words.structure import units_off
from shoal.words.types import spans_of


def before_cuts(plan: Plan) -> dict[int, int]:
    """The last kept layer before each cut, and every layer that lost a sublayer, with the boundary where the next one begins.

    Raises:
        CannotRefit: the first layer is gone, so a cut has no layer before it.
    """
    runs = spans_of(plan.removed_layers)
    if runs and runs[0].start == 0:
        raise CannotRefit("the cut starts at layer 0, so no layer before it can be set; protect layer 0, or --repair sweep")
    ends = _ends(plan)
    refitted = {run.start - 1 for run in runs} | {unit.index for unit in units_off(plan.structure)}
    return {layer: ends[layer] for layer in sorted(refitted)}


def with_takers(plan: Plan) -> dict[int, int]:
    """As :func:`before_cuts`, and behind every layer that lost its MLP the next one that has its own, to take the neurons."""
    lost = {unit.index for unit in units_off(plan.structure) if unit.kind == "mlp"}
    behind = (next((one for one in plan.kept_layers if one > layer and one not in lost), None) for layer in lost)
    ends = _ends(plan)
    return {layer: ends[layer] for layer in sorted({*before_cuts(plan), *(one for one in behind if one is not None)})}


def from_first_cut(plan: Plan) -> dict[int, int]:
    """Every kept layer from the first one that a cut follows or that lost a sublayer on, each with the next one's boundary."""
    firsts = [max(0, layer - 1) for layer in plan.removed_layers] + [unit.index for unit in units_off(plan.structure)]
    return {layer: end for layer, end in _ends(plan).items() if layer >= min(firsts, default=plan.n_layers)}


def _ends(plan: Plan) -> dict[int, int]:
    """Every kept layer with the teacher's boundary where the next kept layer begins."""
    return dict(zip(plan.kept_layers, [*plan.kept_layers[1:], plan.n_layers], strict=True))
