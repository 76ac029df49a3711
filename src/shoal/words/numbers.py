"""Figures as people read them."""

from __future__ import annotations


def number(value: float) -> str:
    """Four digits, thousands in full."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"


def count(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:#.4g} {unit}".replace(". ", " ")
    return f"{value:g}"


def in_bytes(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:#.4g} {unit}".replace(". ", " ")
    return f"{value:g} B"
