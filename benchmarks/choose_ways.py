"""Ways to choose: units that go, sets that were run, and seconds of the choice alone."""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from pathlib import Path
from typing import Any

from choose_bench import Bench
from choose_cells import SPANS, Cell

BY_ANSWERS = "_task"
"""The end of the name of a score that asks a task in place of text."""


def chosen(bench: Bench, cell: Cell) -> dict[str, Any]:
    """Units that go, sets run and seconds."""
    from shoal.run.searching import refitted_sets_of

    if cell.way == "exhaustive":
        return exhaustive(bench, cell)
    if cell.way in SPANS:
        selector, by = SPANS[cell.way]
        tables, seconds = bench.tables
        return proposed(
            bench, bench.request(cell, selector, by), tables=tables, seconds=seconds if selector != "deepest" else 0
        )
    selector, _, by = cell.way.partition(" ")
    if selector == "lowest":
        return by_score(bench, cell, by)
    request = bench.request(cell, selector, "cosine/rest")
    if selector == "greedy-refit":
        with tempfile.TemporaryDirectory() as folder:
            return proposed(bench, request, value=refitted_sets_of(bench.inputs, request, folder=Path(folder)))
    return proposed(bench, request, value=bench.value(request.free_units, by, bench.options.evaluations))


def proposed(bench: Bench, request: Any, *, value: Any = None, seconds: float = 0.0, **evidence: Any) -> dict[str, Any]:
    from shoal.select.request import Evidence
    from shoal.select.table import SELECTORS

    started = time.process_time()
    best = next(SELECTORS.named(request.selector).propose(Evidence(value=value, **evidence), request))
    seconds += time.process_time() - started
    return {"units": sorted(best.units), "sets": 0 if value is None else value.n_evaluations, "seconds": seconds}


def by_score(bench: Bench, cell: Cell, by: str) -> dict[str, Any]:
    request = bench.request(cell, "lowest", by)
    found = table_of(bench, by, request)
    if found is None:
        return {}
    table, seconds, n_sets = found
    found = {**proposed(bench, request, unit_tables={by: table}, seconds=seconds), "sets": n_sets}
    if by.endswith(BY_ANSWERS):
        found["asked"] = f"the last {bench.options.search_items} items of {bench.options.search_task.name}"
    return found


def table_of(bench: Bench, by: str, request: Any) -> tuple[Any, float, int] | None:
    """Scores of units with their seconds and sets; one reading gives all that it can. None: too many sets."""
    from shoal.measure.unit_scores import score_with_table

    entry = score_with_table(by)
    if entry.n_sets(len(request.free_units)) > bench.options.evaluations:
        return None
    key = (request.units, by if entry.of_values is not None else entry.score)
    if by not in bench.scored.get(key, ({},))[0]:
        n_sets, batches, started = 0, bench.inputs.batches(bench.searched), time.process_time()
        if entry.of_values is not None:
            by_answers = by.endswith(BY_ANSWERS)
            value = bench.value_by_answers(request.free_units) if by_answers else bench.value(request.free_units, entry.metric)
            found, n_sets = [entry.of_values(value)], value.n_evaluations
        else:
            found = entry.score(bench.inputs.view, batches, request.free_units)
        bench.scored[key] = ({one.criterion: one for one in found}, time.process_time() - started, n_sets)
    tables, seconds, n_sets = bench.scored[key]
    return tables[by], seconds, n_sets


def exhaustive(bench: Bench, cell: Cell) -> dict[str, Any]:
    """The set of lowest KL on the search text, where all sets are few enough to be run; of layers alone."""
    request = bench.request(cell, "greedy", "cosine/rest")
    units = request.free_units
    if cell.units != "layers" or math.comb(len(units), request.n) > bench.options.most_sets:
        return {}
    value, started = bench.value(units), time.process_time()
    sets = [frozenset(one) for one in itertools.combinations(units, request.n)]
    losses = dict(zip(sets, value.values(sets), strict=True))
    best = min(losses, key=losses.__getitem__)
    ranked = sorted(losses.values())
    return {
        "units": sorted(best), "sets": len(sets), "seconds": time.process_time() - started, "losses": ranked,
    }  # fmt: skip
