"""The heat map in the page: every span of every score, with its value where the reader points, taps or steps with the keys.

The drawing holds one rectangle per span in the colours of the first table; the values of all tables stand beside it as JSON,
and the page's script only looks them up. Rows are rescaled as in :mod:`shoal.show.heatmap`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from shoal.show.best_spans import best_span
from shoal.show.colour import cividis
from shoal.show.heatmap import GAMMA, rescaled_rows, title_of
from shoal.show.html import Html, data_block, tag
from shoal.words.types import Span, SpanTable

SIZE, MARGIN = 420, 40  # of the drawing, and of its left and lower edge
LEVELS = 64
CODES = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
MOST_CELLS = 40_000
"""Of all tables together, so that the page stays below 2 MB also for models of a hundred layers."""


def heat(tables: Sequence[SpanTable], removed: Sequence[Span] = ()) -> Html:
    """The heat map of several tables of one scan, the first one shown.

    Args:
        removed: spans that the plan took out; they are framed.
    Raises:
        ValueError: no table.
    """
    if not tables:
        raise ValueError("a heat map needs at least one table of the scan")
    shown = list(tables)[: max(1, MOST_CELLS // _n_cells(tables[0].n_layers))]
    first, n_layers = shown[0], shown[0].n_layers
    cell = (SIZE - MARGIN) / n_layers
    content = [_cells(first, cell), _frames(removed, n_layers, cell), _dots(first, cell), _axes(n_layers, cell), _scale_bar()]
    cursor = tag("rect", class_="cursor", width=round(cell, 2), height=round(cell, 2), visibility="hidden")
    drawing = tag(
        "svg", content, cursor, viewBox=f"0 0 {SIZE} {SIZE}", class_="heat", tabindex=0, role="application",
        aria_label=f"Heat map: {title_of(first)}. Arrow keys move from span to span.",
    )  # fmt: skip
    options = [tag("option", title_of(table), value=index) for index, table in enumerate(shown)]
    choice = tag("label", "Score ", tag("select", options, class_="which"), class_="choice", hidden=len(shown) == 1)
    data = data_block({"layers": n_layers, "cell": cell, "colours": colours(), "tables": [_packed(one) for one in shown]})
    readout = tag("p", class_="readout", role="status", aria_live="polite")
    caption = tag("figcaption", title_of(first))
    return tag("figure", caption, choice, drawing, readout, data, class_="heatmap", id="figure-heatmap")


def colours() -> list[str]:
    """The colour of every level: bright where little changes, dark where much does."""
    return [cividis(1 - level / (LEVELS - 1)) for level in range(LEVELS)]


def levels(table: SpanTable) -> list[str]:
    """Per row n = 1..L the level of every start as one character; ``-`` where the span has no value."""
    rows = rescaled_rows(table)
    return ["".join(_code(value) for value in row[: table.n_layers - n]) for n, row in enumerate(rows)]


def place(start: int, n: int, *, n_layers: int, cell: float) -> tuple[float, float]:
    """Upper left corner of the cell of a span; n = 1 is the lowest row."""
    return round(MARGIN + start * cell, 2), round((n_layers - n) * cell, 2)


def _code(value: float) -> str:
    return "-" if math.isnan(value) else CODES[round(value**GAMMA * (LEVELS - 1))]


def _n_cells(n_layers: int) -> int:
    return n_layers * (n_layers + 1) // 2


def _packed(table: SpanTable) -> dict[str, Any]:
    """A table as JSON: values and standard errors in four digits, row by row, and the best start of each row."""
    n_layers = table.n_layers
    best = [_best(table, n) for n in range(1, n_layers + 1)]
    values, errors = (
        [[_short(x) for x in np.diagonal(array, offset=n)] for n in range(1, n_layers + 1)]
        for array in (table.values, table.stderr)
    )
    return {
        "title": title_of(table), "unit": table.unit, "n_samples": table.n_samples, "values": values, "errors": errors,
        "levels": levels(table), "best": best,
    }  # fmt: skip


def _best(table: SpanTable, n: int) -> int | None:
    return None if np.isnan(np.diagonal(table.values, offset=n)).all() else best_span(table, n).start


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _cells(table: SpanTable, cell: float) -> Html:
    """One rectangle per span, row by row from n = 1: the order that the script counts in."""
    shades, n_layers = colours(), table.n_layers
    side = round(cell + 0.3, 2)  # a little overlap hides the seams
    made = []
    for n, row in enumerate(levels(table), start=1):
        for start, code in enumerate(row):
            x, y = place(start, n, n_layers=n_layers, cell=cell)
            fill = "none" if code == "-" else shades[CODES.index(code)]
            made.append(Html(f'<rect x="{x:g}" y="{y:g}" width="{side:g}" height="{side:g}" fill="{fill}"/>'))
    return tag("g", made, class_="cells")


def _frames(removed: Sequence[Span], n_layers: int, cell: float) -> Html:
    made = []
    for span in removed:
        x, y = place(span.start, span.n, n_layers=n_layers, cell=cell)
        made.append(tag("rect", x=x, y=y, width=round(cell, 2), height=round(cell, 2), class_="frame"))
    return tag("g", made)


def _dots(table: SpanTable, cell: float) -> Html:
    """A ring on the most redundant span of each row."""
    radius = round(min(5.0, max(1.2, 0.2 * cell)), 2)
    made = []
    for n in range(1, table.n_layers + 1):
        start = _best(table, n)
        if start is not None and n < table.n_layers:  # the last row has one span only
            x, y = place(start, n, n_layers=table.n_layers, cell=cell)
            made.append(tag("circle", cx=round(x + cell / 2, 2), cy=round(y + cell / 2, 2), r=radius))
    return tag("g", made, class_="best")


def _axes(n_layers: int, cell: float) -> Html:
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100) if n_layers / s <= 17)
    low = SIZE - MARGIN
    starts = [
        tag("text", start, x=round(MARGIN + (start + 0.5) * cell, 2), y=low + 15, text_anchor="middle")
        for start in range(0, n_layers, step)
    ]
    lengths = [
        tag("text", n, x=MARGIN - 6, y=round((n_layers - n + 0.5) * cell + 4, 2), text_anchor="end")
        for n in range(1, n_layers + 1)
        if n == 1 or n % step == 0
    ]
    middle = low / 2
    turn = f"rotate(-90 11 {middle:g})"
    names = [
        tag("text", "first layer of the span", x=(MARGIN + SIZE) / 2, y=SIZE - 5, text_anchor="middle", class_="axis"),
        tag("text", "layers in the span, n", x=11, y=middle, text_anchor="middle", class_="axis", transform=turn),
    ]  # fmt: skip
    return tag("g", starts, lengths, names)


def _scale_bar() -> Html:
    """The legend, in the corner that holds no span."""
    x, y, width, height = SIZE - 172.0, 30.0, 160.0, 10.0
    steps = 16
    bar = [
        Html(
            f'<rect x="{x + i * width / steps:g}" y="{y:g}" width="{width / steps + 0.3:g}" height="{height:g}" '
            f'fill="{cividis(1 - i / (steps - 1))}"/>'
        )
        for i in range(steps)
    ]
    words = [
        tag("text", "changes little", x=x, y=y - 7),
        tag("text", "much", x=x + width, y=y - 7, text_anchor="end"),
        tag("text", "within its row", x=x + width, y=y + 24, text_anchor="end"),
        tag("circle", cx=x + 6, cy=y + 42, r=4.5, class_="ring"),
        tag("text", "least of its row", x=x + 18, y=y + 46),
        tag("rect", x=x + 1, y=y + 56, width=10, height=10, class_="frame"),
        tag("text", "removed", x=x + 18, y=y + 65),
    ]
    return tag("g", bar, words, class_="legend-box")
