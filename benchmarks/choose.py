"""Which units go: every selector on several models and ratios under one protocol, before and after the default repair.

    OMP_NUM_THREADS=1 python benchmarks/choose.py --model books-16l=MODEL:TEXT [--model ...] [--cells N] [--only WORD ...]

Resumable, cell by cell: a cell is one choice (model, ratio, units, way to choose) and is written to ``--out`` as soon as it is
measured; cells that stand there are skipped, ``--cells 1`` measures the next one and stops, ``--seconds N`` starts none after
that time, ``--only`` takes cells whose name has all these words. Of a model, a ratio and a kind of unit the most telling ways
come first, so that a run may be stopped anywhere. ``--tables`` prints the tables of the file as Markdown. ``--task FILE``
scores tasks (ctx, choices, gold).

- Equal parameters: a ratio becomes the number of layers that comes nearest; sublayers go up to the parameters of as many.
- Every way reads the same ``--tokens`` of the calibration slice; losses after the cut are KL to the teacher, per token, of the
  plain cut and after ``--repair`` (``auto``, the default's, with a fixed ridge) on ``evaluation``, on which nothing is chosen.
  A repair of a set is made once, whoever chose it and at whatever call. Layer 0 and the last layer stay.
- A search runs at most ``--evaluations`` sets; scores that need more are left out. Seconds are processor seconds of the choice
  alone, on one thread. Every search begins without values of another; a table of scores is made once for all ratios, and each
  way that reads it is charged for the whole of it.
- Where all sets can be run (``--most-sets``), the optimum by KL on the search text, and how far each way is from it.
- ``scores``: rank correlation of each score of single units with what a unit costs alone and on average over random sets.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from choose_tables import spearman, tables

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HERE = Path(__file__).parent
RATIOS = (12, 25, 40)
RIDGE = 1e-2
"""Of the repair: cross-validation would take longer than everything else, and ranks sets alike."""

SPANS = {
    "span cosine/rest": ("span", "cosine/rest"),
    "span angular/last": ("span", "angular/last"),
    "disjoint angular/rest": ("disjoint", "angular/rest"),
    "lowest block_influence/rest": ("lowest", "block_influence/rest"),
    "deepest": ("deepest", "cosine/rest"),
}
SCORES = (
    "relative_update", "update_norm", "taylor_unit", "taylor_weights", "weight_l2", "left_out_kl", "left_out_ce",
    "left_out_lost_cka", "windowed_kl", "shapley_kl",
)  # fmt: skip
WAYS = (
    "span cosine/rest", "greedy kl", "lowest block_influence/rest", "deepest", "lowest left_out_kl", "greedy-refit kl",
    "lowest taylor_weights", "surrogate kl", "random", "lowest weight_l2", "lowest left_out_lost_cka", "greedy ce",
    "exhaustive", "one-shot kl", "lowest relative_update", "lowest taylor_unit", "span angular/last", "disjoint angular/rest",
    "lowest windowed_kl", "evolution kl", "policy-gradient kl", "beam kl", "greedy js", "lowest update_norm",
    "lowest left_out_ce", "lowest shapley_kl",
)  # fmt: skip
"""The most telling ones first: the default's proposer, the best search, what costs nothing, and what repairs on its way."""
UNITS = ("layers", "sublayers")
SETTINGS = ("tokens", "judged", "fit_tokens", "length", "orders", "evaluations", "repair", "draws")


@dataclass(frozen=True)
class Cell:
    """One row of the tables."""

    model: str
    ratio: int
    units: str
    way: str

    @property
    def name(self) -> str:
        return f"{self.model} | {self.ratio} % | {self.units} | {self.way}"


def ways(units: str) -> list[str]:
    """Every way to choose such units; spans and the exhaustive search are of layers alone."""
    return [way for way in WAYS if units == "layers" or (way not in SPANS and way != "exhaustive")]


def cells(models: Sequence[str], options: argparse.Namespace) -> Iterator[Cell]:
    ratios = options.ratio or (25, 12, 40)
    for model in models:
        for units in options.units or UNITS:
            for ratio in ratios:
                yield from (Cell(model, ratio, units, way) for way in ways(units))
            yield Cell(model, 0, units, "scores")


class Bench:
    """A model with its texts; what is shared by its cells is measured when a cell first asks for it."""

    def __init__(self, model: str, text: str, options: argparse.Namespace, repaired: dict[str, dict[str, Any]]) -> None:
        self.options = options
        self.text = {"sources": [text] if text else [], "length": options.length}
        self.model = model
        self.repaired = repaired  # losses of sets that are known, by their units
        self.scored: dict[tuple[str, Any], tuple[dict[str, Any], float, int]] = {}

    @cached_property
    def inputs(self) -> Any:
        from shoal.engine.opening import Opening
        from shoal.recipes.recipe_file import load_recipe
        from shoal.run.job import open_inputs, window_of

        def opened(length: int | None) -> Any:
            text = {**self.text, "length": length}
            search = {"tokens": self.options.tokens, "evaluations": self.options.evaluations}
            recipe = load_recipe("default", {"model": self.model, "text": text, "search": search})
            return open_inputs(recipe, Opening(resident="all"))

        found = opened(None)
        window = window_of(found.view.config) or self.options.length
        return opened(min(window, self.options.length))

    @cached_property
    def searched(self) -> Any:
        samples = self.inputs.calibration
        return samples.take(max(1, min(samples.n_samples, self.options.tokens // samples.length)))

    @cached_property
    def judge(self) -> Any:
        """Of the evaluation slice."""
        from shoal.measure.oracle import Oracle

        samples = self.inputs.evaluation
        return Oracle(self.inputs.view, self.inputs.batches(samples.take(max(1, self.options.judged // samples.length))))

    @cached_property
    def judge_searched(self) -> Any:
        """Of the text that every way reads, apart from the ways themselves: what it measured is known to none of them."""
        from shoal.select.request import Request

        units = Request(n_layers=self.size.n_layers, n=1, units="sublayers").free_units
        layers = Request(n_layers=self.size.n_layers, n=1).free_units
        return self.value(sorted({*units, *layers}))

    @cached_property
    def fitting(self) -> Any:
        samples = self.inputs.fitting
        return samples.take(max(20, min(samples.n_samples, self.options.fit_tokens // samples.length)))

    @cached_property
    def size(self) -> Any:
        from shoal.select.model_size import model_size

        return model_size(self.inputs.view)

    @cached_property
    def tables(self) -> tuple[dict[str, Any], float]:
        """Scores of spans by one pass over the search text, and its seconds."""
        from shoal.engine.passes import run_pass
        from shoal.measure.gram import GramObserver

        batches, started = self.inputs.batches(self.searched), time.process_time()
        gram = GramObserver(self.inputs.view.n_layers)
        run_pass(self.inputs.view, batches, observers=[gram])
        return {table.name: table for table in gram.tables()}, time.process_time() - started

    def value(self, units: Sequence[Any], metric: str = "kl", limit: int | None = None) -> Any:
        from shoal.measure.removals import removal_function

        return removal_function(self.inputs.view, self.inputs.batches(self.searched), units, metric=metric, limit=limit)

    def n_layers_out(self, ratio: int) -> int:
        from fractions import Fraction

        from shoal.select.budget import Budget, resolve
        from shoal.select.model_size import NOTHING

        free = range(1, self.size.n_layers - 1)
        budget = Budget("share", Fraction(ratio, 100), f"{ratio}%")
        return resolve(budget, self.size, put_back=NOTHING, removable=free, n_most=len(free)).n

    def request(self, cell: Cell, selector: str, by: str) -> Any:
        from shoal.select.request import Request
        from shoal.select.search.quotas import Quota, Quotas

        n_layers, n = self.size.n_layers, self.n_layers_out(cell.ratio)
        request = Request(
            n_layers=n_layers, n=n, selector=selector, by=by, protected=frozenset({0, n_layers - 1}), n_candidates=1,
            units=cell.units,
        )  # fmt: skip
        if cell.units == "layers":
            return request
        held = {unit: float(self.size.of(unit)) for unit in request.free_units}
        wanted = n * sum(held.values()) / (n_layers - 2)
        quotas = Quotas((Quota(wanted, held, "all parameters", float(self.size.total)),))
        return replace(request, n=quotas.most(request.free_units), quotas=quotas)

    # -- ways to choose ------------------------------------------------------------------------------------------------

    def chosen(self, cell: Cell) -> dict[str, Any]:
        """Units that go, sets run and seconds."""
        from shoal.run.searching import refitted_sets_of

        if cell.way == "exhaustive":
            return self.exhaustive(cell)
        if cell.way in SPANS:
            selector, by = SPANS[cell.way]
            tables, seconds = self.tables
            return self.proposed(
                self.request(cell, selector, by), tables=tables, seconds=seconds if selector != "deepest" else 0
            )
        selector, _, by = cell.way.partition(" ")
        if selector == "lowest":
            return self.by_score(cell, by)
        request = self.request(cell, selector, "cosine/rest")
        if selector == "greedy-refit":
            with tempfile.TemporaryDirectory() as folder:
                return self.proposed(request, value=refitted_sets_of(self.inputs, request, folder=Path(folder)))
        return self.proposed(request, value=self.value(request.free_units, by, self.options.evaluations))

    def proposed(self, request: Any, *, value: Any = None, seconds: float = 0.0, **evidence: Any) -> dict[str, Any]:
        from shoal.select.request import Evidence
        from shoal.select.table import selector_named

        started = time.process_time()
        best = next(selector_named(request.selector).propose(Evidence(value=value, **evidence), request))
        seconds += time.process_time() - started
        return {"units": sorted(best.units), "sets": 0 if value is None else value.n_evaluations, "seconds": seconds}

    def by_score(self, cell: Cell, by: str) -> dict[str, Any]:
        request = self.request(cell, "lowest", by)
        found = self.table_of(by, request)
        if found is None:
            return {}
        table, seconds, n_sets = found
        return {**self.proposed(request, unit_tables={by: table}, seconds=seconds), "sets": n_sets}

    def table_of(self, by: str, request: Any) -> tuple[Any, float, int] | None:
        """Scores of units with their seconds and sets; one reading gives all that it can. None: too many sets."""
        from shoal.measure.unit_scores import score_with_table

        entry = score_with_table(by)
        if entry.n_sets(len(request.free_units)) > self.options.evaluations:
            return None
        key = (request.units, by if entry.of_values is not None else entry.score)
        if by not in self.scored.get(key, ({},))[0]:
            n_sets, batches, started = 0, self.inputs.batches(self.searched), time.process_time()
            if entry.of_values is not None:
                value = self.value(request.free_units, entry.metric)
                found, n_sets = [entry.of_values(value)], value.n_evaluations
            else:
                found = entry.score(self.inputs.view, batches, request.free_units)
            self.scored[key] = ({one.criterion: one for one in found}, time.process_time() - started, n_sets)
        tables, seconds, n_sets = self.scored[key]
        return tables[by], seconds, n_sets

    def exhaustive(self, cell: Cell) -> dict[str, Any]:
        """The set of lowest KL on the search text, where all sets are few enough to be run; of layers alone."""
        request = self.request(cell, "greedy", "cosine/rest")
        units = request.free_units
        if cell.units != "layers" or math.comb(len(units), request.n) > self.options.most_sets:
            return {}
        value, started = self.value(units), time.process_time()
        sets = [frozenset(one) for one in itertools.combinations(units, request.n)]
        losses = dict(zip(sets, value.values(sets), strict=True))
        best = min(losses, key=losses.__getitem__)
        ranked = sorted(losses.values())
        return {
            "units": sorted(best), "sets": len(sets), "seconds": time.process_time() - started, "losses": ranked,
        }  # fmt: skip

    # -- what a choice costs -------------------------------------------------------------------------------------------

    def measured(self, cell: Cell) -> dict[str, Any]:
        if cell.way == "scores":
            return self.scores(cell)
        if cell.way == "random":
            return self.random(cell)
        found = self.chosen(cell)  # empty where a way asks for too many sets
        return found and {**self.as_text(found), **self.judged(cell, found["units"])}

    def as_text(self, found: dict[str, Any]) -> dict[str, Any]:
        return {**found, "units": [str(unit) for unit in found["units"]]}

    def judged(self, cell: Cell, units: Sequence[Any]) -> dict[str, Any]:
        """Losses of a set, plain and repaired, and what it removes."""
        from shoal.edits.drop import drops_of
        from shoal.edits.student_of import student_of
        from shoal.engine.student import Student
        from shoal.fit.fit_config import FitConfig
        from shoal.fit.fit_plan import fit_plan
        from shoal.run.resource_amounts import computed_amounts
        from shoal.select.plan_of import plan_of

        key = " ".join(map(str, sorted(units)))
        if key in self.repaired:
            return self.repaired[key]
        inputs = self.inputs
        amounts = computed_amounts(inputs.view, context=inputs.length)
        plan = plan_of(drops_of(units), self.size, source=self.model, source_hash="", amounts=amounts)
        started = time.process_time()
        fitted = fit_plan(
            inputs.view,
            plan,
            self.fitting,
            repair=self.options.repair,
            batch_size=inputs.batch_size,
            config=FitConfig(ridge=RIDGE),
        )
        seconds = time.process_time() - started
        repaired = student_of(inputs.view, fitted.plan, fitted.values)
        plain = Student(removed=plan.removed_units)
        (searched,) = self.judge_searched.values([frozenset(units)])
        before, after = self.judge.measure([plain, repaired])
        found = {
            "removed": plan.removed,
            "kl_searched": searched,
            "kl": before.kl,
            "kl_stderr": before.kl_stderr,
            "kl_repaired": after.kl,
            "kl_repaired_stderr": after.kl_stderr,
            "agreement_repaired": after.agreement,
            "repair_seconds": seconds,
            **({"tasks": self.tasks([plain, repaired])} if self.options.task else {}),
        }
        self.repaired[key] = found
        return found

    def tasks(self, students: Sequence[Any]) -> dict[str, list[float]]:
        """Accuracy of plain and repaired student on every task."""
        from shoal.evaluate.tasks.choice import score_task
        from shoal.evaluate.tasks.task_files import load_task
        from shoal.run.job import window_of

        found = {}
        for path in self.options.task:
            task = load_task(path).head(self.options.items)
            tokenizer, window = self.inputs.opened.need_tokenizer(), window_of(self.inputs.view.config)
            answers = score_task(self.inputs.view, task, tokenizer=tokenizer, students=students, window=window)
            found[task.name] = [statistics.fmean(one.chosen == one.gold for one in each.counted.items) for each in answers]
        return found

    def random(self, cell: Cell) -> dict[str, Any]:
        """Mean over random sets: what a way to choose has to beat."""
        from shoal.select.search.search_contract import filled

        request = self.request(cell, "greedy", "cosine/rest")
        draw, rows = random.Random(0), []
        for _ in range(self.options.draws):
            order = draw.sample(list(request.free_units), len(request.free_units))
            units = filled(frozenset(), order, request.goal)
            rows.append({"units": [str(unit) for unit in sorted(units)], **self.judged(cell, sorted(units))})
        means = {key: statistics.fmean(row[key] for row in rows) for key in ("kl_searched", "kl", "kl_repaired")}
        return {"sets": 0, "seconds": 0.0, "draws": rows, "removed": rows[0]["removed"], **means}

    def scores(self, cell: Cell) -> dict[str, Any]:
        """Spearman correlation of scores of units with the growth of the KL alone, and in random sets of a quarter."""
        request = replace(self.request(replace(cell, ratio=25), "greedy", "cosine/rest"), quotas=None)
        units, draw = request.free_units, random.Random(0)
        value = self.value(units)
        (whole, *alone) = value.values([frozenset(), *(frozenset({unit}) for unit in units)])
        in_sets: dict[Any, list[float]] = {unit: [] for unit in units}
        for _ in range(self.options.orders):
            order = draw.sample(list(units), len(units))
            off = frozenset(order[: max(1, len(units) // 4)])
            grown = value.values([off, *(off | {unit} for unit in units if unit not in off)])
            for unit, loss in zip((unit for unit in units if unit not in off), grown[1:], strict=True):
                in_sets[unit].append(loss - grown[0])
        truths = {"alone": [one - whole for one in alone], "in sets": [statistics.fmean(in_sets[unit]) for unit in units]}
        tables = {}
        for by in (*SCORES, *(["block_influence/rest", "cosine/rest"] if cell.units == "layers" else [])):
            if "/" in by:
                table = self.tables[0][by]
                costs = [float(table.cost(_span(unit.index))) for unit in units]
            else:
                found = self.table_of(by, request)
                if found is None:
                    continue
                costs = [found[0].cost(unit) for unit in units]
            tables[by] = {truth: spearman(costs, values) for truth, values in truths.items()}
        return {"n_units": len(units), "correlation": tables}


def _span(layer: int) -> Any:
    from shoal.words.types import Span

    return Span(layer, layer + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], metavar="NAME=MODEL[:TEXT]")
    parser.add_argument("--tokens", type=int, default=2048, help="that every way to choose reads")
    parser.add_argument("--judged", type=int, default=4096, help="of the evaluation text")
    parser.add_argument("--fit-tokens", type=int, default=8192, help="of the repair")
    parser.add_argument("--repair", default="auto", help="of every set: auto, refit")
    parser.add_argument("--draws", type=int, default=5, help="random sets of a group")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--orders", type=int, default=8, help="random sets of the correlations")
    parser.add_argument("--evaluations", type=int, default=400, help="most sets of one search or score")
    parser.add_argument("--most-sets", type=int, default=1100, help="run all sets where there are at most so many")
    parser.add_argument("--task", action="append", default=[], type=Path)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--cells", type=int, default=math.inf)
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no cell after so many")
    parser.add_argument("--ratio", action="append", type=int, choices=RATIOS, help="these alone")
    parser.add_argument("--units", action="append", choices=UNITS, help="these alone")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "choose.json")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"cells": {}}
    if options.tables:
        print("\n".join(tables(results)))
        return
    given = dict(one.split("=", 1) for one in options.model)
    settings = {key: getattr(options, key) for key in SETTINGS}
    for name in given:
        known = results.get("settings", {}).get(name, settings)
        if known != settings:
            parser.error(f"cells of {name} stand that were measured with {known}; give the same, or another --out")
    run(options, results, given, settings)


def run(options: argparse.Namespace, results: dict[str, Any], given: dict[str, str], settings: dict[str, Any]) -> None:
    """Every cell that is asked for and not there yet."""
    from shoal.words.records import write_atomically

    benches = {
        name: Bench(where.partition(":")[0], where.partition(":")[2], options, sets_of(results, name))
        for name, where in given.items()
    }
    n_done, began = 0, time.monotonic()
    for cell in cells(list(benches), options):
        if cell.name in results["cells"] or not all(word in cell.name for word in options.only):
            continue
        if n_done >= options.cells or time.monotonic() - began > options.seconds:
            break
        started = time.monotonic()
        results["cells"][cell.name] = benches[cell.model].measured(cell)
        results.setdefault("settings", {})[cell.model] = settings
        options.out.parent.mkdir(exist_ok=True)
        write_atomically(options.out, (json.dumps(results, indent=1) + "\n").encode())
        n_done += 1
        print(f"{cell.name}: {time.monotonic() - started:.1f} s", flush=True)


def sets_of(results: dict[str, Any], model: str) -> dict[str, dict[str, Any]]:
    """Losses of the sets of a model that stand in the file, by their units."""
    of_choice = {"units", "sets", "seconds", "losses"}
    rows = [
        row for name, one in results["cells"].items() if name.startswith(f"{model} | ") for row in (one, *one.get("draws", ()))
    ]
    return {
        " ".join(row["units"]): {key: value for key, value in row.items() if key not in of_choice}
        for row in rows
        if "units" in row
    }


if __name__ == "__main__":
    main()
