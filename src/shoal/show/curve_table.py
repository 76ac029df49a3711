"""A sweep over ratios for people: one table, and its cliffs in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from shoal.evaluate.curve.ratio_curve import Cliff, RatioCurve, RatioPoint, RatioSweep, curve_of
from shoal.words.structure import runs_said

if TYPE_CHECKING:
    from rich.table import Table


def sweep_table(sweep: RatioSweep) -> Table:
    """The rows of :func:`sweep_rows` for the terminal, one block per method."""
    from rich.table import Table

    data = f"{sweep.provenance.data}, {sum(sweep.n_tokens):,} tokens"
    table = Table(title=f"Quality against the removed share on {data}")
    for column in sweep_columns(sweep):
        table.add_column(column.replace(": ", "\n"), justify="left" if column in ("method", "layers out") else "right")
    teacher, *rows = sweep_rows(sweep)
    table.add_row(*teacher)
    chance = [f"{100 * task.chance:.1f} % by guessing" if task.chance else "" for task in sweep.tasks]
    if any(chance):
        table.add_row("", "", "", "", "", *chance, style="dim")
    for method in sweep.recipes:
        table.add_section()
        for row in rows:
            if row[0] == method:
                table.add_row(*row)
    return table


def sweep_columns(sweep: RatioSweep) -> list[str]:
    """What the cells of a row are."""
    tasks = [f"{task.task}: accuracy, kept" for task in sweep.tasks]
    return ["method", "layers out", "removed", "KL (nats/token)", "perplexity", *tasks]


def sweep_rows(sweep: RatioSweep) -> list[list[str]]:
    """One row per point, the teacher first; tasks with the accuracy that is kept and its interval."""
    curves = {
        (method, task.task): curve_of(sweep, method=method, of=task.task) for method in sweep.recipes for task in sweep.tasks
    }
    rows = [[*_fixed(sweep.teacher), *[_accuracy(sweep.teacher, task.task) for task in sweep.tasks]]]
    for method in sweep.recipes:
        for place, point in enumerate(sweep.of_method(method)[1:], start=1):
            cells = [f"{_accuracy(point, task.task)}, {_kept(curves[method, task.task], place)}" for task in sweep.tasks]
            rows.append([*_fixed(point), *cells])
    return rows


def cliff_lines(sweep: RatioSweep) -> list[str]:
    """Every cliff as a sentence; measures without one in one sentence per method."""
    lines = []
    for method in sweep.recipes:
        own = [one for one in sweep.cliffs if one.method == method]
        lines += [_cliff(one) for one in own if one.found]
        reasons = dict.fromkeys(one.why_not for one in own if not one.found)
        for reason in reasons:
            of = ", ".join(one.of for one in own if one.why_not == reason)
            lines.append(f"{method}: no cliff in {of} ({reason})")
    return lines


def _cliff(one: Cliff) -> str:
    assert None not in (one.last, one.first, one.low, one.high), "a cliff that was found has a place"
    place = f"between {one.last_n} and {one.first_n} layers ({100 * (one.last or 0):.1f} and {100 * (one.first or 0):.1f} %)"
    interval = f"{100 * one.level:g} %: {100 * (one.low or 0):.1f} to {100 * (one.high or 0):.1f} %"
    return f"{one.method}: {one.of} has its cliff {place}; {interval} of all parameters"


def _fixed(point: RatioPoint) -> list[str]:
    quality = point.quality
    layers = runs_said(point.layers_out) if point.layers_out else "-"
    stderr = "" if quality.kl_stderr != quality.kl_stderr or not point.n_net else f" ± {quality.kl_stderr:.2g}"
    return [point.method, layers, f"{100 * point.share:.1f} %", f"{quality.kl:.4g}{stderr}", f"{quality.perplexity:.4g}"]


def _accuracy(point: RatioPoint, task: str) -> str:
    right = point.right[task]
    return f"{100 * sum(right) / len(right):.1f} %"


def _kept(curve: RatioCurve, place: int) -> str:
    one = curve.retained(place)
    if not math.isfinite(one.value):
        return "-"
    return f"{100 * one.value:.0f} % ({100 * one.low:.0f} to {100 * one.high:.0f})"
