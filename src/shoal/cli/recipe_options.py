"""How the options of a verb become a recipe, and which of them a recipe does not read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shoal.prune.prune_config import PruneConfig, parse_prune
from shoal.select.table import SELECTORS

if TYPE_CHECKING:
    from shoal.measure.scan import Asked
    from shoal.recipes.recipe import Recipe


def with_options(recipe: str, **options: Any) -> Recipe:
    """The named recipe with the options that were given on top; validated like a recipe file.

    Args:
        options: by name; ``asked`` is what a scan that is there was asked for, and holds where no option says otherwise.
    Raises:
        ValueError: an unknown recipe, or a value that is not allowed.
    """
    from shoal.recipes.recipe_file import load_recipe

    given = {name: value for name, value in options.items() if value is not None}
    asked: Asked | None = given.pop("asked", None)
    text: dict[str, Any] = {name: given.pop(name) for name in ("field", "samples", "length", "evaluation") if name in given}
    if "text" in given:
        text["sources"] = given.pop("text")
    train = {field: given.pop(name) for name, field in (("train_tokens", "tokens"), ("lr", "lr")) if name in given}
    fit = {"tokens": given.pop("fit_tokens")} if "fit_tokens" in given else {}
    search: dict[str, Any] = {name: given.pop(name) for name in ("metric", "evaluations", "items") if name in given}
    if "task" in given:
        search["tasks"] = list(given.pop("task"))
    budgets = [name for name in ("drop", "params", "size") if name in given]
    if len(budgets) > 1:
        raise ValueError(f"--{budgets[0]} and --{budgets[1]} are two budgets; give one of them")
    if "params" in given:
        given["parameters"] = given.pop("params")
    refuse_beside_named(given, search, recipe)
    if asked:
        given = {"seed": asked.seed, "observers": asked.observers, **given}
        text = {**{name: value for name, value in asked.text.items() if value is not None}, **text}
    grow = given.pop("grow", {})
    heal: dict[str, Any] = {"tokens": given.pop("heal_tokens")} if "heal_tokens" in given else {}
    if "prune" in given:
        given["prune"] = _pruning(given["prune"])
    if given.get("heal") == "none":
        given["heal"] = None
    elif "heal" in given:
        heal["method"] = given.pop("heal")
    if heal and "method" not in heal and ("heal" in given or load_recipe(recipe).heal is None):
        raise ValueError("--heal-tokens is for healing, and nothing is healed; add --heal lora")
    nested = {"heal": heal, "text": text, "fit": fit, "train": train, "search": search, "grow": grow}
    changes: dict[str, Any] = {**given, **{name: below for name, below in nested.items() if below}}
    found = load_recipe(recipe, changes)
    refuse_unread(found, options)
    if train and found.training() is None:
        raise ValueError(
            "--train-tokens and --lr are for training, and nothing is trained; add --polish kl, or --replace layer; the tokens "
            "of a healing are --heal-tokens"
        )
    _refuse_unread_search(found, search)
    if fit and found.repair == "none":
        raise ValueError("--fit-tokens is for a repair, and there is none; add --repair auto")
    return found


def _refuse_unread_search(found: Recipe, search: Mapping[str, Any]) -> None:
    """Raises ValueError for an option of a search that the selector does not read; a merging one has a metric, too."""
    running = [name for name, one in SELECTORS.items() if "values" in one.reads]
    merging = [name for name, one in SELECTORS.items() if "weights" in one.reads]
    read = {"metric": [*running, *merging], "evaluations": running}
    unread = next((name for name, by in read.items() if name in search and found.select not in by), None)
    if unread is not None:
        raise ValueError(f"--{unread} is for selectors that run the model: --select {', '.join(read[unread])}")


def refuse_beside_named(given: Mapping[str, Any], search: Mapping[str, Any], recipe: str) -> None:
    """Raises ValueError for an option of the choice where the layers are named, by an option or by the recipe."""
    from shoal.recipes.recipe import CHOOSING
    from shoal.recipes.recipe_file import load_recipe

    budgets = {"drop": "--drop", "parameters": "--params", "size": "--size"}
    budget = next((option for name, option in budgets.items() if given.get(name)), None)
    if budget is not None and load_recipe(recipe).grow is not None:
        raise ValueError(f"{recipe} puts layers in, and {budget} is what goes; use shoal grow --to, or another recipe")
    if any(name in given for name in ("drop", "parameters", "size", "layers", "keep")):
        return  # An option means its own way; two options that do not go together are refused where they meet.
    unread = next((option for name, option in CHOOSING.items() if name in given or (name == "search" and search)), None)
    if unread is not None and load_recipe(recipe).is_by_hand:
        raise ValueError(f"{recipe} names its layers, so nothing is chosen and {unread} is not read; leave it out")


UNREAD = ("text", "field", "samples", "length", "seed", "dtype")
"""Options that a plan made from config and names alone does not read."""


def refuse_unread(chosen: Recipe, options: Mapping[str, Any]) -> None:
    """Raises ValueError for an option that was given and that this recipe does not read: it would be dropped in silence."""
    from shoal.recipes.reads import reads_calibration

    if options.get("samples") is not None and not reads_calibration(chosen):
        by = f"--select {chosen.select} with --guard {chosen.guard} reads none"
        why = "the layers are named" if chosen.is_by_hand else by
        raise ValueError(
            f"--samples is not read: it is text to choose by, and {why}; leave it out (a repair reads --fit-tokens)"
        )
    if chosen.is_by_hand:
        return
    if "tables" in SELECTORS.named(chosen.select).reads:
        return
    if options.get("by") is not None:
        raise ValueError(
            f"--by {options['by']} is a score to select by, and --select {chosen.select} reads none; leave it out, or choose "
            "another --select"
        )
    if options.get("rounds") is not None and chosen.rounds > 1 and not SELECTORS.named(chosen.select).reads:
        raise ValueError(f"--rounds measures anew after each cut, and --select {chosen.select} reads no measure; leave it out")


def refuse_unopened(options: Mapping[str, Any], *, device: str, resident: str) -> None:
    """Raises ValueError for options of text and machine where a plan needs neither."""
    given = [name for name in UNREAD if options.get(name) is not None]
    given += [name for name, value, default in (("device", device, "cpu"), ("resident", resident, "auto")) if value != default]
    if given:
        raise ValueError(
            f"--{given[0]} is not read: this plan follows from config and names alone, no text is read and no model opened; "
            "leave it out, or let scores choose (--select span, --guard 4)"
        )


def _pruning(asked: str | dict[str, Any]) -> dict[str, Any] | None:
    """All fields of what is asked for, as a text or by field: none of the recipe's own stay below them."""
    fields = parse_prune(asked) if isinstance(asked, str) else asked
    if fields is None:
        return None
    config = PruneConfig.from_json(json.dumps(fields), where="options")
    unread = next(((key, why) for key, why in config.unread() if key in fields), None)
    if unread is not None:
        raise ValueError(f"--prune: {unread[0]} is not read: {unread[1]}; leave it out")
    return config.model_dump(mode="json")
