"""How well scores of single units foretell what a unit costs, alone and in random sets."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace
from typing import Any

from choose_bench import Bench
from choose_cells import SCORES, Cell
from choose_tables import spearman
from choose_ways import table_of


def scores(bench: Bench, cell: Cell) -> dict[str, Any]:
    """Spearman correlation of scores of units with the growth of the KL alone, and in random sets of a quarter."""
    request = replace(bench.request(replace(cell, ratio=25), "greedy", "cosine/rest"), quotas=None)
    units, draw = request.free_units, random.Random(0)
    value = bench.value(units)
    (whole, *alone) = value.values([frozenset(), *(frozenset({unit}) for unit in units)])
    in_sets: dict[Any, list[float]] = {unit: [] for unit in units}
    for _ in range(bench.options.orders):
        order = draw.sample(list(units), len(units))
        off = frozenset(order[: max(1, len(units) // 4)])
        grown = value.values([off, *(off | {unit} for unit in units if unit not in off)])
        for unit, loss in zip((unit for unit in units if unit not in off), grown[1:], strict=True):
            in_sets[unit].append(loss - grown[0])
    truths = {"alone": [one - whole for one in alone], "in sets": [statistics.fmean(in_sets[unit]) for unit in units]}
    tables = {}
    for by in (*SCORES, *(["block_influence/rest", "cosine/rest"] if cell.units == "layers" else [])):
        if "/" in by:
            table = bench.tables[0][by]
            costs = [float(table.cost(_span(unit.index))) for unit in units]
        else:
            found = table_of(bench, by, request)
            if found is None:
                continue
            costs = [found[0].cost(unit) for unit in units]
        tables[by] = {truth: spearman(costs, values) for truth, values in truths.items()}
    return {"n_units": len(units), "correlation": tables}


def _span(layer: int) -> Any:
    from shoal.words.types import Span

    return Span(layer, layer + 1)
