"""Charts in the page: inline SVG in the page's own colours, with a table of the same values under each.

Text in a drawing has the size of text, so drawings are made 420 units wide: a phone shows them nearly at that size, a wide
screen puts them side by side.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from shoal.show.chart import MARKERS, Chart, Point, Rule, Series, log_ticks, said, ticks
from shoal.show.html import Child, Html, join, tag

WIDTH, HEIGHT = 420, 264
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 42
ROW = 34  # This is the height of one named row.
N_COLOURS = 6  # The style sheet page.css has so many colours of series.
CORNERS: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)),
    "triangle": ((0, -5), (4.6, 3.6), (-4.6, 3.6)),
    "diamond": ((0, -5.2), (5.2, 0), (0, 5.2), (-5.2, 0)),
    "arrow": ((0, 5), (4.6, -3.6), (-4.6, -3.6)),
    "bar": ((-2, -5.5), (2, -5.5), (2, 5.5), (-2, 5.5)),
}
CHARACTER = 6.1  # This is the mean width of a character in a drawing.


class Scale:
    """From values to places on one axis, linear or logarithmic."""

    def __init__(self, low: float, high: float, start: float, stop: float, *, log: bool = False) -> None:
        self._log, self._start = log, start
        self._low, top = (math.log(low), math.log(high)) if log else (low, high)
        self._slope = (stop - start) / (top - self._low)

    def can_show(self, value: float) -> bool:
        """False for what is no number, and for what a logarithmic axis has no place for."""
        return math.isfinite(value) and (value > 0 or not self._log)

    def __call__(self, value: float) -> float:
        return round(self._start + ((math.log(value) if self._log else value) - self._low) * self._slope, 2)


def draw(chart: Chart) -> Html:
    """A chart as a figure: title, legend, drawing, and a line that says the value that is pointed at."""
    legend = _legend(chart.series) if len(chart.series) > 1 else None
    readout = tag("p", class_="readout", role="status", aria_live="polite")
    parts = (tag("figcaption", chart.title), legend, _drawing(chart), readout)
    return tag("figure", *parts, class_="chart", id=f"figure-{chart.name}")


def _drawing(chart: Chart) -> Html:
    n_rows = len(chart.rows)
    left = min(150.0, 12 + CHARACTER * max(map(len, chart.rows))) if n_rows else LEFT
    low = (TOP + ROW * n_rows) if n_rows else HEIGHT - BOTTOM  # This is the lower edge of the plot.
    x = Scale(*chart.x_range, left + 8 * bool(n_rows), WIDTH - RIGHT)
    ends = (TOP, low) if n_rows else (low, TOP)  # Rows are read from the top, values from below.
    y = Scale(*chart.y_range, *ends, log=chart.log_y)
    x_ticks = ticks(*chart.x_range, most=5) if n_rows else ticks(*chart.x_range, whole=chart.whole_x)
    labels = [_text(x(t), low + 16, said(t), anchor="middle") for t in x_ticks]
    labels.append(_text((left + WIDTH - RIGHT) / 2, low + 35, chart.x_label, anchor="middle", class_="axis"))
    if n_rows:
        grid = [tag("line", x1=x(t), x2=x(t), y1=TOP, y2=low, class_="grid") for t in x_ticks]
        labels += _row_names(chart.rows, left, y)
    else:
        y_ticks = log_ticks(*chart.y_range) if chart.log_y else ticks(*chart.y_range, most=5)
        grid = [tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(t), y2=y(t), class_="grid") for t in y_ticks]
        grid.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=low, y2=low, class_="line"))
        labels += [_text(LEFT - 7, y(t) + 4, said(t), anchor="end") for t in y_ticks]
        turn = f"rotate(-90 13 {(TOP + low) / 2:g})"
        labels.append(_text(13, (TOP + low) / 2, chart.y_label, anchor="middle", class_="axis", turn=turn))
    bands = [
        tag("rect", x=x(b.start), y=TOP, width=round(x(b.stop) - x(b.start), 2), height=low - TOP, class_="band")
        for b in chart.bands
    ]
    series, n_series = [], len(chart.series)
    for index, one in enumerate(chart.series):
        # In rows the series stand one under the other. Elsewhere earlier series are larger, so that equal points all show.
        shift, size = (9 * (index - (n_series - 1) / 2), 1.0) if n_rows else (0.0, 1 + 0.35 * (n_series - 1 - index))
        marks = [Mark(p, x(p.x), y(p.y) + shift) for p in chart.drawn(one)]
        series.append(_series(one, marks, x if n_rows else y, is_row=bool(n_rows), size=size))
    names = [_text(x(b.start) + 4, TOP + 13, b.label, class_="note") for b in chart.bands if b.label]
    names += [_rule_name(rule, x=x, y=y) for rule in chart.rules]
    rules = [_rule(rule, x=x, y=y, left=left, low=low) for rule in chart.rules]
    return _svg(low + BOTTOM, chart, join(bands, grid, rules, series, names, labels))


def _row_names(rows: Sequence[str], left: float, y: Scale) -> list[Html]:
    """What fits of each name, and the whole of it where one points."""
    fits = int(left / CHARACTER)
    brief = [name if len(name) <= fits else name[: fits - 1] + "…" for name in rows]
    both = enumerate(zip(brief, rows, strict=True))
    return [tag("text", one, tag("title", whole), x=left, y=y(i) + 4, text_anchor="end") for i, (one, whole) in both]


class Mark(NamedTuple):
    """A point and its place in the drawing."""

    point: Point
    x: float
    y: float


def _series(one: Series, marks: Sequence[Mark], value: Scale, *, is_row: bool, size: float) -> Html:
    """The line through the points, their intervals on the axis of the values, and their markers."""
    colour = f"s{one.style % N_COLOURS}"
    path = " ".join(f"{m.x:g},{m.y:g}" for m in marks)
    line = tag("polyline", points=path, class_=f"curve {colour}") if one.is_line and len(marks) > 1 else None
    bars = []
    for m in marks:
        ends = (m.point.low, m.point.high)
        if not all(end is not None and value.can_show(end) for end in ends) or ends[0] == ends[1]:
            continue
        first, last = (value(end or 0.0) for end in ends)
        places = {"x1": first, "x2": last, "y1": m.y, "y2": m.y} if is_row else {"x1": m.x, "x2": m.x, "y1": first, "y2": last}
        bars.append(tag("line", **places, class_=f"error {colour}"))
    return tag("g", line, bars, [_marker(one.style, m.x, m.y, m.point.tip, size=size) for m in marks if m.point.tip])


def _marker(style: int, x: float, y: float, tip: str | None = None, *, size: float = 1.0) -> Html:
    """The shape of a series around a point."""
    shape = MARKERS[style % len(MARKERS)]
    about: dict[str, str | None] = {"class_": f"point s{style % N_COLOURS}", "data_tip": tip}
    if shape == "circle":
        return tag("circle", cx=x, cy=y, r=4.0 * size, **about)
    points = " ".join(f"{x + size * dx:.2f},{y + size * dy:.2f}" for dx, dy in CORNERS[shape])
    return tag("polygon", points=points, **about)


def _rule(rule: Rule, *, x: Scale, y: Scale, left: float, low: float) -> Html:
    if rule.axis == "x":
        return tag("line", x1=x(rule.value), x2=x(rule.value), y1=TOP, y2=low, class_="rule")
    return tag("line", x1=left, x2=WIDTH - RIGHT, y1=y(rule.value), y2=y(rule.value), class_="rule")


def _rule_name(rule: Rule, *, x: Scale, y: Scale) -> Html:
    """Above the curves, so that it can be read."""
    if rule.axis == "y":
        return _text(WIDTH - RIGHT, y(rule.value) - 5, rule.label, class_="note", anchor="end")
    at_end = x(rule.value) > WIDTH * 0.6
    place = x(rule.value) + (-5 if at_end else 5)
    return _text(place, TOP + 11, rule.label, class_="note", anchor="end" if at_end else "start")


def _legend(series: Sequence[Series]) -> Html:
    def mark(one: Series) -> Html:
        return tag("svg", _marker(one.style, 7, 7), viewBox="0 0 14 14", width=14, height=14, aria_hidden="true")

    return tag("ul", [tag("li", mark(one), one.name) for one in series], class_="legend")


def _svg(height: float, chart: Chart, content: Child) -> Html:
    return tag(
        "svg", content, viewBox=f"0 0 {WIDTH} {height:g}", role="application", tabindex=0, class_="plot",
        aria_label=f"{chart.title}. Arrow keys read the points; the values are also in the table.",
    )  # fmt: skip


def _text(
    x: float, y: float, text: str, *, anchor: str | None = None, class_: str | None = None, turn: str | None = None
) -> Html:
    return tag("text", text, x=round(x, 2), y=round(y, 2), text_anchor=anchor, class_=class_, transform=turn)
