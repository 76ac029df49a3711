"""A plan with a closed-form repair: the values of kept layers or of replacements, and the check on true KL."""

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
from shoal.fit.fit_config import FitConfig
from shoal.fit.fit_job import FitJob
from shoal.fit.fit_result import CannotRefit, FitResult, Refitted
from shoal.fit.table import REPAIRS, fit_of
from shoal.fit.teacher_prefix import Reuse
from shoal.text.samples import Samples

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
    repair: str,
    batch_size: int,
    config: FitConfig = FitConfig(),  # noqa: B008  (frozen)
    quality: JudgeAll | None = None,
    reuse: Reuse = Reuse(),  # noqa: B008  (frozen)
    progress: Callable[[int, int], None] | None = None,
    workers: Workers = ALONE,
) -> FittedPlan:
    """Set values of a plan's student in closed form.

    Args:
        plan: removes layers or sublayers; for a repair that sets replacements it puts modules in place of layers.
        samples: text for the sums; a tenth is held out to decide what is kept.
        repair: its name in the table, but ``none``. ``auto`` leaves the plain cut where nothing has a closed form, and its
            result says why.
        config: how tokens count, and the ridge; the text is ``samples``.
        quality: measures students on text of its own; a repair that it finds worse than none is undone, and replacements that
            it would have set keep the values they start with.
        reuse: what earlier fits left that need not be made again; it changes no value.
        progress: called with (layers done, layers in all).
        workers: the processes that share the text; all of them get the same values.
    Raises:
        CannotRefit: the plan is not of that form; nothing has a closed form; too little text.
        ValueError: unknown repair; nothing is removed.
    """
    entry, fit = REPAIRS.named(repair), fit_of(repair)
    plan = without_refits(plan)
    started = time.monotonic()
    student = replace(student_of(view, plan), name="without repair")
    try:
        if not entry.sets_replacements:
            _refuse_all_but_removal(plan)
        n_layers = fit.last_layer(plan) + 1
        after_layer = None if progress is None else lambda layer: progress(layer + 1, n_layers)
        batches = samples.batches(batch_size)
        job = FitJob(view, student, batches, config, reuse.known(), reuse.kept, after_layer, workers)
        found = fit(job, plan)
    except CannotRefit as reason:
        if not entry.else_plain:
            raise
        found = Refitted({}, (), (str(reason).removesuffix("; use --repair none"),))
    result = FitResult(
        repair=repair,
        layers=found.layers,
        skipped=found.skipped,
        ended_behind=found.ended_behind,
        n_samples=samples.n_samples,
        n_tokens=samples.n_tokens,
        data=samples.data,
        data_hash=samples.data_hash,
        seconds=time.monotonic() - started,
    )
    # Without its repair a replacement has its start; written down, or nobody could make the student from the plan's files.
    undone = values_of(student.attached) if entry.sets_replacements else {}
    if not found.values and not found.attached:
        return FittedPlan(plan, undone, result.model_copy(update=dict(kept=False)))
    if quality is not None:
        overrides = {
            layer: {**student.overrides.get(layer, {}), **found.values.get(layer, {})}
            for layer in sorted({*student.overrides, *found.values})
        }
        repaired = replace(student, overrides=overrides, attached=found.attached or student.attached, name="repaired")
        before, after = quality([student, repaired])
        result = result.model_copy(update=dict(kl_before=before, kl_after=after, kept=after < before))
        if not result.kept:
            return FittedPlan(plan, undone, result)
    return FittedPlan(_with_refits(plan, found.values), _named(found.values) | values_of(found.attached), result)


def without_refits(plan: Plan) -> Plan:
    """The plan as it was before a repair."""
    return plan.model_copy(update={"edits": tuple(edit for edit in plan.edits if not isinstance(edit, Refit))})


def _with_refits(plan: Plan, values: Mapping[int, Mapping[str, Tensor]]) -> Plan:
    refits = [Refit(layer=layer, parameters=tuple(sorted(own))) for layer, own in sorted(values.items())]
    return plan.model_copy(update={"edits": (*plan.edits, *refits)})


def _named(values: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"refit.{layer}.{name}": value for layer, own in values.items() for name, value in own.items()}


def _refuse_all_but_removal(plan: Plan) -> None:
    if plan.replacements:
        raise CannotRefit(
            f"the plan puts {plan.replacements[0].replacement!r} in place of {plan.replacements[0].span}; a closed-form repair "
            "needs plain removal: --replace none"
        )
    if not plan.removed_units:
        raise ValueError("the plan removes nothing, so there is nothing to repair; use --repair none")
