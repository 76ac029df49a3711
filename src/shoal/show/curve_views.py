"""Curves over the removed share for people: one table, its cliffs in words, and a chart per measure."""

import math
from typing import Any

from shoal.evaluate.curve.ratio_curve import ON_TEXT, Cliff, RatioCurve, RatioCurves, RatioPoint, curve_of
from shoal.show.chart import Band, Chart, Point, Rule, Series
from shoal.show.table import Column, Table, numbers
from shoal.words.numbers import number, percent, saturating_exp, with_error
from shoal.words.structure import runs_said


def curves_table(curves: RatioCurves) -> Table:
    """One row per point, the teacher first, one group per method; tasks with the accuracy that is kept and its interval."""
    of_tasks = {
        (method, task.task): curve_of(curves, method=method, of=task.task) for method in curves.recipes for task in curves.tasks
    }
    rows = [(*_fixed(curves.teacher), *[f"{_accuracy(curves.teacher, task.task)} %" for task in curves.tasks])]
    breaks = []
    for method in curves.recipes:
        breaks.append(len(rows))
        for place, point in enumerate(curves.of_method(method)[1:], start=1):
            kept = [f"{_accuracy(point, one.task)} %, {_kept(of_tasks[method, one.task], place)}" for one in curves.tasks]
            rows.append((*_fixed(point), *kept))
    return Table(
        f"Quality against the removed share on {curves.provenance.data}, {sum(curves.n_tokens):,} tokens",
        (Column("method, layers out"), *numbers("removed", "KL, nats per token", "perplexity"),
         *numbers(*(f"{task.task}: accuracy, kept" for task in curves.tasks))),
        tuple(rows),
        notes=tuple(f"{one.task}: {percent(one.chance)} % by guessing" for one in curves.tasks if one.chance),
        breaks=tuple(breaks),
    )  # fmt: skip


def cliff_lines(curves: RatioCurves) -> list[str]:
    """Every cliff as a sentence."""
    return [_cliff(one) for one in curves.cliffs if one.found]


def smooth_lines(curves: RatioCurves) -> list[str]:
    """What has no cliff, in one sentence per reason."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for one in curves.cliffs:
        if not one.found:
            reasons.setdefault(one.why_not, {}).setdefault(one.of, []).append(one.method)
    return [
        f"no cliff ({reason}): " + "; ".join(f"{of} of {', '.join(methods)}" for of, methods in where.items())
        for reason, where in reasons.items()
    ]


def _cliff(one: Cliff) -> str:
    assert None not in (one.last, one.first, one.low, one.high), "a cliff that was found has a place"
    place = f"between {one.last_n} and {one.first_n} layers ({percent(one.last or 0)} and {percent(one.first or 0)} %)"
    interval = f"{100 * one.level:g} %: {percent(one.low or 0)} to {percent(one.high or 0)} %"
    return f"{one.method}: {one.of} has its cliff {place}; {interval} of all parameters"


def _fixed(point: RatioPoint) -> tuple[Any, ...]:
    layers = f", {runs_said(point.layers_out)}" if point.layers_out else ""
    kl = with_error(point.quality.kl, point.quality.kl_stderr if point.n_net else None)
    return f"{point.method}{layers}", f"{percent(point.share)} %", kl, point.quality.perplexity


def _accuracy(point: RatioPoint, task: str) -> str:
    return percent(sum(point.right[task]) / len(point.right[task]))


def _kept(curve: RatioCurve, place: int) -> str:
    one = curve.retained(place)
    if not math.isfinite(one.value):
        return "-"
    return f"{100 * one.value:.0f} % ({100 * one.low:.0f}..{100 * one.high:.0f})"


# -- charts --------------------------------------------------------------------------------------------------------------

TITLES = {"perplexity": "Perplexity", "kl": "KL to the teacher (nats per token)"}


def curves_charts(curves: RatioCurves) -> list[Chart]:
    """A chart per measure: a line per method with its interval, where it breaks, and what guessing gives."""
    return [_chart(curves, of) for of in curves.measures]


def _chart(curves: RatioCurves, of: str) -> Chart:
    series, bands = [], []
    for style, method in enumerate(curves.recipes):
        curve = curve_of(curves, method=method, of=of)
        points = tuple(_point(curve, place, of, method) for place in range(len(curve.n_P)))
        series.append(Series(method, points, style=style))
        for cliff in curves.cliffs:
            if (cliff.method, cliff.of) == (method, of) and cliff.last is not None and cliff.first is not None:
                bands.append(Band(100 * cliff.last, 100 * cliff.first, f"cliff of {method}"))
    chance = [Rule("y", 100 * one.chance, "guessing") for one in curves.tasks if one.task == of and one.chance]
    return Chart(
        f"curve-{of}" if of in TITLES else f"curve-task-{curves.measures.index(of)}",
        TITLES.get(of, f"{of}: accuracy, %"),
        "parameters removed, %",
        {"perplexity": "perplexity", "kl": "KL to the teacher"}.get(of, "accuracy, %"),
        tuple(series), rules=tuple(chance), bands=tuple(bands), log_y=of == "perplexity", whole_x=False,
    )  # fmt: skip


def _point(curve: RatioCurve, place: int, of: str, method: str) -> Point:
    """What people read instead of a loss: perplexity instead of its logarithm, accuracy in percent instead of errors."""

    def read(loss: float) -> float:
        return saturating_exp(loss) if of == "perplexity" else loss if of in ON_TEXT else 100 * (1 - loss)

    x, loss = 100 * float(curve.share_P[place]), curve.loss(place)
    y, (low, high) = read(loss.value), sorted((read(loss.low), read(loss.high)))
    tip = f"{method}, {x:.1f} % removed: {number(y)} ({number(low)} to {number(high)})"
    return Point(x, y, low=low, high=high, tip=tip)
