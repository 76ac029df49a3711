"""Methods compared over the removed share: one scan, one pass for every candidate of every guard, one for all plain cuts.

``DIR/scan.json`` is shared. Every point has a run folder of its own, ``DIR/points/METHOD-NN`` (plan, values, its figures in
``point.json``), so that a sweep goes on from its last point, can be widened by methods and points, and each of its cuts can be
applied. ``DIR/sweep.json`` is written anew after every pass that measured points.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from shoal.recipe import RECIPES, Recipe
from shoal.run.compress import open_folder
from shoal.run.early import check_recipe
from shoal.run.fit import fit_stage
from shoal.run.folder import RunFolder
from shoal.run.inputs import Inputs, Progress, open_inputs, silent, window_of
from shoal.run.keys import evaluation_key
from shoal.run.stages import choosing, needs_scan, oracle, plan_stage, scan_stage, train_stage, why_not
from shoal.types import nearest, stable_hash, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from shoal.decoder import Student
    from shoal.evaluate import Task
    from shoal.evaluate.curve import Kept, Point, RatioSweep, SweptTask
    from shoal.plan import Plan
    from shoal.scan import Scan
    from shoal.score.oracle import Oracle
    from shoal.select.size import ModelSize

SWEEP, POINT, TEACHER_POINT = "sweep.json", "point.json", "teacher.json"
DEFAULT_METHODS = "none,uidl,shortgpt"


@dataclass(frozen=True)
class Keeping:
    """A wanted share of the teacher's quality, and the measure it is told of."""

    share: float
    of: str


def method_choice(name: str) -> tuple[str, dict[str, str]]:
    """A method's recipe and what it changes: ``none``, a repair or replacement (on the recipe ``default``), a recipe, a YAML
    file, or several joined by ``+`` such as ``uidl+sweep``.

    Raises:
        ValueError: an unknown part, or two parts that say the same.
    """
    known = {field: set(get_args(Recipe.model_fields[field].annotation)) - {"none"} for field in ("repair", "replace")}
    recipe, changes = None, dict[str, str]()
    for part in name.split("+"):
        field = next((field for field, names in known.items() if part in names), None)
        if field is not None and field not in changes:
            changes[field] = part
        elif field is None and recipe is None and (part in RECIPES or Path(part).suffix in (".yaml", ".yml")):
            recipe = part
        elif part != "none" or name != "none":
            twice = field is not None or part in RECIPES
            names = {"none", *RECIPES, *known["repair"], *known["replace"]}
            why = "says twice what a method is" if twice else f"is none; {nearest(part, names)}, or a YAML file"
            raise ValueError(f"--methods {name!r}: {part!r} {why}")
    if recipe is None:
        changes.setdefault("replace", "none")
    return recipe or "default", changes


def check_methods(methods: Mapping[str, Recipe], out: Path) -> None:
    """Before a model is opened.

    Raises:
        ValueError: no method, names that make one folder, recipes with another text or seed, or what ``check_recipe`` refuses.
    """
    if not methods:
        raise ValueError("--methods names no method; give some, such as none,refit")
    folders: dict[str, str] = {}
    first = next(iter(methods.values()))
    for name, recipe in methods.items():
        check_recipe(recipe, out)
        other = folders.setdefault(_slug(name), name)
        if other != name:
            raise ValueError(f"--methods {other!r} and {name!r} would share a folder; rename one of them")
        if (recipe.text, recipe.seed, recipe.model) != (first.text, first.seed, first.model):
            raise ValueError(
                f"--methods {name!r} states a text, seed or model of its own; a sweep compares on one: take them out of the "
                "file and give --text and --seed"
            )


def sweep_ratios(
    methods: Mapping[str, Recipe],
    out: str | Path,
    *,
    drop: str = "0..50%",
    n_points: int | None = None,
    tasks: Sequence[Task] = (),
    keep: Keeping | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    resident: str = "auto",
    trust_remote_code: bool = False,
    overwrite: bool = False,
    command: str = "",
    progress: Progress = silent,
) -> RatioSweep:
    """Choose, repair and measure every cut of a range with every method.

    Args:
        methods: recipes by name, of one model, text and seed; their budgets are not read.
        out: folder of the sweep: new, empty, or of an earlier sweep, which is continued or widened.
        drop: the range, as on the command line; ``n_points``: how many cuts of it.
        tasks: scored under every point and the teacher.
        keep: asks for the largest cut of every method that keeps so much.
        device, dtype, resident, overwrite, command, progress: as for :func:`~shoal.run.compress.compress`.
    Raises:
        ValueError: one line for anything the user can mend.
    """
    from shoal.evaluate.curve import ON_TEXT
    from shoal.select.ratios import check_range, counts_in
    from shoal.select.size import model_size

    check_methods(methods, Path(out))
    check_range(drop)
    names = [task.name for task in tasks]
    if len({*names, *ON_TEXT}) < len(names) + len(ON_TEXT):
        raise ValueError(f"tasks need names of their own, other than {' and '.join(ON_TEXT)}: got {', '.join(names)}")
    if keep is not None and keep.of not in (*ON_TEXT, *names):
        raise ValueError(f"--of {keep.of!r} is not measured here; {nearest(keep.of, (*ON_TEXT, *names))}")
    folder = open_folder(Path(out), command=command, overwrite=overwrite)
    options = dict(device=device, dtype=dtype, resident=resident, trust_remote_code=trust_remote_code)
    base = open_inputs(_for_all(methods), **options)  # type: ignore[arg-type]
    if base.is_streamed and any(recipe.replace != "none" for recipe in methods.values()):
        raise ValueError("a replacement cannot be trained while layers are read from disk; use --resident all")
    size = model_size(base.view)
    counts = counts_in(drop, size, protected=base.recipe.protected(size.n_layers), n_points=n_points)
    work = _Work(base, folder, {name: _with_recipe(base, recipe) for name, recipe in methods.items()}, counts, tasks, progress)
    work.check(size)
    work.refuse_to_lose_points()
    found = scan_stage(base, folder, progress=progress) if any(map(needs_scan, methods.values())) else None
    sweep = work.sweep(drop, command, size)
    for points in work.run(found, size):
        sweep = sweep.model_copy(update={"points": work.in_order(points)})
        sweep.save(folder / SWEEP)
    sweep = conclude(sweep, keep=keep)
    sweep.save(folder / SWEEP)
    return sweep


def conclude(sweep: RatioSweep, *, keep: Keeping | None = None) -> RatioSweep:
    """With cliffs, and the largest cuts that keep what is wanted; nothing is measured."""
    from shoal.evaluate.cliff import cliff_of
    from shoal.evaluate.curve import curve_of
    from shoal.evaluate.keep import largest_cut

    cliffs = [
        cliff_of(curve_of(sweep, method=method, of=of), method=method) for method in sweep.recipes for of in sweep.measures
    ]
    kept: list[Kept] = []
    if keep is not None:
        kept = [
            largest_cut(curve_of(sweep, method=method, of=keep.of), method=method, keep=keep.share) for method in sweep.recipes
        ]
    return sweep.model_copy(update={"cliffs": tuple(cliffs), "kept": tuple(kept)})


# -- the work ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Cut:
    """A point to be measured: its plan, its values, and the seconds spent so far."""

    method: str
    n_net: int
    folder: RunFolder
    key: str
    plan: Plan
    student: Student
    seconds: float


@dataclass(frozen=True, eq=False)
class _Work:
    base: Inputs
    folder: RunFolder
    methods: Mapping[str, Inputs]
    counts: Sequence[int]
    tasks: Sequence[Task]
    progress: Progress

    def check(self, size: ModelSize) -> None:
        """Every method can remove every number of layers, as far as that shows before anything is measured."""
        from shoal.select.budget import parse_budget
        from shoal.select.choose import check_reach

        for name, inputs in self.methods.items():
            for n in self.counts:
                try:
                    check_reach(parse_budget(str(n)), size, how=choosing(inputs.recipe, size.n_layers))
                except ValueError as reason:
                    raise ValueError(f"method {name!r}: {reason}; sweep a smaller range, or leave this method out") from None

    def refuse_to_lose_points(self) -> None:
        from shoal.evaluate.curve import RatioSweep

        path = self.folder / SWEEP
        if not path.exists() or self.folder.overwrite:
            return
        asked = {(name, n) for name in self.methods for n in self.counts}
        lost = [one for one in RatioSweep.load(path).points if (one.method, one.n_net) not in asked]
        if lost:
            raise ValueError(
                f"{path} holds {len(lost)} points that this sweep leaves out ({lost[0].method!r} without {lost[0].n_net} layers); "
                "ask for them too, add --overwrite, or give another --out"
            )

    def sweep(self, drop: str, command: str, size: ModelSize) -> RatioSweep:
        """The record without points: what is the same for all, and the teacher."""
        from shoal.evaluate.curve import RatioSweep

        samples = self.base.evaluation
        teacher, n_tokens, tasks = self._teacher(size)
        return RatioSweep(
            drop=drop,
            counts=tuple(self.counts),
            recipes={
                name: inputs.recipe.model_dump(mode="json", exclude={"drop", "parameters"})
                for name, inputs in self.methods.items()
            },
            before=size.before,
            n_tokens=n_tokens,
            tasks=tasks,
            teacher=teacher,
            provenance=self.base.provenance(samples),
            command=command,
            seed=self.base.recipe.seed,
        )

    def run(self, found: Scan | None, size: ModelSize) -> Iterator[list[Point]]:
        """All points measured so far, each time some were added."""
        judge = self._warm_judge(found, size)
        points: list[Point] = []
        plain: list[_Cut] = []
        for method, inputs in self.methods.items():
            if inputs.recipe.repair != "none" or inputs.recipe.replace != "none":
                continue
            for n in self.counts:
                cut = self._cut(method, n, found, judge)
                done = _point_of(cut)
                if done is not None:
                    points.append(done)
                else:
                    plain.append(cut)
        points += self._measure(plain)
        yield points
        for method, inputs in self.methods.items():
            if inputs.recipe.repair == "none" and inputs.recipe.replace == "none":
                continue
            for n in self.counts:
                cut = self._cut(method, n, found, judge)
                done = _point_of(cut)
                points += [done] if done is not None else self._measure([cut])
                yield points

    def in_order(self, points: Sequence[Point]) -> tuple[Point, ...]:
        order = {name: place for place, name in enumerate(self.methods)}
        return tuple(sorted(points, key=lambda one: (order[one.method], one.n_net)))

    def _warm_judge(self, found: Scan | None, size: ModelSize) -> Oracle:
        """The guards' oracle, after one pass over every candidate of every plan that is still to be made.

        Rounds measure students while they choose, so their candidates are left to their own plan.
        """
        from shoal.select.budget import parse_budget
        from shoal.select.choose import shortlist
        from shoal.select.guard import student_without

        judge = oracle(self.base, self.base.selection, what="guard", progress=self.progress)
        wanted: dict[tuple[int, ...], None] = {}
        for method, inputs in self.methods.items():
            recipe = inputs.recipe
            if recipe.guard == 1 or recipe.rounds > 1:
                continue
            for n in self.counts:
                if (self._path(method, n) / "plan.json").exists():
                    continue
                _, candidates = shortlist(
                    parse_budget(str(n)),
                    size,
                    tables=found.tables if found else {},
                    how=choosing(recipe, size.n_layers),
                    refuse=lambda kept: why_not(self.base, kept),
                )
                wanted.update((one.layers, None) for one in candidates if len(candidates) > 1)
        judge.measure([student_without(layers) for layers in wanted])
        return judge

    def _path(self, method: str, n: int) -> Path:
        return self.folder / "points" / f"{_slug(method)}-{n:02d}"

    def _cut(self, method: str, n: int, found: Scan | None, judge: Oracle) -> _Cut:
        """Plan and repair one point in its own folder, or read back what stands there."""
        from shoal.replace import student_of
        from shoal.select.budget import parse_budget

        started, inputs = time.monotonic(), self.methods[method]
        own = open_folder(self._path(method, n), command=self.folder.record.command, overwrite=self.folder.overwrite)

        def step(what: str, done: int, total: int) -> None:
            self.progress(f"{method} -{n}: {what}", done, total)

        scan = found if needs_scan(inputs.recipe) else None
        plan = plan_stage(inputs, own, scan, budget=parse_budget(str(n)), judge=judge, progress=step)
        write_atomically(own / "recipe.yaml", inputs.recipe.model_copy(update={"drop": str(n)}).to_yaml().encode())
        values: Mapping[str, Tensor] = {}
        student = student_of(inputs.view, plan, {}) if inputs.recipe.repair == inputs.recipe.replace == "none" else None
        if student is None:
            repaired = fit_stage(inputs, own, plan, progress=step)
            fitted = train_stage(inputs, own, repaired.plan, refits=repaired.values, progress=step)
            plan, student, values = repaired.plan, fitted.student, fitted.values
        key = stable_hash("point", evaluation_key(inputs, plan, values), [task.data_hash for task in self.tasks])
        return _Cut(method, n, own, key, plan, student, time.monotonic() - started)

    def _measure(self, cuts: Sequence[_Cut]) -> list[Point]:
        """The points of some cuts in one pass over text and one over each task; equal plain cuts are run once."""
        from shoal.evaluate.curve import Point

        if not cuts:
            return []
        started = time.monotonic()
        alike = {_identity(cut): cut.student for cut in cuts}
        measured = dict(zip(alike, self._figures(list(alike.values()), what=cuts[0].method), strict=True))
        each = (time.monotonic() - started) / len(cuts)
        points = []
        for cut in cuts:
            figures = measured[_identity(cut)]
            before, after = cut.plan.before, cut.plan.after
            point = Point(
                method=cut.method,
                n_net=cut.n_net,
                share=(before.parameters - after.parameters) / before.parameters,
                layers_out=cut.plan.removed_layers,
                size=after,
                chosen=cut.plan.method,
                plan=str((cut.folder / "plan.json").relative_to(self.folder.path)),
                seconds=round(cut.seconds + each, 3),
                **figures.fields,
            )
            point.save(cut.folder / POINT)
            cut.folder.finish("point", cut.key, seconds=point.seconds, files=[POINT])
            points.append(point)
        return points

    def _teacher(self, size: ModelSize) -> tuple[Point, tuple[int, ...], tuple[SweptTask, ...]]:
        """The model itself at 0 %, with the counts that belong to all points."""
        from shoal.decoder import TEACHER
        from shoal.evaluate.curve import Point

        path = self.folder / TEACHER_POINT
        samples = self.base.evaluation
        key = stable_hash(
            "teacher", self.base.model_key, samples.data_hash, [task.data_hash for task in self.tasks]
        )
        if not self.folder.is_done("teacher", key):
            started = time.monotonic()
            (figures,) = self._figures([TEACHER], what="teacher")
            seconds = time.monotonic() - started
            point = Point(
                method="teacher", n_net=0, share=0.0, layers_out=(), size=size.before, seconds=round(seconds, 3), **figures.fields
            )
            point.save(path)
            self.folder.finish("teacher", key, seconds=seconds, files=[TEACHER_POINT])
        return Point.load(path), _predicted(samples), self._swept_tasks()
