"""One point of a curve: a cut with its repair in a run folder of its own, and its figures in ``point.json``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from shoal.edits.plan import Plan
from shoal.engine.student import TEACHER, Student
from shoal.evaluate.curve.ratio_curve import RatioPoint, Unchanged
from shoal.evaluate.tasks.answers import facts_of
from shoal.evaluate.tasks.choice import score_task
from shoal.evaluate.tasks.task_files import Task
from shoal.measure.oracle import Oracle, Quality
from shoal.measure.scan import Scan
from shoal.recipes.reads import needs_scan
from shoal.recipes.recipe import Recipe
from shoal.run.asked import asked_of
from shoal.run.asking import oracle
from shoal.run.begin import open_folder
from shoal.run.curve.methods import slug
from shoal.run.folder import RunFolder
from shoal.run.job import Inputs, window_of
from shoal.run.keys import evaluation_key
from shoal.run.run_files import plan_file
from shoal.run.stage import State, run_all
from shoal.run.stages.table import TO_A_STUDENT
from shoal.select.budget import parse_budget
from shoal.words.progress import labelled, tell
from shoal.words.records import stable_hash, write_atomically
from shoal.words.structure import Size

POINT, TEACHER_POINT = "point.json", "teacher.json"


def with_recipe(base: Inputs, recipe: Recipe) -> Inputs:
    """The same model and text under another recipe; the slices that do not depend on it are read once."""
    own = replace(base, recipe=recipe)
    vars(own).update(calibration=base.calibration, selection=base.selection, evaluation=base.evaluation, length=base.length)
    return own


@dataclass(frozen=True)
class PointFigures:
    """What is measured of one student, per sample and item."""

    quality: Quality
    kl: tuple[float, ...]
    nll: tuple[float, ...]
    n_tokens: tuple[int, ...]
    right: dict[str, tuple[bool, ...]] = field(default_factory=dict)
    n_truncated: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class PointCut:
    """A student to be measured, and where its point belongs.

    Attributes:
        key: of everything its figures depend on.
        seconds: spent on choosing and repairing now (nearly none where both stood).
    """

    method: str
    n_net: int
    folder: RunFolder
    key: str
    plan: Plan
    student: Student
    seconds: float

    def done(self) -> RatioPoint | None:
        """The point that stands with these inputs."""
        return RatioPoint.load(self.folder / POINT) if self.folder.is_done("point", self.key) else None

    def finish(self, found: PointFigures, *, seconds: float, inside: RunFolder) -> RatioPoint:
        """Write the point. ``seconds``: its part of the pass; ``inside``: folder of the curves."""
        before, after = self.plan.before, self.plan.after
        point = RatioPoint(
            method=self.method,
            n_net=self.n_net,
            share=(before.parameters - after.parameters) / before.parameters,
            layers_out=self.plan.removed_layers,
            size=after,
            quality=found.quality,
            kl=found.kl,
            nll=found.nll,
            right=found.right,
            chosen=self.plan.method,
            plan=plan_file(self.folder.path).relative_to(inside.path).as_posix(),
            seconds=round(self.seconds + seconds, 3),
        )
        point.save(self.folder / POINT)
        self.folder.finish("point", self.key, seconds=point.seconds, files=[POINT])
        return point


@dataclass(frozen=True, eq=False)
class PointBench:
    """Text and tasks that every student of the curves is measured on."""

    inputs: Inputs
    tasks: Sequence[Task]

    @property
    def key(self) -> str:
        return stable_hash(self.inputs.evaluation.data_hash, [(task.name, task.data_hash) for task in self.tasks])

    def measure(self, students: Sequence[Student], *, what: str) -> list[PointFigures]:
        """One pass over the evaluation text and one over each task, for all students together."""
        judge = oracle(self.inputs, self.inputs.evaluation, what=f"{what}: evaluate")
        found = []
        for sums in judge.sums(students):
            kl_S, _, nll_S, tokens_S = sums.per_sample().unbind(1)
            n_tokens = tuple(int(n) for n in tokens_S.tolist())
            found.append(PointFigures(sums.result(), tuple(kl_S.tolist()), tuple(nll_S.tolist()), n_tokens))
        for task in self.tasks:
            scored = score_task(
                self.inputs.view,
                task,
                tokenizer=self.inputs.opened.need_tokenizer(),
                students=students,
                window=window_of(self.inputs.view.config),
                progress=partial(tell, f"{what}: {task.name}"),
            )
            for one, scores in zip(found, scored, strict=True):
                one.right[task.name] = tuple(answer.is_right for answer in scores.counted.items)
                one.n_truncated[task.name] = scores.facts.n_truncated
        return found

    def finish(self, cuts: Sequence[PointCut], *, inside: RunFolder, what: str) -> list[RatioPoint]:
        """The points of some cuts, measured together; cuts that lack the same layers and nothing else are run once."""
        started = time.monotonic()
        alike = {_identity(cut): cut.student for cut in cuts}
        figures = dict(zip(alike, self.measure(list(alike.values()), what=what), strict=True)) if cuts else {}
        seconds = (time.monotonic() - started) / max(1, len(cuts))
        return [cut.finish(figures[_identity(cut)], seconds=seconds, inside=inside) for cut in cuts]

    def teacher(self, folder: RunFolder, size: Size) -> Unchanged:
        """``teacher.json``: the model itself, measured as a student that lacks nothing."""
        key = stable_hash("teacher", self.inputs.model_key, self.key)
        if folder.is_done("teacher", key):
            return Unchanged.load(folder / TEACHER_POINT)
        started = time.monotonic()
        (found,) = self.measure([TEACHER], what="teacher")
        seconds = round(time.monotonic() - started, 3)
        point = RatioPoint(
            method="teacher", n_net=0, share=0.0, layers_out=(), size=size, quality=found.quality, kl=found.kl, nll=found.nll,
            right=found.right, seconds=seconds,
        )  # fmt: skip
        tasks = tuple(facts_of(task, n_truncated=found.n_truncated[task.name]) for task in self.tasks)
        made = Unchanged(point=point, n_tokens=found.n_tokens, tasks=tasks)
        made.save(folder / TEACHER_POINT)
        folder.finish("teacher", key, seconds=seconds, files=[TEACHER_POINT])
        return made


def _identity(cut: PointCut) -> object:
    """Equal for cuts that lack the same layers and have nothing else; any other is like itself alone."""
    return cut.plan.removed_layers if cut.plan.is_pure_removal else (cut.method, cut.n_net)


def point_path(folder: RunFolder, method: str, n_net: int) -> Path:
    return folder / "points" / f"{slug(method)}-{n_net:02d}"


def make_cut(
    inputs: Inputs,
    folder: RunFolder,
    *,
    method: str,
    n_net: int,
    found: Scan | None,
    judge: Oracle,
    bench: PointBench,
    command: str,
    label: str,
) -> PointCut:
    """Choose and repair one cut in its own folder inside that of the curves, or read back what stands there.

    ``label`` stands before what it tells of its progress.
    """
    started, recipe = time.monotonic(), inputs.recipe.model_copy(update={"drop": str(n_net), "parameters": None})
    own = open_folder(point_path(folder, method, n_net), command=command, overwrite=folder.overwrite)
    own.asked = asked_of(recipe, inputs.opened, tasks=[task.name for task in bench.tasks])
    scan = found if needs_scan(recipe) else None
    state = State(inputs, budget=parse_budget(str(n_net)), judge=judge, sets=folder, scan=scan)
    with labelled(f"{label}: "):
        state = run_all(TO_A_STUDENT, state, own)
    write_atomically(own / "recipe.yaml", recipe.to_yaml().encode())
    key = stable_hash("point", evaluation_key(inputs, state.planned, state.values.digest), bench.key)
    return PointCut(method, n_net, own, key, state.planned, state.student(), time.monotonic() - started)
