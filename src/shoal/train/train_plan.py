"""Train what a plan holds, its refits, merges and replacements: all together, one after the other, or each in the teacher."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from shoal.edits.plan import Plan
from shoal.edits.student_of import student_of, with_derived
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.engine.workers import ALONE, Workers
from shoal.text.samples import Samples
from shoal.train.config import TrainConfig
from shoal.train.loop import Judge, Report, Trained, train_starts
from shoal.train.parts import Start, TrainedPart, trained_parts
from shoal.train.train_result import TrainResult
from shoal.words.records import stable_hash


@dataclass(frozen=True, eq=False)
class TrainedPlan:
    """The student, its values (as ``student_of`` reads them), and one result per training, in order."""

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
    quality: Judge | None = None,
    progress: Report | None = None,
    workers: Workers = ALONE,
) -> TrainedPlan:
    """Gradient-train exactly the parameters that the plan sets, from their values, as ``config.several`` says.

    Args:
        values: of the plan's edits, where training starts; a replacement without any starts untrained, a merged layer as its
            rule makes it.
        folder: one subfolder per training, for checkpoints and curves. A finished one is read back from its last.
        quality: measures whole students, lower is better; what is kept is never worse by it than the start.
        Others: see :func:`shoal.train.loop.train_starts`.
    Raises:
        ValueError: the plan holds nothing to train; and as ``train_starts`` and ``student_of``.
    """
    values = with_derived(view, plan, values or {})
    student = student_of(view, plan, values)
    parts = trained_parts(student, view.n_layers)
    if not parts:
        raise ValueError(
            "the plan replaces no span, merges and refits no layer, so there is nothing to train; use --replace layer or "
            "--repair sweep"
        )
    keys = _keys_of(plan)
    edits = [edit.model_dump(mode="json") for edit in plan.edits]

    def train(starts: list[Start], name: str, number: int) -> tuple[Trained, ...]:
        return train_starts(
            view,
            starts,
            training=training,
            selection=selection,
            config=config,
            folder=None if folder is None else folder / name,
            key=stable_hash(plan.source_hash, edits, _fingerprint(values), number),
            quality=quality,
            progress=progress,
            workers=workers,
        )

    if config.several == "teacher_forced" and len(parts) > 1:
        trained = train([Start(_alone(student, part)) for part in parts], "teacher_forced", 0)
        results = tuple(one.result for one in trained)
        found = {keys.get(name, name): value for one in trained for name, value in one.values.items()}
        whole = student_of(view, plan, {**values, **found})
        if quality is not None and quality(whole) > quality(student):  # Each part helped in the teacher, but not all together.
            return TrainedPlan(student, values, tuple(one.model_copy(update={"best_step": 0}) for one in results))
        return TrainedPlan(whole, {**values, **found}, results)
    together = [parts] if config.several == "joint" else [(part,) for part in parts]
    results = ()
    for number, group in enumerate(together):
        (one,) = train([Start(student, group)], f"{group[0].start}-{max(part.stop for part in group)}", number)
        student = replace(one.student, name=student.name)
        results += (one.result,)
        values.update({keys.get(name, name): value for name, value in one.values.items()})
    return TrainedPlan(student, values, results)


def _keys_of(plan: Plan) -> dict[str, str]:
    """Names of trained values of layers (``refit.LAYER.NAME``) to those of the edit that put them there.

    Where two edits write one parameter, the later one's value is the student's.
    """
    return {
        f"refit.{layer}.{name}": key
        for edit in plan.edits
        for layer, keys in edit.written().items()
        for name, key in keys.items()
        if key is not None
    }


def _alone(student: Student, part: TrainedPart) -> Student:
    """The teacher with one part, and without the layers that are gone between it and its target."""
    return replace(
        student,
        removed=frozenset(unit for unit in student.removed if part.start <= unit.index < part.target),
        overrides={layer: own for layer, own in student.overrides.items() if part.kind == "refit" and layer == part.start},
        attached=tuple(one for one in student.attached if part.kind == "module" and one.span.start == part.start),
    )


def _fingerprint(values: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    return [(name, stable_hash(value.detach().float().cpu().numpy().tobytes())) for name, value in sorted(values.items())]
