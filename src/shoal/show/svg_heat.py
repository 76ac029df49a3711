"""The heat map in the page: every span of every score, with its value where the reader points, taps or steps with the keys.

The drawing holds one rectangle per span in the colours of the first table. The values of all tables stand beside it as JSON,
and the page's script looks them up.
"""

import math
from typing import Any

import numpy as np

from shoal.show.colour import cividis
from shoal.show.heat import GAMMA, Heat, best_starts, rescaled_rows, title_of
from shoal.show.html import Html, data_block, tag
from shoal.words.types import SpanTable

SIZE, MARGIN = 420, 40  # These are the sides of the drawing, and the room of its left and lower axes.
LEVELS = 64
CODES = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
MOST_CELLS = 40_000
"""Of all tables together, so that the page stays below 2 MB also for models of a hundred layers."""


def draw_heat(heat: Heat) -> Html:
    """The heat map as a figure, with a choice between its tables."""
    first, n_layers = heat.tables[0], heat.tables[0].n_layers
    shown = heat.tables[: max(1, MOST_CELLS // (n_layers * (n_layers + 1) // 2))]
    grid = Grid(n_layers)
    side = round(grid.cell, 2)
    frames = [tag("rect", **grid.corner(one.start, one.n), width=side, height=side, class_="frame") for one in heat.removed]
    content = [_cells(first, grid), tag("g", frames), _rings(first, grid), _axes(grid), _scale_bar()]
    cursor = tag("rect", class_="cursor", width=side, height=side, visibility="hidden")
    drawing = tag(
        "svg", content, cursor, viewBox=f"0 0 {SIZE} {SIZE}", class_="heat", tabindex=0, role="application",
        aria_label=f"Heat map: {heat.title}. Arrow keys move from span to span.",
    )  # fmt: skip
    options = [tag("option", title_of(table), value=index) for index, table in enumerate(shown)]
    choice = tag("label", "Score ", tag("select", options, class_="which"), class_="choice", hidden=len(shown) == 1)
    tables = [_packed(one) for one in shown]
    data = data_block({"layers": n_layers, "cell": grid.cell, "colours": colours(), "tables": tables})
    readout = tag("p", class_="readout", role="status", aria_live="polite")
    caption = tag("figcaption", heat.title)
    return tag("figure", caption, choice, drawing, readout, data, class_="heatmap", id=f"figure-{heat.name}")


class Grid:
    """Places of the spans: column ``start``, and n = 1 in the lowest row."""

    def __init__(self, n_layers: int) -> None:
        self.n_layers, self.cell = n_layers, (SIZE - MARGIN) / n_layers

    def corner(self, start: float, n: float) -> dict[str, float]:
        """Upper left corner of a cell."""
        return {"x": round(MARGIN + start * self.cell, 2), "y": round((self.n_layers - n) * self.cell, 2)}


def colours() -> list[str]:
    """The colour of every level: bright where little changes, dark where much does."""
    return [cividis(1 - level / (LEVELS - 1)) for level in range(LEVELS)]


def levels(table: SpanTable) -> list[str]:
    """Per row n = 1..L the level of every start as one character; ``-`` where the span has no value."""
    rows = rescaled_rows(table)
    return ["".join(_code(value) for value in row[: table.n_layers - n]) for n, row in enumerate(rows)]


def _code(value: float) -> str:
    return "-" if math.isnan(value) else CODES[round(value**GAMMA * (LEVELS - 1))]


def _packed(table: SpanTable) -> dict[str, Any]:
    """A table as JSON: values and standard errors in four digits, row by row, and the best start of each row."""
    values, errors = (
        [[_rounded(x) for x in np.diagonal(array, offset=n)] for n in range(1, table.n_layers + 1)]
        for array in (table.values, table.stderr)
    )
    return {
        "title": title_of(table), "unit": table.unit, "n_samples": table.n_samples, "values": values, "errors": errors,
        "levels": levels(table), "best": best_starts(table),
    }  # fmt: skip


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _cells(table: SpanTable, grid: Grid) -> Html:
    """One rectangle per span, row by row from n = 1: the order that the script counts in."""
    shades = colours()
    side = round(grid.cell + 0.3, 2)  # Neighbours overlap a little, which hides the seams.
    made = []
    for n, row in enumerate(levels(table), start=1):
        for start, code in enumerate(row):
            x, y = grid.corner(start, n).values()
            fill = "none" if code == "-" else shades[CODES.index(code)]
            made.append(Html(f'<rect x="{x:g}" y="{y:g}" width="{side:g}" height="{side:g}" fill="{fill}"/>'))
    return tag("g", made, class_="cells")


def _rings(table: SpanTable, grid: Grid) -> Html:
    """A ring on the most redundant span of each row but the last, which has one span only."""
    radius = round(min(5.0, max(1.2, 0.2 * grid.cell)), 2)
    made = []
    for n, start in enumerate(best_starts(table)[:-1], start=1):
        if start is not None:
            x, y = grid.corner(start + 0.5, n - 0.5).values()
            made.append(tag("circle", cx=x, cy=y, r=radius))
    return tag("g", made, class_="best")


def _axes(grid: Grid) -> Html:
    n_layers = grid.n_layers
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100) if n_layers / s <= 17)
    low, middle = SIZE - MARGIN, (SIZE - MARGIN) / 2
    marks = [
        tag("text", start, x=grid.corner(start + 0.5, 0)["x"], y=low + 15, text_anchor="middle")
        for start in range(0, n_layers, step)
    ]
    marks += [
        tag("text", n, x=MARGIN - 6, y=grid.corner(0, n - 0.5)["y"] + 4, text_anchor="end")
        for n in sorted({1, *range(step, n_layers + 1, step)})
    ]
    turn = f"rotate(-90 11 {middle:g})"
    names = [
        tag("text", "first layer of the span", x=(MARGIN + SIZE) / 2, y=SIZE - 5, text_anchor="middle", class_="axis"),
        tag("text", "layers in the span, n", x=11, y=middle, text_anchor="middle", class_="axis", transform=turn),
    ]  # fmt: skip
    return tag("g", marks, names)


def _scale_bar() -> Html:
    """The legend, in the corner that holds no span."""
    x, y, width, height, steps = SIZE - 172.0, 30.0, 160.0, 10.0, 16
    bar = [
        tag("rect", x=x + i * width / steps, y=y, width=width / steps + 0.3, height=height, fill=cividis(1 - i / (steps - 1)))
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
