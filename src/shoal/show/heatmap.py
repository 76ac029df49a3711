"""The heat map of a scan: first layer of the span against number of layers, each row rescaled, the best span marked.

As in UIDL (arXiv 2403.17887, fig. 4): every row runs from its smallest to its largest value, so rows compare starts, not n.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from shoal.show.best_spans import best_span
from shoal.words.records import write_atomically
from shoal.words.types import SpanTable

FORMATS = ("png", "svg")
COLOURS = "viridis_r"
"""Even in lightness and safe for colour-blind readers; yellow marks what may go, as in the paper."""
GAMMA = 0.35
"""Exponent of the colours only: a span from layer 0 is so far from all others that it would wash out the rest of its row."""


def rescaled_rows(table: SpanTable) -> np.ndarray:
    """(L, L) cost of removing ``n`` layers from ``start``: row n - 1, column start, each row min-max rescaled to [0, 1].

    0 is the most redundant span of its length whatever the direction of the score; NaN where there is no span. A row whose
    values are all equal (n = L) is 0.
    """
    n_layers = table.n_layers
    cost = -table.values if table.higher_is_more_redundant else table.values
    rows = np.full((n_layers, n_layers), np.nan)
    for n in range(1, n_layers + 1):
        row = np.diagonal(cost, offset=n)
        if np.isnan(row).all():
            continue
        low, high = np.nanmin(row), np.nanmax(row)
        rows[n - 1, : len(row)] = (row - low) / (high - low) if high > low else row - low
    return rows


def heatmap(table: SpanTable) -> Any:
    """A matplotlib figure of one table.

    Raises:
        ValueError: matplotlib is not installed, or the table holds no value.
    """
    figure_class, power_norm, ticker = _matplotlib()
    rows = rescaled_rows(table)
    if np.isnan(rows).all():
        raise ValueError(f"table {table.name!r} holds no value: no sample had such tokens")
    n_layers = table.n_layers
    size = min(11.0, max(4.6, 2.6 + 0.17 * n_layers))
    figure = figure_class(figsize=(size + 1.0, size), layout="constrained")
    axes = figure.add_subplot()
    edges = np.arange(n_layers + 1)
    shade = power_norm(GAMMA, vmin=0.0, vmax=1.0)
    colours = axes.pcolormesh(edges - 0.5, edges + 0.5, rows, cmap=COLOURS, norm=shade, rasterized=True)
    _mark_best(axes, table, rows)
    axes.set_xlim(-0.5, n_layers - 0.5)
    axes.set_ylim(0.5, n_layers + 0.5)
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1, nbins=12))
    axes.set_xlabel("first layer of the span, l (0-based)")
    axes.set_ylabel("layers in the span, n")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    direction = "largest" if table.higher_is_more_redundant else "smallest"
    axes.set_title(f"{title_of(table)}\n", fontsize=12, loc="left")
    note = f"{table.n_samples} samples; {direction} value of a row is most redundant"
    axes.text(0, 1.012, note, transform=axes.transAxes, fontsize=8.5, color="0.35")
    axes.legend(loc="upper right", frameon=False, fontsize=8.5, handletextpad=0.3)
    bar = figure.colorbar(colours, ax=axes, shrink=0.6, pad=0.02, ticks=[0, 0.1, 0.3, 0.6, 1])
    bar.ax.set_yticklabels(["0  redundant", "0.1", "0.3", "0.6", "1  needed"], fontsize=8.5)
    bar.set_label("rescaled within each row", fontsize=8.5, labelpad=-20)
    bar.outline.set_visible(False)
    return figure


def _mark_best(axes: Any, table: SpanTable, rows: np.ndarray) -> None:
    """A dot on the most redundant span of each row, joined by a line."""
    best = [(best_span(table, n).start, n) for n, row in enumerate(rows, start=1) if not np.isnan(row).all()]
    starts, lengths = zip(*best, strict=True)
    axes.plot(starts, lengths, color="black", linewidth=0.8, alpha=0.6, zorder=2)
    dot = max(8.0, 46.0 - 0.6 * len(rows))
    label = "most redundant of its row"
    axes.scatter(starts, lengths, s=dot, color="white", edgecolor="black", linewidth=0.9, zorder=3, label=label)


def title_of(table: SpanTable) -> str:
    """Criterion, unit and tokens in words."""
    tokens = {"last": "last token", "rest": "all tokens but sinks", "every": "all tokens", "sink": "sink tokens"}
    return f"{table.criterion.replace('_', ' ')} ({table.unit}), {tokens.get(table.tokens, table.tokens)}"


def save_heatmap(table: SpanTable, path: Path) -> Path:
    """Write the picture as PNG or SVG, by the file's ending.

    Raises:
        ValueError: another ending, or matplotlib is missing.
    """
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    if kind not in FORMATS:
        raise ValueError(f"cannot draw {path.name!r}; use a name that ends in .{' or .'.join(FORMATS)}")
    _matplotlib()
    import matplotlib

    content = io.BytesIO()
    # no date and fixed ids: the same scan gives the same file
    metadata = {"Date": None} if kind == "svg" else None
    with matplotlib.rc_context({"svg.hashsalt": "shoal"}):
        heatmap(table).savefig(content, format=kind, dpi=160, bbox_inches="tight", metadata=metadata)
    write_atomically(path, content.getvalue())
    return path


def draws_pictures() -> bool:
    """Whether matplotlib, an extra, is there; it is loaded."""
    try:
        _matplotlib()
    except ValueError:
        return False
    return True


def _matplotlib() -> tuple[Any, Any, Any]:
    try:
        from matplotlib import ticker
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.colors import PowerNorm
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("pictures need matplotlib; install it with: pip install 'shoal[plot]'") from None

    def figure(**settings: Any) -> Any:
        made = Figure(**settings)
        FigureCanvasAgg(made)  # no window system, no global state
        return made

    return figure, PowerNorm, ticker
