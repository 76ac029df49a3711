"""Figures as people read them: every number in a table, a chart, the card or a line of the command is written here, once.

A figure that does not exist (None, or not a number where an error is meant) is written as nothing.
"""

import math
from typing import Protocol


class Bounded(Protocol):
    """A figure between two bounds, such as :class:`shoal.evaluate.intervals.Interval`."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


LARGEST_EXPONENT = 709.0  # The exponential of more is no fp64 number.


def saturating_exp(x: float) -> float:
    """exp(x), infinite where it overflows: a destroyed model has an infinite perplexity, which is a result and no error."""
    return math.exp(x) if x < LARGEST_EXPONENT else math.inf


def number(value: float) -> str:
    """Four digits, thousands in full."""
    return f"{value:,.0f}" if 9999.5 <= abs(value) < 1e7 else f"{value:.4g}"


def whole(value: float) -> str:
    """A count with its thousands apart: ``12,345``."""
    return f"{value:,.0f}"


def short(value: float) -> str:
    """Three digits, thousands in full."""
    return f"{value:,.0f}" if 999.5 <= abs(value) < 1e7 else f"{value:.3g}"


def tenths(value: float) -> str:
    """One decimal, thousands apart: ``1,234.5``."""
    return f"{value:,.1f}"


def times(factor: float) -> str:
    """A factor: ``x 1.32``."""
    return f"x {factor:.2f}"


def count(value: float) -> str:
    """Four digits and a power of 1000: ``2.936 M``."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:#.4g} {unit}".replace(". ", " ")
    return f"{value:g}"


def in_bytes(value: float) -> str:
    """Three digits and a power of 1000: ``1.23 GB``."""
    for unit in ("B", "kB", "MB"):
        if value < 999.5:  # More would round to 1000, which three digits write as a power of ten.
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{short(value)} GB"


def percent(share: float) -> str:
    """A share in percent with one decimal, without the sign: ``93.1``."""
    return f"{100 * share:.1f}"


def percents(found: Bounded) -> str:
    """A share with its interval in percent: ``93.1 (90.2..95.0)``."""
    return f"{percent(found.value)} ({percent(found.low)}..{percent(found.high)})"


def ratio(found: Bounded) -> str:
    """A ratio with its interval: ``1.34 (1.33..1.35)``."""
    return f"{found.value:.2f} ({found.low:.2f}..{found.high:.2f})"


def change(after: float, before: float) -> str:
    """What became of a size: ``-25.0 %``; nothing where there was none."""
    return f"{100 * (after / before - 1):+.1f} %" if before else ""


def with_error(value: float, error: float | None) -> str:
    """A figure with its standard error, ``0.125 ± 0.016``, or alone where the error is not known."""
    if math.isnan(value):
        return ""
    if error is None or math.isnan(error):
        return number(value)
    return f"{number(value)} ± {number(error) if error >= 10 else f'{error:.2g}'}"
