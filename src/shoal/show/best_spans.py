"""The scan for people: per number of layers, the best span of each criterion with its value and standard error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from shoal.measure.scan import Scan
from shoal.words.types import Span, SpanTable

if TYPE_CHECKING:
    from rich.table import Table

PAPERS = ("cosine/every", "angular/last", "cosine/rest", "angular/rest", "relative_magnitude/rest")
"""The published pairs (LLM-Streamline, UIDL) and the same without sinks."""


def best_span(table: SpanTable, n: int) -> Span:
    """The most redundant span of ``n`` layers; the deepest of equals, as the selectors have it.

    Raises:
        ValueError: no span of that length, or no value for any.
    """
    if not 1 <= n <= table.n_layers:
        raise ValueError(f"n={n} needs 1..{table.n_layers} for this {table.n_layers}-layer model")
    values = np.diagonal(table.values, offset=n)[::-1]  # deepest first: arg-max and arg-min take the first of equals
    if np.isnan(values).all():
        raise ValueError(f"table {table.name!r} has no value for spans of {n} layers: no sample had such tokens")
    place = int(np.nanargmax(values) if table.higher_is_more_redundant else np.nanargmin(values))
    start = len(values) - 1 - place
    return Span(start, start + n)


def best_spans_table(scan: Scan, *, names: Sequence[str] = PAPERS, longest: int | None = None) -> Table:
    """A printable table: one row per number of layers n, one column per score.

    Args:
        names: tables to show.
        longest: last n; all but one layer if not given.
    """
    from rich.table import Table

    tables = [scan[name] for name in names]
    shown = Table(title=f"Most redundant span of n layers ({scan.n_layers} layers, {scan.provenance.n_samples} samples)")
    shown.add_column("n", justify="right")
    for table in tables:
        goal = "max" if table.higher_is_more_redundant else "min"
        shown.add_column(f"{table.name}\n[dim]{table.unit}, {goal}[/dim]", justify="right", no_wrap=True)
    for n in range(1, (longest or max(1, scan.n_layers - 1)) + 1):
        shown.add_row(str(n), *[_cell(table, n) for table in tables])
    shown.caption = "start..last (0-based, inclusive)  value ± standard error over samples"
    return shown


def _cell(table: SpanTable, n: int) -> str:
    if np.isnan(np.diagonal(table.values, offset=n)).all():
        return "-"
    span = best_span(table, n)
    stderr = float(table.stderr[span.start, span.stop])
    layers = f"{span.start}..{span.stop - 1}" if n > 1 else f"{span.start}"
    error = "" if np.isnan(stderr) else f" ±{stderr:.1g}"
    return f"[bold]{layers}[/bold]  {table[span]:.4g}{error}"
