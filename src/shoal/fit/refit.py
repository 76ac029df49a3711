"""A plan with a closed-form repair: which layers are refitted to what, the values, and the check on true KL.

``refit``: the last kept layer before each cut. ``sweep``: that layer and every kept layer after it. Both write new values of
existing parameters, so the checkpoint stays stock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from shoal.decoder import DecoderView, Student
from shoal.fit.maps import MapKind
from shoal.fit.result import FitResult, RepairName
from shoal.fit.sweep import sweep_layers
from shoal.plan import Plan, Refit
from shoal.text.samples import Samples
from shoal.types import nearest, spans_of

Quality = Callable[[Sequence[Student]], Sequence[float]]
"""Students to their KL to the teacher; lower is better."""


MAPS: tuple[MapKind, ...] = ("mlp", "attn", "mlp")
"""What is solved for in each layer, in order. The MLP's map first: its change reaches the stream as it is, while a change of
the attention's map also moves what the MLP reads. docs/repair.md has the figures."""


def before_cuts(plan: Plan) -> dict[int, int]:
    """The last kept layer before each cut, with the teacher's boundary where the next kept layer begins.

    Raises:
        ValueError: the first layer is gone, so a cut has no layer before it.
    """
    runs = spans_of(plan.removed_layers)
    if runs and runs[0].start == 0:
        raise ValueError("the cut starts at layer 0, so no layer before it can be refitted; protect layer 0, or --repair sweep")
    return {run.start - 1: run.stop for run in runs}


def from_first_cut(plan: Plan) -> dict[int, int]:
    """Every kept layer from the last one before the first cut on, each with the boundary where the next kept layer begins."""
    if not plan.removed_layers:
        return {}
    first = max(0, plan.removed_layers[0] - 1)
    ends = [*plan.kept_layers[1:], plan.n_layers]
    return {layer: end for layer, end in zip(plan.kept_layers, ends, strict=True) if layer >= first}


REPAIRS: dict[RepairName, Callable[[Plan], dict[int, int]]] = {"refit": before_cuts, "sweep": from_first_cut}
"""Which layers a repair refits, and the teacher's boundary that each is fitted to."""


@dataclass(frozen=True, eq=False)
class FittedPlan:
    """The plan with its refits, their values (as ``student_of`` reads them), and the record."""

    plan: Plan
    values: dict[str, Tensor]
    result: FitResult


def fit_plan(
    view: DecoderView,
    plan: Plan,
    samples: Samples,
    *,
    repair: RepairName,
    batch_size: int,
    quality: Quality | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FittedPlan:
    """Refit kept layers of a plan that removes layers.

    Args:
        samples: text for the sums; a tenth is held out to decide what is kept.
        repair: its name in ``REPAIRS``.
        quality: measures students on text of its own; a repair that it finds worse than the plain cut is undone.
        progress: called with (layers done, layers in all).
    Raises:
        ValueError: the plan replaces layers or removes sublayers; nothing is removed; nothing can be refitted; too little text.
    """
    if repair not in REPAIRS:
        raise ValueError(f"unknown repair {repair!r}; {nearest(repair, REPAIRS)} (or none)")
    plan = without_refits(plan)
    _refuse(plan)
    targets = REPAIRS[repair](plan)
    started = time.monotonic()
    student = Student(removed=plan.dropped_units, name="without repair")
    swept = sweep_layers(
        view,
        student,
        samples.batches(batch_size),
        targets=targets,
        maps=MAPS,
        after_layer=None if progress is None else lambda layer: progress(layer + 1, max(targets) + 1),
    )
    result = FitResult(
        repair=repair,
        layers=swept.layers,
        skipped=swept.skipped,
        n_samples=samples.n_samples,
        n_tokens=samples.n_tokens,
        data=samples.data,
        data_hash=samples.data_hash,
        seconds=time.monotonic() - started,
    )
    if quality is not None:
        before, after = quality([student, replace(student, overrides=swept.values, name="repaired")])
        kept = bool(swept.values) and after < before
        result = result.model_copy(update=dict(kl_before=before, kl_after=after, kept=kept))
        if not kept:
            return FittedPlan(plan, {}, result)
    return FittedPlan(_with_refits(plan, swept.values), _named(swept.values), result)


def without_refits(plan: Plan) -> Plan:
    """The plan as it was before a repair."""
    return plan.model_copy(update={"edits": tuple(edit for edit in plan.edits if not isinstance(edit, Refit))})


def _with_refits(plan: Plan, values: Mapping[int, Mapping[str, Tensor]]) -> Plan:
    refits = [Refit(layer=layer, parameters=tuple(sorted(own))) for layer, own in sorted(values.items())]
    return plan.model_copy(update={"edits": (*plan.edits, *refits)})


def _named(values: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"refit.{layer}.{name}": value for layer, own in values.items() for name, value in own.items()}


def _refuse(plan: Plan) -> None:
    if plan.replacements:
        raise ValueError(
            f"the plan puts {plan.replacements[0].replacement!r} in place of {plan.replacements[0].span}; a closed-form repair "
            "needs plain removal: --replace none"
        )
    if any(unit.kind != "layer" for unit in plan.dropped_units):
        raise ValueError("the plan removes single sublayers; a closed-form repair needs whole layers")
    if not plan.removed_layers:
        raise ValueError("the plan removes nothing, so there is nothing to repair; use --repair none")
