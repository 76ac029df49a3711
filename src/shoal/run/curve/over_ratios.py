"""Methods compared over the removed share: one scan, one pass for the candidates of all tournaments, one for all plain cuts.

``DIR/scan.json`` is shared. Every point has a run folder of its own, ``DIR/points/METHOD-NN`` (plan, values, figures), so that
a run goes on from its last point, can be widened by methods and points, and each of its cuts can be applied.
``DIR/curve.json`` is written anew whenever points were added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.edits.plan import Candidate
from shoal.engine.opening import Opening
from shoal.engine.view import DecoderView
from shoal.engine.workers import join
from shoal.evaluate.curve.cliff import cliff_of
from shoal.evaluate.curve.largest_cut import largest_cut, refuse_nothing_right
from shoal.evaluate.curve.ratio_curve import ON_TEXT, Cliff, RatioCurves, RatioPoint, RetainedShare, curve_of, is_at_chance
from shoal.evaluate.tasks.task_files import Task
from shoal.fit.fit_config import LINEAR_ERROR
from shoal.measure.oracle import Oracle
from shoal.measure.scan import Scan
from shoal.recipes.reads import needs_scan
from shoal.recipes.recipe import Recipe
from shoal.run.asked import asked_of
from shoal.run.asking import oracle, request_of, why_not
from shoal.run.begin import open_folder
from shoal.run.curve.methods import check_methods, is_plain
from shoal.run.curve.points import PointBench, PointCut, make_cut, point_path, with_recipe
from shoal.run.folder import RunFolder
from shoal.run.job import SHARE_BESIDE_STUDENT, Inputs, open_inputs
from shoal.run.run_files import CURVES
from shoal.run.searching import runs_the_model, searched_sets
from shoal.run.stage import State, run_stage
from shoal.run.stages.scan import SCAN
from shoal.run.tournament import untrained
from shoal.select.budget import parse_budget
from shoal.select.budget_range import check_range, counts_in
from shoal.select.model_size import ModelSize, model_size
from shoal.select.request import Evidence
from shoal.select.shortlist import check_reach, shortlist
from shoal.words.records import nearest
from shoal.words.types import Unit


@dataclass(frozen=True)
class Keeping:
    """A wanted share of the teacher's quality (0..1), and the measure it is told of."""

    share: float
    of: str


def measure_curves(
    methods: Mapping[str, Recipe],
    out: str | Path,
    *,
    drop: str = "0..50%",
    n_points: int | None = None,
    tasks: Sequence[Task] = (),
    keep: Keeping | None = None,
    opening: Opening = Opening(),
    overwrite: bool = False,
    command: str = "",
) -> RatioCurves:
    """Choose, repair and measure every cut of a range with every method.

    Args:
        methods: recipes by name, of one model, text and seed; their budgets are not read.
        out: folder of the curves: new, empty, or of an earlier run, which is continued or widened.
        drop: the range, as on the command line; ``n_points``: how many cuts of it.
        tasks: scored under every point and the teacher.
        keep: asks for the largest cut of every method that keeps so much.
        opening, overwrite, command: as for :func:`~shoal.run.compress.compress`.
    Raises:
        ValueError: one line for anything the user can mend.
    """
    if join().size > 1:
        raise ValueError("curves are measured in one process; start it without a launcher")
    check_methods(methods, Path(out))
    check_range(drop)
    check_measures(tasks, keep)
    folder = open_folder(Path(out), command=command, overwrite=overwrite)
    first = next(iter(methods.values()))
    observers = tuple(dict.fromkeys(name for recipe in methods.values() for name in recipe.observers))
    shared = first.model_copy(update={"observers": observers})  # One scan serves all methods.
    with folder.unless_refused():
        base = open_inputs(shared, opening, share=SHARE_BESIDE_STUDENT)
        folder.asked = asked_of(shared, base.opened, tasks=[task.name for task in tasks])
        size = model_size(base.view)
        counts = counts_in(drop, size, protected=base.recipe.protected(size.n_layers), n_points=n_points)
        check_counts(methods, counts, base.view, size)
    refuse_to_lose_points(folder, {(name, n) for name in methods for n in counts})
    found = run_stage(SCAN, State(base), folder).scan if any(map(needs_scan, methods.values())) else None
    bench = PointBench(base, tasks)
    work = _Work({name: with_recipe(base, recipe) for name, recipe in methods.items()}, counts, folder, found, bench, command)
    curves = _without_points(methods, counts, drop=drop, bench=bench, folder=folder, size=size, command=command)
    if keep is not None and keep.of in curves.teacher.right:
        refuse_nothing_right(keep.of, any(curves.teacher.right[keep.of]))
    for points in work.run(work.warm_judge(size)):
        curves = curves.model_copy(update={"points": _in_order(points, list(methods))})
        curves.save(folder / CURVES)
    curves = conclude(curves, keep=keep)
    curves.save(folder / CURVES)
    return curves


def conclude(curves: RatioCurves, *, keep: Keeping | None = None) -> RatioCurves:
    """With cliffs, and the largest cuts that keep what is wanted; nothing is measured."""
    at_chance = {of for of in curves.measures if is_at_chance(curves, of)}
    cliffs = [
        Cliff(method=method, of=of, found=False, why_not="the teacher is at chance")
        if of in at_chance
        else cliff_of(curve_of(curves, method=method, of=of), method=method)
        for method in curves.recipes
        for of in curves.measures
    ]
    kept: list[RetainedShare] = []
    if keep is not None:
        kept = [
            largest_cut(curve_of(curves, method=method, of=keep.of), method=method, keep=keep.share).model_copy(
                update={"at_chance": keep.of in at_chance}
            )
            for method in curves.recipes
        ]
    return curves.model_copy(update={"cliffs": tuple(cliffs), "kept": tuple(kept)})


# -- refused before the long part ----------------------------------------------------------------------------------------


def check_measures(tasks: Sequence[Task], keep: Keeping | None) -> None:
    """Raises ValueError: two measures of one name, a wanted one that is not measured, answers that would have to be written."""
    names = [*ON_TEXT, *(task.name for task in tasks)]
    if len(set(names)) < len(names):
        raise ValueError(f"the measures need names of their own, got {', '.join(names)}; rename a task file")
    written = [task.name for task in tasks if task.form == "generation"]
    if written:
        raise ValueError(
            f"task {written[0]!r} has written answers; a curve scores choices and last words, "
            "so give `shoal eval` the checkpoint of a point for these"
        )
    if keep is not None and keep.of not in names:
        raise ValueError(f"--of {keep.of!r} is not measured here; {nearest(keep.of, names)} (tasks: give --task)")


def check_counts(methods: Mapping[str, Recipe], counts: Sequence[int], view: DecoderView, size: ModelSize) -> None:
    """Every method can remove every number of layers, as far as that shows before anything is scored.

    Raises:
        ValueError: one cannot; names it.
    """
    for name, recipe in methods.items():
        for n in (counts[0], counts[-1]):
            try:
                check_reach(parse_budget(str(n)), size, request_of(recipe, view))
            except ValueError as reason:
                raise ValueError(f"method {name!r}: {reason}; ask for a smaller range, or leave this method out") from None


def refuse_to_lose_points(folder: RunFolder, asked: set[tuple[str, int]]) -> None:
    """Raises ValueError: ``curve.json`` stands with points that are not asked for, and ``overwrite`` was not given."""
    path = folder / CURVES
    if folder.overwrite or not path.exists():
        return
    lost = [one for one in RatioCurves.load(path).points if (one.method, one.n_net) not in asked]
    if lost:
        raise ValueError(
            f"{path} holds {len(lost)} points that this run leaves out, the first is {lost[0].method} with {lost[0].n_net} "
            "layers fewer; ask for them too, add --overwrite, or give another --out"
        )


# -- the work ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Work:
    """All cuts of all methods; ``found``: the scan they share."""

    methods: Mapping[str, Inputs]
    counts: Sequence[int]
    folder: RunFolder
    found: Scan | None
    bench: PointBench
    command: str

    def warm_judge(self, size: ModelSize) -> Oracle:
        """The guards' oracle, after one pass over every candidate of every plan that is still to be made.

        Searches, rounds and repairs measure while they choose, so their candidates are left to their own plan.
        """
        base = self.bench.inputs
        judge = oracle(base, base.selection, what="guard")
        wanted: dict[frozenset[Unit], Candidate] = {}
        for method, inputs in self.methods.items():
            recipe = inputs.recipe
            request = request_of(recipe, base.view)
            measures_alone = runs_the_model(recipe) or recipe.rounds > 1 or recipe.by == LINEAR_ERROR
            if measures_alone or recipe.guard == 1 or not is_plain(recipe):
                continue
            for n in self.counts:
                if (point_path(self.folder, method, n) / "plan.json").exists():
                    continue
                value = searched_sets(inputs, request, folder=self.folder)
                candidates = shortlist(
                    parse_budget(str(n)),
                    size,
                    request,
                    Evidence(self.found.tables if self.found else {}, lambda structure: why_not(base, structure), value),
                ).candidates
                wanted.update((one.units, one) for one in candidates if len(candidates) > 1)
        judge.measure([untrained(one) for one in wanted.values()])
        return judge

    def run(self, judge: Oracle) -> Iterator[list[RatioPoint]]:
        """All points so far, each time some were added: the plain ones together, then each repaired one."""
        points: list[RatioPoint] = []
        plain = [method for method, inputs in self.methods.items() if is_plain(inputs.recipe)]
        cuts = [self._cut(method, n, judge) for method in plain for n in self.counts]
        points += self._points(cuts, what="plain cuts")
        yield points
        for method in self.methods:
            for n in self.counts if method not in plain else ():
                points += self._points([self._cut(method, n, judge)], what=self._label(method, n))
                yield points

    def _points(self, cuts: Sequence[PointCut], *, what: str) -> list[RatioPoint]:
        done = [cut.done() for cut in cuts]
        new = [cut for cut, one in zip(cuts, done, strict=True) if one is None]
        return [one for one in done if one is not None] + self.bench.finish(new, inside=self.folder, what=what)

    def _cut(self, method: str, n: int, judge: Oracle) -> PointCut:
        return make_cut(
            self.methods[method],
            self.folder,
            method=method,
            n_net=n,
            found=self.found,
            judge=judge,
            bench=self.bench,
            command=self.command,
            label=self._label(method, n),
        )

    def _label(self, method: str, n: int) -> str:
        """``cut 3 of 12 (refit, 4 layers)``: plain cuts come first, as they are run."""
        order = sorted(self.methods, key=lambda name: not is_plain(self.methods[name].recipe))
        place = order.index(method) * len(self.counts) + list(self.counts).index(n) + 1
        return f"cut {place} of {len(order) * len(self.counts)} ({method}, {n} layers)"


def _without_points(
    methods: Mapping[str, Recipe],
    counts: Sequence[int],
    *,
    drop: str,
    bench: PointBench,
    folder: RunFolder,
    size: ModelSize,
    command: str,
) -> RatioCurves:
    """The record with what is the same for all points, and the teacher."""
    teacher = bench.teacher(folder, size.before)
    recipes: dict[str, dict[str, Any]] = {
        name: recipe.model_dump(mode="json", exclude={"drop", "parameters"}) for name, recipe in methods.items()
    }
    return RatioCurves(
        drop=drop,
        counts=tuple(counts),
        recipes=recipes,
        before=size.before,
        n_tokens=teacher.n_tokens,
        tasks=teacher.tasks,
        teacher=teacher.point,
        provenance=bench.inputs.provenance(bench.inputs.evaluation),
        command=command,
        seed=bench.inputs.recipe.seed,
    )


def _in_order(points: Sequence[RatioPoint], methods: Sequence[str]) -> tuple[RatioPoint, ...]:
    return tuple(sorted(points, key=lambda one: (methods.index(one.method), one.n_net)))
