"""A recipe by its name or from a YAML file, with changes on top."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.recipes.recipe import CHOOSING, Recipe
from shoal.recipes.table import RECIPES
from shoal.recipes.unread import refuse_unread_keys
from shoal.select.table import selects_merges
from shoal.words.reading import shortened
from shoal.words.records import nearest
from shoal.words.refusal import in_one_line
from shoal.words.yaml_text import read_yaml


def recipe_without_keys() -> Recipe:
    """What a file comes to that gives no keys: the recipe ``default``, without its name and papers."""
    return RECIPES["default"].recipe.model_copy(update={"name": "custom", "about": "", "papers": ()})


@in_one_line
def load_recipe(name_or_path: str = "default", changes: Mapping[str, Any] | None = None) -> Recipe:
    """A named recipe, or one read from a YAML file, with changes on top.

    A file may start from a named recipe (``recipe: NAME``) and state only what differs.

    Args:
        changes: fields that differ, nested as in the file: ``{"model": "org/name", "train": {"tokens": 500_000}}``. With
            ``replace`` the recipe's ``repair`` is not used, unless named as well; with ``polish`` neither is its objective.
    Raises:
        ValueError: no such recipe; not YAML; an unknown key or a value out of range (says which, and what is allowed).
    """
    given: dict[str, Any] = {}
    own = RECIPES[name_or_path].recipe if name_or_path in RECIPES else _read(name_or_path, given)
    changes = _one_choice(_one_method(changes or {}))
    where = "options" if changes else name_or_path
    content = one_seed(_over(own, changes), changes)
    recipe = Recipe.from_json(json.dumps(content), where=where)
    refuse_unread_keys(given, own, recipe, name_or_path)
    return recipe


def with_changes(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """A recipe with other values in some fields, validated as a whole. Raises ValueError as :func:`load_recipe`."""
    content = one_seed(_over(recipe, _one_choice(_one_method(changes))), changes)
    return Recipe.from_json(json.dumps(content), where=f"changes of {recipe.name}")


def _one_method(changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Who names a replacement means it alone: a repair that the recipe would add has to be named, too.

    Who names a polish means it instead of what the recipe trains for, and who names a learning rate means a tenth of it as its
    floor. A selector that has compared its merges by running them leaves nothing to the recipe's guard.
    """
    changes = {"repair": "none", **changes} if "replace" in changes else changes
    changes = {"guard": 1, **changes} if selects_merges(changes.get("select")) else changes
    train = changes.get("train") or {}
    if not isinstance(train, Mapping):
        return changes
    if train.get("lr") is not None:
        train = {"min_lr": None, **train}
    if changes.get("polish") is not None:
        train = {"objective": None, "stages": [], **train}
    return {**changes, "train": train} if train else changes


def _over(base: Recipe, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a recipe with changes on top; a healing that is asked for means itself in place of an optional one."""
    content = base.model_dump(mode="json")
    if changes.get("heal") is not None and base.heal is not None and base.heal.optional:
        content["heal"] = None
    return merge(content, changes)


def one_seed(content: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Who gives a seed means all that is drawn: trainings draw by it, too, unless they are given one of their own."""
    seed = changes.get("seed")
    for name in ("train", "heal") if seed is not None else ():
        own, section = changes.get(name), content.get(name)
        if name == "heal" and isinstance(section, str) and section != "none":
            section = {"method": section}
        if isinstance(section, Mapping) and not (isinstance(own, Mapping) and own.get("seed") is not None):
            content = {**content, name: {**section, "seed": seed}}
        elif name == "train" and section is None:
            content = {**content, name: {"seed": seed}}
    return content


BUDGETS = ("drop", "parameters", "size")
"""Fields that say how much goes; who gives one means it in place of the others."""


def _one_choice(changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Who names layers chooses nothing, and who gives a budget means it in place of layers that a recipe names.

    Raises:
        ValueError: layers to remove beside layers to keep, or beside a field of the choice, which nothing would read.
    """
    named = [name for name in ("layers", "keep") if changes.get(name) is not None]
    if not named:
        if not any(changes.get(name) is not None for name in BUDGETS):
            return changes
        targets = {name: changes.get(name) for name in BUDGETS[1:]}
        return {**changes, **targets, "layers": None, "keep": None, "grow": None}
    if len(named) > 1:
        raise ValueError("--layers says what goes and --keep what stays; give one of them")
    unread = next((option for name, option in CHOOSING.items() if changes.get(name) is not None), None)
    if unread is not None:
        raise ValueError(f"--{named[0]} names the layers, so nothing is chosen and {unread} is not read; give one of them")
    return {**dict.fromkeys(("layers", "keep")), **changes}


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # No file can have such a name.
        return False


def _read(name_or_path: str, given: dict[str, Any]) -> Recipe:
    """The recipe of a file; ``given`` takes up what the file itself gives."""
    path = Path(name_or_path)
    if not _is_there(path):
        raise ValueError(
            f"no recipe {shortened(name_or_path)!r}: neither a file nor a known name; {nearest(name_or_path, RECIPES)}"
        )
    content = read_yaml(path)
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise ValueError(f"{path} holds {found}, not the fields of a recipe (key: value lines)")
    base = content.pop("recipe", None)
    given.update(content)
    if base is None:
        merged = _over(recipe_without_keys(), _one_choice(_one_method(content)))
    elif isinstance(base, str) and base in RECIPES:
        merged = _over(RECIPES[base].recipe, _one_choice(_one_method(content)))
    else:
        raise ValueError(f"{path}: recipe: {base!r} is unknown; {nearest(str(base), RECIPES)}")
    merged = one_seed(merged, content)
    # The file is checked here as well, so that its fault is not reported as one of the options.
    try:
        as_json = json.dumps(merged, default=str)
    except (ValueError, TypeError) as error:  # A value holds itself, or a key is no text.
        raise ValueError(f"{path} cannot be a recipe: {error}") from None
    return Recipe.from_json(as_json, where=str(path))


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` on top, nested mappings merged key by key."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged
