"""``--time``: what to spend the time that is given on.

A ladder of efforts, each a change of the recipe; the highest whose estimate fits is taken. What was taken stands in
``recipe.yaml`` as plain numbers, so the run can be repeated on any machine, and a run that goes on takes them from there.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.recipes.recipe import Recipe
from shoal.run.estimate import StageRates, estimate, minutes

if TYPE_CHECKING:
    from shoal.run.job import Inputs

UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}

LADDER: tuple[tuple[str, int, int], ...] = (
    ("refit", 2, 8_000),
    ("refit", 2, 16_000),
    ("refit", 2, 32_000),
    ("auto", 2, 16_000),
    ("auto", 4, 32_000),
    ("auto", 4, 48_000),
    ("auto", 4, 96_000),
    ("auto", 4, 192_000),
    ("auto", 4, 384_000),
)
"""Repair, candidates and tokens of the fit; each takes longer than the one before it and leaves less KL (docs/smollm2.md)."""

SAFETY = 0.8  # of the time: an estimate may be off, and a run that ends late breaks a promise


def parse_time(text: str) -> float:
    """Seconds of ``90s``, ``10m``, ``1.5h``.

    Raises:
        ValueError: another form, or not above 0.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h)\s*", text)
    if not found or float(found[1]) <= 0:
        raise ValueError(f"--time {text!r} needs a number and s, m or h, such as 10m")
    return float(found[1]) * UNITS[found[2]]


def in_time(inputs: Inputs, rates: StageRates, seconds: float, *, begun: Path | None = None) -> tuple[Inputs, str]:
    """The inputs with the best recipe of the ladder that is expected to end in time, and what was chosen, for people.

    Args:
        begun: ``recipe.yaml`` of a run that goes on: what it chose stands.
    Raises:
        ValueError: the recipe sets by itself what the ladder would.
    """
    recipe = inputs.recipe
    if recipe.repair not in ("auto", "sweep", "refit") or recipe.fit.tokens is not None or recipe.replace != "none":
        raise ValueError(
            "--time sets repair, candidates and tokens of the repair; leave out --effort, --repair, --replace and --fit-tokens"
        )
    for repair, guard, tokens in reversed(LADDER):
        tried = _with(recipe, repair, guard, tokens)
        if begun is not None:
            if begun.read_text(encoding="utf-8") == tried.to_yaml():
                return replace(inputs, recipe=tried), f"as this run began: {_said(repair, guard, tokens)}"
            continue
        if estimate(inputs, rates, recipe=tried).seconds <= SAFETY * seconds:
            return replace(inputs, recipe=tried), _said(repair, guard, tokens)
    if begun is not None:
        raise ValueError(f"{begun} is of a run with other options; add --overwrite to replace it, or give another --out")
    repair, guard, tokens = LADDER[0]
    least = _with(recipe, repair, guard, tokens)
    expected = minutes(estimate(inputs, rates, recipe=least).seconds)
    return replace(inputs, recipe=least), f"{_said(repair, guard, tokens)}, the least there is: {expected} min are expected"


def _with(recipe: Recipe, repair: str, guard: int, tokens: int) -> Recipe:
    changes = {"repair": repair, "guard": min(guard, recipe.guard), "fit": recipe.fit.model_copy(update={"tokens": tokens})}
    return recipe.model_copy(update=changes)


def _said(repair: str, guard: int, tokens: int) -> str:
    return f"repair {repair} on {tokens:,} tokens, {guard} candidates"
