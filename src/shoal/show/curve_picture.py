"""The curves of a sweep over ratios: loss against removed share, one panel per measure, with intervals and cliffs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shoal.evaluate.curve.ratio_curve import ON_TEXT, RatioSweep, curve_of
from shoal.evaluate.intervals import LEVEL
from shoal.words.records import write_atomically

FORMATS = ("png", "svg")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito: told apart by colour-blind readers; markers differ as well."""
MARKERS = "osD^vPX"
LABELS = {"perplexity": "perplexity", "kl": "KL to the teacher (nats per token)"}


def draw_curves(sweep: RatioSweep, folder: Path) -> list[str]:
    """``sweep.png`` and ``sweep.svg`` in the folder; nothing where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401  (an extra)
    except ImportError:
        return []
    return [save_curves(sweep, Path(folder) / f"sweep.{kind}").name for kind in FORMATS]


def save_curves(sweep: RatioSweep, path: Path) -> Path:
    """Write the picture as PNG or SVG, by the file's ending.

    Raises:
        ValueError: another ending.
    """
    import matplotlib

    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    if kind not in FORMATS:
        raise ValueError(f"cannot draw {path.name!r}; use a name that ends in .{' or .'.join(FORMATS)}")
    content = io.BytesIO()
    # no date and fixed ids: the same sweep gives the same file
    with matplotlib.rc_context({"svg.hashsalt": "shoal"}):
        curves(sweep).savefig(content, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
    write_atomically(path, content.getvalue())
    return path


def curves(sweep: RatioSweep) -> Any:
    """A matplotlib figure: perplexity and KL, then every task's accuracy."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measures = sweep.measures
    n_columns = min(3, len(measures))
    n_rows = -(-len(measures) // n_columns)
    figure = Figure(figsize=(4.4 * n_columns, 3.6 * n_rows), layout="constrained")
    FigureCanvasAgg(figure)  # no window system, no global state
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes, of in zip(grid.flat, measures, strict=False):
        _panel(axes, sweep, of)
    for axes in grid.flat[len(measures) :]:
        axes.set_visible(False)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)), frameon=False, fontsize=9)
    return figure


def _panel(axes: Any, sweep: RatioSweep, of: str) -> None:
    for index, method in enumerate(sweep.recipes):
        curve = curve_of(sweep, method=method, of=of)
        tail = (1 - LEVEL) / 2
        low_P, high_P = np.nanquantile(curve.loss_RP, [tail, 1 - tail], axis=0)
        x_P, colour = 100 * curve.share_P, COLOURS[index % len(COLOURS)]
        marker = MARKERS[index % len(MARKERS)]
        axes.fill_between(x_P, shown(low_P, of), shown(high_P, of), color=colour, alpha=0.15, linewidth=0)
        axes.plot(x_P, shown(curve.loss_P, of), color=colour, marker=marker, markersize=4, linewidth=1.4, label=method)
        for cliff in sweep.cliffs:
            if (cliff.method, cliff.of) == (method, of) and cliff.last is not None and cliff.first is not None:
                axes.axvspan(100 * cliff.last, 100 * cliff.first, color=colour, alpha=0.12, hatch="//", linewidth=0)
    for task in sweep.tasks:
        if task.task == of and task.chance:
            axes.axhline(100 * task.chance, color="0.4", linewidth=0.8, linestyle=":")
            axes.annotate("guessing", (0, 100 * task.chance), fontsize=8, color="0.4", va="bottom")
    if of == "perplexity":
        axes.set_yscale("log")
    axes.set_title(LABELS.get(of, f"{of}: accuracy (%)"), fontsize=10, loc="left")
    axes.set_xlabel("parameters removed (%)", fontsize=9)
    axes.tick_params(labelsize=8.5)
    axes.grid(color="0.9", linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def shown(loss_P: Sequence[float] | np.ndarray, of: str) -> np.ndarray:
    """What people read: perplexity instead of its logarithm, accuracy in percent instead of errors."""
    loss_P = np.asarray(loss_P)
    if of == "perplexity":
        return np.exp(np.minimum(loss_P, 700.0))
    return loss_P if of in ON_TEXT else 100 * (1 - loss_P)
