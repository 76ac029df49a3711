"""Train every replacement of a plan: front to back, each with the student's own input and the teacher's target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from shoal.decoder import DecoderView, Student
from shoal.plan import Plan
from shoal.replace import replacement_named, student_of, values_of
from shoal.text.samples import Samples
from shoal.train.config import TrainConfig
from shoal.train.loop import Quality, Report, train_starts
from shoal.train.result import TrainResult
from shoal.train.students import Start
from shoal.types import stable_hash


@dataclass(frozen=True, eq=False)
class TrainedPlan:
    """The student, its values (as ``student_of`` reads them), and one result per replacement, front to back."""

    student: Student
    values: dict[str, Tensor]
    results: tuple[TrainResult, ...]


def train_plan(
    view: DecoderView,
    plan: Plan,
    *,
    training: Samples,
    selection: Samples,
    config: TrainConfig,
    values: Mapping[str, Tensor] | None = None,
    folder: Path | None = None,
    quality: Quality | None = None,
    progress: Report | None = None,
) -> TrainedPlan:
    """Train the replacements of a plan one after the other; each is measured in the whole student.

    Args:
        values: refits of the plan, and values of replacements that are already there (they are trained anew).
        folder: one subfolder per replacement, for checkpoints and curves. A finished replacement is read back from its last.
        Others: see :func:`shoal.train.loop.train_starts`.
    Raises:
        ValueError: the plan replaces nothing; and as ``train_starts`` and ``student_of``.
    """
    if not plan.replacements:
        raise ValueError("the plan replaces no span, so there is nothing to train; use --replace layer")
    values = {name: value for name, value in (values or {}).items() if not name.startswith("replace.")}
    student = student_of(view, plan, values)
    results = []
    for number, edit in enumerate(plan.replacements):
        others = replace(student, attached=tuple(one for one in student.attached if one.span != edit.span))
        start = Start(edit.span, replacement_named(edit.replacement, edit.options), others)
        (trained,) = train_starts(
            view,
            [start],
            training=training,
            selection=selection,
            config=config,
            folder=None if folder is None else folder / f"{edit.start}-{edit.stop}",
            key=stable_hash(plan.source_hash, [e.model_dump(mode="json") for e in plan.edits], number),
            quality=quality,
            progress=progress,
        )
        student = replace(trained.student, name=student.name)
        results.append(trained.result)
    return TrainedPlan(student, {**values, **values_of(student.attached)}, tuple(results))
