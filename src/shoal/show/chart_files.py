"""Charts as files for papers, SVG and PNG, through matplotlib: the same description as in the page, on white."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from shoal.show.chart import Chart, Dots, Point, Series
from shoal.show.colour import SERIES
from shoal.words.records import write_atomically

FORMATS = ("svg", "png")
SHAPES = ("o", "s", "^", "D", "v", "|")  # in the order of chart.MARKERS
LINES = ("-", "--", "-.", ":")


def save_figures(charts: Iterable[Chart | Dots], folder: Path) -> list[Path]:
    """Write every chart in every format. Without matplotlib (extra ``plot``) nothing is written and the list is empty."""
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return []
    written = []
    for chart in charts:
        figure = Figure(figsize=(5.2, 3.3 if isinstance(chart, Chart) else 1.1 + 0.42 * len(chart.rows)), layout="constrained")
        FigureCanvasAgg(figure)  # no window system, no global state
        axes = figure.add_subplot()
        if isinstance(chart, Chart):
            _xy(axes, chart)
        else:
            _dots(axes, chart)
        axes.set_title(chart.title, fontsize=10, loc="left")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.tick_params(labelsize=8.5)
        if len(chart.series) > 1:
            axes.legend(fontsize=8.5, frameon=False)
        for kind in FORMATS:
            content = io.BytesIO()
            # no date, fixed ids: the same values give the same file
            with matplotlib.rc_context({"svg.hashsalt": "shoal"}):
                figure.savefig(content, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
            written.append(folder / f"{chart.name}.{kind}")
            write_atomically(written[-1], content.getvalue())
    return written


def _xy(axes: Any, chart: Chart) -> None:
    from matplotlib.ticker import MaxNLocator

    for band in chart.bands:
        axes.axvspan(band.start, band.stop, color="0.9", zorder=0, label=None)
    for one in chart.series:
        points = chart.drawn(one)
        style = LINES[one.style % len(LINES)] if one.is_line else "none"
        _errorbar(axes, one, points, [p.y for p in points], vertical=True, linestyle=style)
    for rule in chart.rules:
        draw, place = (axes.axvline, (rule.value, 1.0)) if rule.axis == "x" else (axes.axhline, (1.0, rule.value))
        draw(rule.value, color="0.4", linewidth=0.9, linestyle=":")
        frame = axes.get_xaxis_transform() if rule.axis == "x" else axes.get_yaxis_transform()
        axes.text(
            *place,
            rule.label,
            transform=frame,
            fontsize=7.5,
            color="0.3",
            ha="right",
            va="top" if rule.axis == "x" else "bottom",
        )
    if chart.log_y:
        axes.set_yscale("log")
    if chart.whole_x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(chart.x_label, fontsize=9)
    axes.set_ylabel(chart.y_label, fontsize=9)


def _dots(axes: Any, chart: Dots) -> None:
    for index, one in enumerate(chart.series):
        points = chart.drawn(one)
        shift = 0.22 * (index - (len(chart.series) - 1) / 2)
        _errorbar(axes, one, points, [p.y + shift for p in points], vertical=False, linestyle="none")
    for rule in chart.rules:
        axes.axvline(rule.value, color="0.4", linewidth=0.9, linestyle=":")
    axes.set_yticks(range(len(chart.rows)), chart.rows)
    axes.set_ylim(len(chart.rows) - 0.5, -0.5)
    if chart.log_x:
        axes.set_xscale("log")
    axes.set_xlabel(chart.x_label, fontsize=9)


def _errorbar(axes: Any, one: Series, points: Sequence[Point], ys: Sequence[float], *, vertical: bool, linestyle: str) -> None:
    values = [p.y if vertical else p.x for p in points]
    below, above = ([_reach(p, v, side) for p, v in zip(points, values, strict=True)] for side in ("low", "high"))
    has_bars = any(value > 0 for value in (*below, *above))
    bars = {"yerr" if vertical else "xerr": [below, above]} if has_bars else {}
    axes.errorbar(
        [p.x for p in points], ys, **bars, label=one.name, color=SERIES[one.style % len(SERIES)], linestyle=linestyle,
        marker=SHAPES[one.style % len(SHAPES)], markersize=4.5, linewidth=1.3, elinewidth=1.0,
    )  # fmt: skip


def _reach(point: Point, value: float, side: str) -> float:
    """Length of one arm of an interval, 0 where there is none."""
    end = getattr(point, side)
    return 0.0 if end is None or not math.isfinite(end) else max(0.0, abs(value - end))
