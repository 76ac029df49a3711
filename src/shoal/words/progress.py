"""How a stage says how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (what, steps done, steps in all)."""


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""
