"""Charts and heat maps as files for papers, SVG and PNG, through matplotlib: the same values as in the page, on white.

matplotlib is an extra (``plot``): without it nothing is written, and the list of files is empty. Files hold no date and fixed
ids, so that the same values give the same bytes. Nothing uses a window system or matplotlib's global state.
"""

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shoal.show.chart import Chart, Point, Series
from shoal.show.colour import SERIES
from shoal.show.heat import GAMMA, Heat, best_starts, rescaled_rows
from shoal.show.report.run_data import Drawing
from shoal.words.records import write_atomically

FORMATS = ("svg", "png")
SHAPES = ("o", "s", "^", "D", "v", "|")  # The order is that of chart.MARKERS.
LINES = ("-", "--", "-.", ":")
MOST_COLUMNS = 3  # A figure has at most so many columns of panels.


def can_draw() -> bool:
    """Whether matplotlib is installed. Asking imports what a drawing needs, so its memory shows in the process."""
    try:
        import matplotlib.backends.backend_agg  # noqa: F401
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def save_figures(charts: Iterable[Drawing], folder: Path) -> list[Path]:
    """Write every chart by itself, in every format, under its name."""
    return [path for chart in charts for path in save_panels([chart], folder, chart.name)]


def save_panels(charts: Sequence[Drawing], folder: Path, stem: str) -> list[Path]:
    """Write charts as the panels of one picture, in every format.

    Args:
        stem: name of the files without their ending.
    """
    if not charts or not can_draw():
        return []
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n_columns = min(MOST_COLUMNS, len(charts))
    n_rows = -(-len(charts) // n_columns)
    width, height = (max(sides) for sides in zip(*map(_size, charts), strict=True))
    figure = Figure(figsize=(n_columns * width, n_rows * height), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes in grid.flat[len(charts) :]:
        axes.set_visible(False)
    for axes, chart in zip(grid.flat, charts, strict=False):
        _draw(figure, axes, chart)
    written = []
    for kind in FORMATS:
        content = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "shoal"}):
            figure.savefig(content, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
        written.append(Path(folder) / f"{stem}.{kind}")
        write_atomically(written[-1], content.getvalue())
    return written


def _size(chart: Drawing) -> tuple[float, float]:
    """Inches of one panel."""
    if isinstance(chart, Heat):
        side = min(11.0, max(4.6, 2.6 + 0.17 * chart.tables[0].n_layers))
        return side + 1.0, side
    return 5.2, 1.1 + 0.42 * len(chart.rows) if chart.rows else 3.3


def _draw(figure: Any, axes: Any, chart: Drawing) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8.5)
    axes.set_title(chart.title, fontsize=10, loc="left")
    if isinstance(chart, Heat):
        _heat(figure, axes, chart)
        return
    _xy(axes, chart)
    if len(chart.series) > 1:
        axes.legend(fontsize=8.5, frameon=False)


def _xy(axes: Any, chart: Chart) -> None:
    from matplotlib.ticker import MaxNLocator

    for band in chart.bands:
        axes.axvspan(band.start, band.stop, color="0.9", zorder=0)
        axes.text(band.start, 0.01, band.label, transform=axes.get_xaxis_transform(), fontsize=7.5, color="0.3")
    for index, one in enumerate(chart.series):
        shift = 0.22 * (index - (len(chart.series) - 1) / 2) if chart.rows else 0.0
        _errorbar(axes, one, chart.drawn(one), shift=shift, is_row=bool(chart.rows))
    for rule in chart.rules:
        is_x = rule.axis == "x"
        draw, place = (axes.axvline, (rule.value, 1.0)) if is_x else (axes.axhline, (1.0, rule.value))
        draw(rule.value, color="0.4", linewidth=0.9, linestyle=":")
        frame = axes.get_xaxis_transform() if is_x else axes.get_yaxis_transform()
        ends = {"transform": frame, "ha": "right", "va": "top" if is_x else "bottom"}
        axes.text(*place, rule.label, fontsize=7.5, color="0.3", **ends)
    if chart.log_y:
        axes.set_yscale("log")
    if chart.rows:
        axes.set_yticks(range(len(chart.rows)), chart.rows)
        axes.set_ylim(len(chart.rows) - 0.5, -0.5)
    elif chart.whole_x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(chart.x_label, fontsize=9)
    axes.set_ylabel(chart.y_label, fontsize=9)


def _errorbar(axes: Any, one: Series, points: Sequence[Point], *, shift: float, is_row: bool) -> None:
    values = [p.x if is_row else p.y for p in points]
    arms = [[_reach(p, v, side) for p, v in zip(points, values, strict=True)] for side in ("low", "high")]
    bars = {"xerr" if is_row else "yerr": arms} if any(map(any, arms)) else {}
    axes.errorbar(
        [p.x for p in points], [p.y + shift for p in points], **bars, label=one.name, color=SERIES[one.style % len(SERIES)],
        linestyle=LINES[one.style % len(LINES)] if one.is_line else "none", marker=SHAPES[one.style % len(SHAPES)],
        markersize=4.5, linewidth=1.3, elinewidth=1.0,
    )  # fmt: skip


def _reach(point: Point, value: float, side: str) -> float:
    """Length of one arm of an interval, 0 where there is none."""
    end = getattr(point, side)
    return 0.0 if end is None or not math.isfinite(end) else max(0.0, abs(value - end))


def _heat(figure: Any, axes: Any, heat: Heat) -> None:
    """The first table: colours by row, and a dot on the most redundant span of each row."""
    from matplotlib.colors import PowerNorm
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

    table, edges = heat.tables[0], np.arange(heat.tables[0].n_layers + 1)
    colours = axes.pcolormesh(
        edges - 0.5,
        edges + 0.5,
        rescaled_rows(table),
        cmap="cividis_r",
        norm=PowerNorm(GAMMA, vmin=0.0, vmax=1.0),
        rasterized=True,
    )
    best = [(start, n) for n, start in enumerate(best_starts(table), start=1) if start is not None]
    starts, lengths = zip(*best, strict=True) if best else ((), ())
    axes.plot(starts, lengths, color="black", linewidth=0.8, alpha=0.6, zorder=2)
    dot = max(8.0, 46.0 - 0.6 * table.n_layers)
    label = "most redundant of its row"
    axes.scatter(starts, lengths, s=dot, color="white", edgecolor="black", linewidth=0.9, zorder=3, label=label)
    for span in heat.removed:
        axes.add_patch(Rectangle((span.start - 0.5, span.n - 0.5), 1, 1, fill=False, edgecolor="#d0006f", linewidth=2))
    axes.set(xlim=(-0.5, table.n_layers - 0.5), ylim=(0.5, table.n_layers + 0.5), aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=12))
    axes.set_xlabel("first layer of the span, l (0-based)", fontsize=9)
    axes.set_ylabel("layers in the span, n", fontsize=9)
    direction = "largest" if table.higher_is_more_redundant else "smallest"
    note = f"{table.n_samples} samples; the {direction} value of a row is the most redundant"
    axes.set_title(heat.title, fontsize=10, loc="left", pad=16)
    axes.text(0, 1.01, note, transform=axes.transAxes, fontsize=8, color="0.35")
    axes.legend(loc="upper right", frameon=False, fontsize=8.5, handletextpad=0.3)
    bar = figure.colorbar(colours, ax=axes, shrink=0.6, pad=0.02, ticks=[0, 0.1, 0.3, 0.6, 1])
    bar.ax.set_yticklabels(["0  redundant", "0.1", "0.3", "0.6", "1  needed"], fontsize=8.5)
    bar.set_label("rescaled within each row", fontsize=8.5, labelpad=-20)
    bar.outline.set_visible(False)
