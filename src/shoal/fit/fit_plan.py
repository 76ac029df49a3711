"""A plan with a closed-form repair: which layers are refitted to what, the values, and the check on true KL.

Every repair writes new values of existing parameters, so the checkpoint stays stock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from shoal.edits.plan import Plan
from shoal.edits.refit import Refit
from shoal.edits.student_of import student_of, values_of
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.engine.workers import ALONE, Workers
from shoal.fit.fit_result import CannotRefit, FitResult
from shoal.fit.repairs import REPAIRS, FitConfig, RepairName
from shoal.fit.replacement_fit import fit_patches
from shoal.fit.sweep import Swept
from shoal.fit.table import FITS
from shoal.text.samples import Samples
from shoal.words.records import nearest

JudgeAll = Callable[[Sequence[Student]], Sequence[float]]
"""Students to their KL to the teacher; lower is better."""


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
    config: FitConfig = FitConfig(),  # noqa: B008  (frozen)
    quality: JudgeAll | None = None,
    progress: Callable[[int, int], None] | None = None,
    workers: Workers = ALONE,
) -> FittedPlan:
    """Refit kept layers of a plan that removes layers.

    Args:
        samples: text for the sums; a tenth is held out to decide what is kept.
        repair: its name in ``REPAIRS``. ``auto`` leaves the plain cut where nothing has a closed form, and its result says why.
        config: how tokens count, and the ridge; the text is ``samples``.
        quality: measures students on text of its own; a repair that it finds worse than the plain cut is undone.
        progress: called with (layers done, layers in all).
        workers: who share the text; all of them get the same values.
    Raises:
        CannotRefit: the plan replaces layers or removes sublayers; nothing can be refitted; too little text.
        ValueError: unknown repair; nothing is removed.
    """
    known = [name for name in REPAIRS if name != "none"]
    if repair not in known:
        raise ValueError(f"unknown repair {repair!r}; {nearest(repair, known)} (or none)")
    plan = without_refits(plan)
    if repair == "patch":
        return _fit_patches(view, plan, samples, batch_size=batch_size, config=config, quality=quality, progress=progress)
    started = time.monotonic()
    student = Student(removed=plan.removed_units, name="without repair")
    try:
        swept = _fit(
            view,
            plan,
            student,
            samples,
            repair=repair,
            batch_size=batch_size,
            config=config,
            progress=progress,
            workers=workers,
        )
    except CannotRefit as reason:
        if repair != "auto":
            raise
        swept = Swept({}, (), (str(reason).removesuffix("; use --repair none"),))
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
    if not swept.values:
        return FittedPlan(plan, {}, result.model_copy(update=dict(kept=False)))
    if quality is not None:
        before, after = quality([student, replace(student, overrides=swept.values, name="repaired")])
        kept = after < before
        result = result.model_copy(update=dict(kl_before=before, kl_after=after, kept=kept))
        if not kept:
            return FittedPlan(plan, {}, result)
    return FittedPlan(_with_refits(plan, swept.values), _named(swept.values), result)


def _fit(
    view: DecoderView,
    plan: Plan,
    student: Student,
    samples: Samples,
    *,
    repair: RepairName,
    batch_size: int,
    config: FitConfig,
    progress: Callable[[int, int], None] | None,
    workers: Workers,
) -> Swept:
    _refuse(plan)
    fit = FITS["sweep" if repair == "auto" else repair]
    n_layers = fit.last_layer(plan) + 1
    after_layer = None if progress is None else lambda layer: progress(layer + 1, n_layers)
    batches = samples.batches(batch_size)
    return fit(view, plan, student, batches, config=config, after_layer=after_layer, workers=workers)


def _fit_patches(
    view: DecoderView,
    plan: Plan,
    samples: Samples,
    *,
    batch_size: int,
    config: FitConfig,
    quality: JudgeAll | None,
    progress: Callable[[int, int], None] | None,
) -> FittedPlan:
    """Closed-form values of the plan's replacements; where they are worse than none of them, the start stands."""
    started = time.monotonic()
    student = replace(student_of(view, plan), name="without repair")
    last = max((edit.start for edit in plan.replacements), default=0)
    after_layer = None if progress is None else lambda layer: progress(min(layer, last) + 1, last + 1)
    found = fit_patches(view, student, samples.batches(batch_size), config=config, after_layer=after_layer)
    result = FitResult(
        repair="patch",
        layers=found.layers,
        n_samples=samples.n_samples,
        n_tokens=samples.n_tokens,
        data=samples.data,
        data_hash=samples.data_hash,
        seconds=time.monotonic() - started,
    )
    if quality is not None:
        before, after = quality([student, replace(found.student, name="repaired")])
        result = result.model_copy(update=dict(kl_before=before, kl_after=after, kept=after < before))
    return FittedPlan(plan, values_of(found.student.attached) if result.kept else {}, result)


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
        raise CannotRefit(
            f"the plan puts {plan.replacements[0].replacement!r} in place of {plan.replacements[0].span}; a closed-form repair "
            "needs plain removal: --replace none"
        )
    if any(unit.kind != "layer" for unit in plan.removed_units):
        raise CannotRefit("the plan removes single sublayers; a closed-form repair needs whole layers")
    if not plan.removed_layers:
        raise ValueError("the plan removes nothing, so there is nothing to repair; use --repair none")
