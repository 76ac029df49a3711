"""The methods that curves compare: names that become recipes, checked before a model is opened."""

import re
from collections.abc import Mapping
from pathlib import Path

from shoal.edits.replace.table import REPLACEMENTS
from shoal.fit.table import REPAIRS
from shoal.recipes.recipe import Recipe
from shoal.recipes.table import RECIPES
from shoal.train.config import POLISH
from shoal.words.records import nearest

NO_METHOD = "--methods names no method; give some, such as none,refit"


def method_names(methods: str) -> list[str]:
    """The methods of a list with commas, each once. Options of a replacement keep theirs (``swiglu:width=8,layout=code``).

    Raises:
        ValueError: there is none.
    """
    parts = re.split(r",(?!\s*\w+\s*=)", methods)
    names = list(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not names:
        raise ValueError(NO_METHOD)
    return names


def method_choice(name: str) -> tuple[str, dict[str, str]]:
    """A method's recipe and what it changes: ``none``, a repair or replacement (on the recipe ``default``), a recipe, a YAML
    file, or several joined by ``+`` such as ``uidl+sweep``.

    Raises:
        ValueError: an unknown part, or two parts that say the same.
    """
    repairs = set(REPAIRS) - {"none"}
    known = {"repair": repairs, "replace": set(REPLACEMENTS), "polish": set(POLISH)}
    recipe: str | None = None
    changes: dict[str, str] = {}
    for part in [] if name == "none" else name.split("+"):
        field = next((field for field, names in known.items() if part.split(":")[0] in names), None)
        is_recipe = part in RECIPES or Path(part).suffix in (".yaml", ".yml")
        if field is None and not is_recipe:
            names = {"none", *RECIPES}.union(*known.values())
            raise ValueError(f"--methods has no {part!r}; {nearest(part, names)}, or a YAML file")
        if field in changes or (is_recipe and recipe is not None):
            raise ValueError(
                f"--methods {name!r}: a method has one recipe, repair, replacement and polish; {part!r} is one more"
            )
        if field is not None:
            changes[field] = part
        else:
            recipe = part
    if recipe is None:
        changes.setdefault("replace", "none")
    return recipe or "default", changes


def is_plain(recipe: Recipe) -> bool:
    """True when nothing is repaired or put back: the cut is all."""
    return recipe.repair == "none" and recipe.replace == "none"


def slug(method: str) -> str:
    """The method's name as part of a folder's."""
    return re.sub(r"[^\w+.-]+", "-", Path(method).name)


def check_methods(methods: Mapping[str, Recipe], out: Path) -> None:
    """Before a model is opened.

    Raises:
        ValueError: no method, names that make one folder, recipes of another text, seed or model, or an ``out`` that no
            result can take.
    """
    from shoal.run.refusals import refuse_place  # This imports torch, and names of methods are checked before.

    if not methods:
        raise ValueError(NO_METHOD)
    folders: dict[str, str] = {}
    first = next(iter(methods.values()))
    for name, recipe in methods.items():
        refuse_place(out, recipe.model)
        if recipe.is_by_hand:
            raise ValueError(f"method {name!r} names its layers, and a curve chooses them for every share; take them out of it")
        other = folders.setdefault(slug(name), name)
        if other != name:
            raise ValueError(f"--methods {other!r} and {name!r} would share a folder; rename one of them")
        if (recipe.text, recipe.seed, recipe.model) != (first.text, first.seed, first.model):
            raise ValueError(
                f"method {name!r} states a text, seed or model of its own, and curves are compared on one: take them out of "
                "the file and give --text and --seed"
            )
