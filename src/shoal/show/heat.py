"""The heat map of a scan as a value: first layer of the span against number of layers, each row rescaled.

As in UIDL (arXiv 2403.17887, fig. 4): every row runs from its smallest to its largest value, so rows compare starts, not n.
The page draws it with :mod:`shoal.show.svg_heat`, files with :mod:`shoal.show.chart_files`.
"""

from dataclasses import dataclass

import numpy as np

from shoal.show.plan_tables import best_span
from shoal.words.types import Span, SpanTable

GAMMA = 0.35
"""Exponent of the colours only: a span from layer 0 is so far from all others that it would wash out the rest of its row."""


@dataclass(frozen=True, eq=False)
class Heat:
    """Tables of one scan, the first of which is drawn; the page lets its reader choose another.

    Attributes:
        name: stem of the files.
        removed: spans that the plan took out; the page frames them.
    """

    tables: tuple[SpanTable, ...]
    removed: tuple[Span, ...] = ()
    name: str = "heatmap"

    def __post_init__(self) -> None:
        if not self.tables:
            raise ValueError("a heat map needs at least one table of the scan")

    @property
    def title(self) -> str:
        return title_of(self.tables[0])


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


def best_starts(table: SpanTable) -> list[int | None]:
    """First layer of the most redundant span of every length n = 1..L; None where no span of that length has a value."""
    found: list[int | None] = []
    for n in range(1, table.n_layers + 1):
        is_empty = np.isnan(np.diagonal(table.values, offset=n)).all()
        found.append(None if is_empty else best_span(table, n).start)
    return found


def title_of(table: SpanTable) -> str:
    """Criterion, unit and tokens in words."""
    tokens = {"last": "last token", "rest": "all tokens but sinks", "every": "all tokens", "sink": "sink tokens"}
    return f"{table.criterion.replace('_', ' ')} ({table.unit}), {tokens.get(table.tokens, table.tokens)}"
