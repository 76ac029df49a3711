"""What a choice costs: losses of the plain cut and of the repaired one, on text that nothing was chosen on."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

from choose_bench import Bench
from choose_cells import Cell
from choose_scores import scores
from choose_ways import chosen

RIDGE = 1e-2
"""Of the repair: cross-validation would take longer than everything else, and ranks sets alike."""


def measured(bench: Bench, cell: Cell) -> dict[str, Any]:
    if cell.way == "scores":
        return scores(bench, cell)
    if cell.way == "random":
        return at_random(bench, cell)
    found = chosen(bench, cell)  # empty where a way asks for too many sets
    return found and {**as_text(bench, found), **judged(bench, cell, found["units"])}


def as_text(bench: Bench, found: dict[str, Any]) -> dict[str, Any]:
    return {**found, "units": [str(unit) for unit in found["units"]]}


def judged(bench: Bench, cell: Cell, units: Sequence[Any]) -> dict[str, Any]:
    """Losses of a set, plain and repaired, and what it removes."""
    from shoal.edits.drop import drops_of
    from shoal.edits.student_of import student_of
    from shoal.engine.student import Student
    from shoal.fit.fit_config import FitConfig
    from shoal.fit.fit_plan import fit_plan
    from shoal.run.resource_amounts import computed_amounts
    from shoal.select.plan_of import plan_of

    key = " ".join(map(str, sorted(units)))
    if key in bench.repaired:
        return bench.repaired[key]
    inputs = bench.inputs
    amounts = computed_amounts(inputs.view, context=inputs.length)
    plan = plan_of(drops_of(units), bench.size, source=bench.model, source_hash="", amounts=amounts)
    started = time.process_time()
    fitted = fit_plan(
        inputs.view,
        plan,
        bench.fitting,
        repair=bench.options.repair,
        batch_size=inputs.batch_size,
        config=FitConfig(ridge=RIDGE),
    )
    seconds = time.process_time() - started
    repaired = student_of(inputs.view, fitted.plan, fitted.values)
    plain = Student(removed=plan.removed_units)
    (searched,) = bench.judge_searched.values([frozenset(units)])
    before, after = bench.judge.measure([plain, repaired])
    found = {
        "removed": plan.removed,
        "kl_searched": searched,
        "kl": before.kl,
        "kl_stderr": before.kl_stderr,
        "kl_repaired": after.kl,
        "kl_repaired_stderr": after.kl_stderr,
        "agreement_repaired": after.agreement,
        "repair_seconds": seconds,
        **({"tasks": tasks(bench, [plain, repaired])} if bench.options.task else {}),
    }
    bench.repaired[key] = found
    return found


def tasks(bench: Bench, students: Sequence[Any]) -> dict[str, list[float]]:
    """Accuracy of plain and repaired student on every task."""
    from shoal.evaluate.tasks.choice import score_task
    from shoal.evaluate.tasks.task_files import load_task
    from shoal.run.job import window_of

    found = {}
    for path in bench.options.task:
        task = load_task(path).head(bench.options.items)
        tokenizer, window = bench.inputs.opened.need_tokenizer(), window_of(bench.inputs.view.config)
        answers = score_task(bench.inputs.view, task, tokenizer=tokenizer, students=students, window=window)
        found[task.name] = [statistics.fmean(one.chosen == one.gold for one in each.counted.items) for each in answers]
    return found


def at_random(bench: Bench, cell: Cell) -> dict[str, Any]:
    """Mean over random sets: what a way to choose has to beat."""
    from shoal.select.search.search_contract import filled

    request = bench.request(cell, "greedy", "cosine/rest")
    draw, rows = random.Random(0), []
    for _ in range(bench.options.draws):
        order = draw.sample(list(request.free_units), len(request.free_units))
        units = filled(frozenset(), order, request.goal)
        rows.append({"units": [str(unit) for unit in sorted(units)], **judged(bench, cell, sorted(units))})
    means = {key: statistics.fmean(row[key] for row in rows) for key in ("kl_searched", "kl", "kl_repaired")}
    return {"sets": 0, "seconds": 0.0, "draws": rows, "removed": rows[0]["removed"], **means}
