"""Quality against the removed share: a curve per measure, its cliffs, and the largest cut that keeps what was asked for."""

from __future__ import annotations

from shoal.evaluate.curve.largest_cut import sentence
from shoal.evaluate.curve.ratio_curve import RatioSweep, curve_of
from shoal.evaluate.intervals import LEVEL
from shoal.show.chart import Band, Chart, Point, Rule, Series
from shoal.show.curve_picture import LABELS, shown
from shoal.show.curve_table import cliff_lines, sweep_columns, sweep_rows
from shoal.show.html import Column, Html, number_columns, table, tag
from shoal.show.report.run_data import RunData, Section


def ratios(data: RunData) -> Section | None:
    found = data.sweep
    if found is None or not found.points:
        return None
    source = found.provenance
    intro = (
        f"Every cut is made and measured on {source.data}, {source.n_samples:,} samples, {sum(found.n_tokens):,} predicted "
        f"tokens. Intervals: {100 * LEVEL:g} %, {found.n_resamples:,} resamples of samples or items, the same for all cuts. "
        "Shaded: where a curve breaks."
    )
    lines = [*(sentence(one) for one in found.kept), *cliff_lines(found)]
    words: list[Html] = [tag("p", intro)]
    if lines:
        words.append(tag("ul", [tag("li", f"{line}.") for line in lines]))
    charts = [_chart(found, of) for of in found.measures]
    names, *others = sweep_columns(found)
    columns = [Column(names), Column(others[0]), *number_columns(*others[1:])]
    return Section(
        "ratios",
        "Quality against the removed share",
        "sweep.json",
        (*words, *charts, table("Every cut", columns, sweep_rows(found))),
    )


def _chart(found: RatioSweep, of: str) -> Chart:
    series, bands = [], []
    for style, method in enumerate(found.recipes):
        curve = curve_of(found, method=method, of=of)
        points = []
        for place, share in enumerate(curve.share_P):
            loss = curve.loss(place)
            y, low, high = (float(one) for one in shown([loss.value, loss.low, loss.high], of))
            x = 100 * float(share)
            tip = f"{method}, {x:.1f} % removed: {y:.4g} ({min(low, high):.4g} to {max(low, high):.4g})"
            points.append(Point(x, y, low=min(low, high), high=max(low, high), tip=tip))
        series.append(Series(method, tuple(points), style=style))
        for cliff in found.cliffs:
            if (cliff.method, cliff.of) == (method, of) and cliff.last is not None and cliff.first is not None:
                bands.append(Band(100 * cliff.last, 100 * cliff.first, f"cliff of {method}"))
    chance = [Rule("y", 100 * one.chance, "guessing") for one in found.tasks if one.task == of and one.chance]
    title = LABELS.get(of, f"{of}: accuracy, %")
    name = f"sweep-{of}" if of in LABELS else f"sweep-task-{found.measures.index(of)}"
    heading = title[:1].upper() + title[1:] if of in LABELS else title  # a task keeps the name of its file
    return Chart(
        name, heading, "parameters removed, %", title.split(" (")[0], tuple(series), rules=tuple(chance),
        bands=tuple(bands), log_y=of == "perplexity", whole_x=False,
    )  # fmt: skip
