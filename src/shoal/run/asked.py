"""What a run was asked for, as flat text that two runs are compared by, so that a refusal can name what differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shoal.run.job import versions
from shoal.words.reading import shortened
from shoal.words.yaml_text import parse_yaml

if TYPE_CHECKING:
    from shoal.engine.open import Opened
    from shoal.recipes.recipe import Recipe

AskedFor = Mapping[str, str]
"""Values by their dotted names, ``fit.tokens``; what is none or empty has no entry."""

FOR_PEOPLE = ("about", "papers")
MOST_NAMED = 3


def asked_of(recipe: Recipe, opened: Opened, **more: Any) -> AskedFor:
    """All that a run's stages may depend on, but the content of its text: recipe, weights and how they are opened, versions.

    Args:
        more: what is asked for beside the recipe.
    """
    content = {name: value for name, value in parse_yaml(recipe.to_yaml(), "the recipe").items() if name not in FOR_PEOPLE}
    how = {"dtype": opened.opening.dtype, "device": opened.opening.device, "weights": opened.fingerprint}
    return flat({**content, **more, **how, "version": versions()})


def flat(content: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Nested values by their dotted names."""
    found: dict[str, str] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{before}{name}."))
        elif isinstance(value, list | tuple):
            found.update({before + name: ", ".join(map(str, value))} if value else {})
        elif value is not None:
            found[before + name] = str(value)
    return found


def differences(before: AskedFor, now: AskedFor) -> str:
    """``drop was 4, now 5``: the first three values that differ, and how many more do; empty where none does."""
    names = [name for name in dict.fromkeys((*now, *before)) if before.get(name) != now.get(name)]
    said = [f"{name} was {shortened(before.get(name, 'none'))}, now {shortened(now.get(name, 'none'))}" for name in names]
    return "; ".join([*said[:MOST_NAMED], *([f"and {len(said) - MOST_NAMED} more"] if len(said) > MOST_NAMED else [])])
