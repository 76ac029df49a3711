"""Charts in the page: inline SVG in the page's own colours, with a table of the same values under each.

Text in a drawing has the size of text, so drawings are made 420 units wide: a phone shows them nearly at that size, a wide
screen puts them side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from shoal.show.chart import MARKERS, Chart, Dots, Point, Rule, Series, log_ticks, said, ticks
from shoal.show.html import Child, Html, join, tag

WIDTH, HEIGHT = 420, 264
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 42
ROW = 34  # height of a row of dots
N_COLOURS = 6  # of series, in page.css
CORNERS: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)),
    "triangle": ((0, -5), (4.6, 3.6), (-4.6, 3.6)),
    "diamond": ((0, -5.2), (5.2, 0), (0, 5.2), (-5.2, 0)),
    "arrow": ((0, 5), (4.6, -3.6), (-4.6, -3.6)),
    "bar": ((-2, -5.5), (2, -5.5), (2, 5.5), (-2, 5.5)),
}
CHARACTER = 6.1  # width of one in a drawing, on average


class Scale:
    """From values to places on one axis, linear or logarithmic."""

    def __init__(self, low: float, high: float, start: float, stop: float, *, log: bool = False) -> None:
        self._log, self._start = log, start
        self._low, top = (math.log(low), math.log(high)) if log else (low, high)
        self._slope = (stop - start) / (top - self._low)

    def __call__(self, value: float) -> float:
        return round(self._start + ((math.log(value) if self._log else value) - self._low) * self._slope, 2)


def draw(chart: Chart | Dots) -> Html:
    """A chart as a figure: title, legend, drawing, and a line that says the value that is pointed at."""
    drawing = _xy(chart) if isinstance(chart, Chart) else _dots(chart)
    legend = _legend(chart.series) if len(chart.series) > 1 else None
    readout = tag("p", class_="readout", role="status", aria_live="polite")
    return tag("figure", tag("figcaption", chart.title), legend, drawing, readout, class_="chart", id=f"figure-{chart.name}")


def _xy(chart: Chart) -> Html:
    x = Scale(*chart.x_range, LEFT, WIDTH - RIGHT)
    y = Scale(*chart.y_range, HEIGHT - BOTTOM, TOP, log=chart.log_y)
    x_ticks = ticks(*chart.x_range, whole=chart.whole_x)
    y_ticks = log_ticks(*chart.y_range) if chart.log_y else ticks(*chart.y_range, most=5)
    bands = [
        tag(
            "rect", x=x(b.start), y=TOP, width=round(x(b.stop) - x(b.start), 2), height=HEIGHT - TOP - BOTTOM, class_="band"
        ) for b in chart.bands
    ]  # fmt: skip
    grid = [tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(t), y2=y(t), class_="grid") for t in y_ticks]
    labels = [_text(x(t), HEIGHT - BOTTOM + 16, said(t), anchor="middle") for t in x_ticks]
    labels += [_text(LEFT - 7, y(t) + 4, said(t), anchor="end") for t in y_ticks]
    labels.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 7, chart.x_label, anchor="middle", class_="axis"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    labels.append(_text(13, middle, chart.y_label, anchor="middle", class_="axis", turn=f"rotate(-90 13 {middle:g})"))
    rules = [_rule(rule, x=x, y=y) for rule in chart.rules]
    # earlier ones are larger, so that equal points of several series all show
    sizes = [1 + 0.35 * (len(chart.series) - 1 - index) for index in range(len(chart.series))]
    series = [_series(one, chart.drawn(one), x=x, y=y, size=size) for one, size in zip(chart.series, sizes, strict=True)]
    names = [_text(x(b.start) + 4, TOP + 13, b.label, class_="note") for b in chart.bands if b.label]
    names += [_rule_name(rule, x=x, y=y) for rule in chart.rules]
    axis = tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM, class_="line")
    return _svg(HEIGHT, chart, join(bands, grid, axis, rules, series, names, labels))


def _dots(chart: Dots) -> Html:
    left = min(150.0, 12 + CHARACTER * max((len(name) for name in chart.rows), default=1))
    height = TOP + ROW * len(chart.rows) + BOTTOM
    x = Scale(*chart.x_range, left + 8, WIDTH - RIGHT, log=chart.log_x)
    x_ticks = log_ticks(*chart.x_range) if chart.log_x else ticks(*chart.x_range, most=5)
    n_series = len(chart.series)

    def row(index: float) -> float:
        return TOP + ROW * (index + 0.5)

    lines = [tag("line", x1=x(t), x2=x(t), y1=TOP, y2=height - BOTTOM, class_="grid") for t in x_ticks]
    rules = [
        join(
            tag("line", x1=x(r.value), x2=x(r.value), y1=TOP, y2=height - BOTTOM, class_="rule"),
            _text(x(r.value) + 4, height - BOTTOM - 4, r.label, class_="note"),
        ) for r in chart.rules
    ]  # fmt: skip
    fits = int(left / CHARACTER)
    names = []
    for index, name in enumerate(chart.rows):
        short = name if len(name) <= fits else name[: fits - 1] + "…"
        names.append(tag("text", short, tag("title", name), x=left, y=row(index) + 4, text_anchor="end"))
    marks = []
    for index, one in enumerate(chart.series):
        shift = 9 * (index - (n_series - 1) / 2)
        for point in chart.drawn(one):
            y = row(point.y) + shift
            marks.append(_interval(x, point, y, one.style))
            marks.append(_marker(one.style, x(point.x), y, point.tip))
    labels = [_text(x(t), height - BOTTOM + 16, said(t), anchor="middle") for t in x_ticks]
    labels.append(_text((left + WIDTH - RIGHT) / 2, height - 7, chart.x_label, anchor="middle", class_="axis"))
    return _svg(height, chart, join(lines, rules, names, marks, labels))


def _series(one: Series, points: Sequence[Point], *, x: Scale, y: Scale, size: float) -> Html:
    path = " ".join(f"{x(p.x):g},{y(p.y):g}" for p in points)
    line = tag("polyline", points=path, class_=f"curve s{one.style % N_COLOURS}") if one.is_line and len(points) > 1 else None
    bars = []
    for p in points:
        if p.low is not None and p.high is not None and math.isfinite(p.low) and math.isfinite(p.high) and p.high > p.low:
            try:
                bars.append(
                    tag("line", x1=x(p.x), x2=x(p.x), y1=y(p.low), y2=y(p.high), class_=f"error s{one.style % N_COLOURS}")
                )
            except ValueError:  # a lower end that a logarithmic axis cannot show
                continue
    return tag("g", line, bars, [_marker(one.style, x(p.x), y(p.y), p.tip, size=size) for p in points if p.tip])


def _interval(x: Scale, point: Point, y: float, style: int) -> Html | None:
    if point.low is None or point.high is None or not (math.isfinite(point.low) and math.isfinite(point.high)):
        return None
    return tag("line", x1=x(point.low), x2=x(point.high), y1=y, y2=y, class_=f"error s{style % N_COLOURS}")


def _marker(style: int, x: float, y: float, tip: str | None = None, *, size: float = 1.0) -> Html:
    """The shape of a series around a point."""
    shape = MARKERS[style % len(MARKERS)]
    about: dict[str, str | None] = {"class_": f"point s{style % N_COLOURS}", "data_tip": tip}
    if shape == "circle":
        return tag("circle", cx=x, cy=y, r=4.0 * size, **about)
    points = " ".join(f"{x + size * dx:.2f},{y + size * dy:.2f}" for dx, dy in CORNERS[shape])
    return tag("polygon", points=points, **about)


def _rule(rule: Rule, *, x: Scale, y: Scale) -> Html:
    if rule.axis == "x":
        return tag("line", x1=x(rule.value), x2=x(rule.value), y1=TOP, y2=HEIGHT - BOTTOM, class_="rule")
    return tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(rule.value), y2=y(rule.value), class_="rule")


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


def _svg(height: float, chart: Chart | Dots, content: Child) -> Html:
    return tag(
        "svg", content, viewBox=f"0 0 {WIDTH} {height:g}", role="application", tabindex=0, class_="plot",
        aria_label=f"{chart.title}. Arrow keys read the points; the values are also in the table.",
    )  # fmt: skip


def _text(
    x: float, y: float, text: str, *, anchor: str | None = None, class_: str | None = None, turn: str | None = None
) -> Html:
    return tag("text", text, x=round(x, 2), y=round(y, 2), text_anchor=anchor, class_=class_, transform=turn)
