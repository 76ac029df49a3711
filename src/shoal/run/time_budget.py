"""``--time``: what to spend the time that is given on.

The repairs of the table say what may be spent on them; of all that, what takes longest and still fits is taken. A repair and a
number of tokens that were asked for stay as they are. What was taken stands in ``recipe.yaml`` as plain numbers, so the run can
be repeated on any machine, and a run that goes on takes them from there.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.fit.table import REPAIRS
from shoal.recipes.recipe import Recipe
from shoal.run.estimate import estimate, minutes
from shoal.run.pace import Pace, StageRates
from shoal.words.reading import shortened

if TYPE_CHECKING:
    from shoal.run.job import Inputs

UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}

Effort = tuple[str, int, int]
"""Repair, candidates and tokens of its fit."""

SAFETY = 0.8  # This share of the time is planned: an estimate may be off, and a run that ends late breaks a promise.


def parse_time(text: str) -> float:
    """Seconds of ``90s``, ``10m``, ``1.5h``.

    Raises:
        ValueError: another form, or not above 0.
    """
    found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*(s|m|min|h)\s*", text)
    if not found or float(found[1]) <= 0:
        raise ValueError(f"--time {shortened(text)!r} needs a number and s, m or h, such as 10m")
    return float(found[1]) * UNITS[found[2]]


def in_time(inputs: Inputs, rates: StageRates, seconds: float, *, begun: Path | None = None) -> tuple[Inputs, str]:
    """The inputs with the best recipe of the ladder that is expected to end in time, and what was chosen, for people.

    Args:
        begun: ``recipe.yaml`` of a run that goes on: what it chose stands.
    Raises:
        ValueError: the recipe has no repair that more or less time could be spent on.
    """
    recipe = inputs.recipe
    recipes = {effort: _with(recipe, effort) for effort in efforts(recipe)}
    if begun is not None:
        text = begun.read_text(encoding="utf-8")
        for effort, tried in recipes.items():
            if text == tried.to_yaml():
                return replace(inputs, recipe=tried), f"as this run began: {_said(effort)}"
        raise ValueError(f"{begun} is of a run with other options; add --overwrite to replace it, or give another --out")
    expected = {effort: estimate(Pace(replace(inputs, recipe=tried), rates)).seconds for effort, tried in recipes.items()}
    fitting = [effort for effort in recipes if expected[effort] <= SAFETY * seconds]
    if fitting:
        most = max(fitting, key=lambda effort: expected[effort])
        return replace(inputs, recipe=recipes[most]), _said(most)
    least = min(recipes, key=lambda effort: expected[effort])
    said = f"{_said(least)}, the least there is: {minutes(expected[least])} min are expected"
    return replace(inputs, recipe=recipes[least]), said


def efforts(recipe: Recipe) -> list[Effort]:
    """Everything that time may be spent on: by the repair that the recipe names, or by all where it leaves the choice.

    Raises:
        ValueError: nothing of what the recipe names takes more or less time.
    """
    asked = REPAIRS.named(recipe.repair)
    spent_on = [
        name for name, one in REPAIRS.items() if one.efforts and not any(name == other.comes_to for other in REPAIRS.values())
    ]
    if not asked.efforts or recipe.replace != "none":
        named = f"--replace {recipe.replace}" if recipe.replace != "none" else f"--repair {recipe.repair}"
        known = ", ".join(name for name, one in REPAIRS.items() if one.efforts)
        raise ValueError(
            f"--time chooses how much is spent on a repair ({known}), and {named} has no such choice; leave one out"
        )
    names = spent_on if asked.comes_to else [asked.name]
    found = [
        (name, min(guard, recipe.guard), recipe.fit.tokens or tokens)
        for name in names
        for guard, tokens in REPAIRS[name].efforts
    ]
    return list(dict.fromkeys(found))


def _with(recipe: Recipe, effort: Effort) -> Recipe:
    repair, guard, tokens = effort
    changes = {"repair": repair, "guard": guard, "fit": recipe.fit.model_copy(update={"tokens": tokens})}
    return recipe.model_copy(update=changes)


def _said(effort: Effort) -> str:
    repair, guard, tokens = effort
    return f"repair {repair} on {tokens:,} tokens, {guard} candidates"
