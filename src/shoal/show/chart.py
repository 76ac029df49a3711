"""Charts as plain data, drawn in two ways from one description: in the page (``svg``) and as files (``chart_files``).

No value is computed here; what a chart shows stands in a file of the run folder. Values that are None, NaN or infinite leave
a gap.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Marker = Literal["circle", "square", "triangle", "diamond", "arrow", "bar"]
MARKERS: tuple[Marker, ...] = ("circle", "square", "triangle", "diamond", "arrow", "bar")
"""A series is told from another by its marker and by its place in the legend, never by its colour alone."""


@dataclass(frozen=True)
class Point:
    """One value with its interval, and what is said where it is pointed at; without words it is only a bend of a line."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    tip: str = ""

    @property
    def is_drawn(self) -> bool:
        return math.isfinite(self.x) and math.isfinite(self.y)


@dataclass(frozen=True)
class Series:
    """Points under one name. ``style``: index of colour and marker; ``is_line``: neighbours are joined."""

    name: str
    points: tuple[Point, ...]
    style: int = 0
    is_line: bool = True


@dataclass(frozen=True)
class Rule:
    """A line across the chart at a value of ``axis``, with a word beside it."""

    axis: Literal["x", "y"]
    value: float
    label: str


@dataclass(frozen=True)
class Band:
    """A shaded range of x."""

    start: float
    stop: float
    label: str


@dataclass(frozen=True)
class Chart:
    """Series over x; with ``rows``, values in named rows, one under the other (candidates, tasks).

    Attributes:
        name: stem of the files.
        rows: names, from the top; the y of a point is then the index of its row, and its interval is of x.
        log_y: the y axis is logarithmic; values not above 0 leave a gap.
        whole_x: ticks of x are whole numbers.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    rules: tuple[Rule, ...] = ()
    bands: tuple[Band, ...] = ()
    rows: tuple[str, ...] = ()
    log_y: bool = False
    whole_x: bool = True

    def drawn(self, series: Series) -> tuple[Point, ...]:
        return tuple(point for point in series.points if point.is_drawn and (not self.log_y or point.y > 0))

    @property
    def x_range(self) -> tuple[float, float]:
        points = [point for one in self.series for point in self.drawn(one)]
        found = [edge for band in self.bands for edge in (band.start, band.stop)]
        found += [rule.value for rule in self.rules if rule.axis == "x"]
        ends = [end for point in points for end in (point.low, point.high) if end is not None] if self.rows else []
        return limits([point.x for point in points] + found + ends)

    @property
    def y_range(self) -> tuple[float, float]:
        if self.rows:
            return -0.5, len(self.rows) - 0.5
        points = [point for one in self.series for point in self.drawn(one)]
        found = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
        found += [rule.value for rule in self.rules if rule.axis == "y"]
        return limits(found, log=self.log_y)


def limits(values: Iterable[float], *, log: bool = False) -> tuple[float, float]:
    """Smallest and largest with some air around them; (0, 1) where there is none."""
    finite = [value for value in values if math.isfinite(value) and (not log or value > 0)]
    if not finite:
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = min(finite), max(finite)
    if log:
        air = (high / low) ** 0.06 if high > low else 1.5
        return low / air, high * air
    air = 0.06 * (high - low) or 0.1 * abs(high) or 0.5
    return low - air, high + air


def ticks(low: float, high: float, *, most: int = 6, whole: bool = False) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) in a range, at most ``most`` + 1 of them."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(s * power for s in (1, 2, 5, 10, 20, 50) if (high - low) / (s * power) <= most)
    if whole:
        step = max(1.0, math.ceil(step - 1e-9))
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [round((first + index) * step, 12) for index in range(count)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten in a range of less than two decades; the powers alone in a wider one."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    narrow = high / low < 100
    stride = max(1, -(-len(exponents) // 7))
    found = [m * 10.0**e for e in exponents[::stride] for m in ((1, 2, 5) if narrow else (1,))]
    inside = [value for value in found if low <= value <= high]
    return inside if len(inside) > 1 else ticks(low, high)


def said(value: float) -> str:
    """A tick in few characters."""
    return f"{value:.6g}" if 1e-3 <= abs(value) < 1e6 or value == 0 else f"{value:.3g}"
