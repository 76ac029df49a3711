"""An optional healing: whether this run has it, with how many tokens, and why not where it has not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from shoal.recipes.recipe import Recipe
from shoal.recipes.recipe_file import load_recipe
from shoal.run.folder import NOT_HEALED, RunFolder
from shoal.run.healing.heal_bench import refuse_unhealable
from shoal.run.job import Inputs
from shoal.train.config import DEFAULT_TOKENS
from shoal.train.heal.config import SHORT_HEAL_TOKENS, HealConfig

FEWEST_HEALED = 8192  # A healing of fewer tokens has hardly begun when its learning rate falls again.


def settled_healing(inputs: Inputs, folder: RunFolder) -> Inputs:
    """The inputs with an optional healing as this run has it, or with the reason why it has none.

    A run that goes on keeps what it began with: the memory that is free may be another by then.
    """
    recipe, healing = inputs.recipe, inputs.recipe.heal
    if healing is None or not healing.optional:
        return inputs
    n_tokens = _tokens(inputs, healing.tokens or DEFAULT_TOKENS)
    keeps = healing.keep_zeros or recipe.leaves_zeros
    healed = _with(recipe, healing.model_copy(update={"tokens": n_tokens or None, "keep_zeros": keeps}))
    why = inputs.workers.from_first(lambda: _as_begun(recipe, healed, folder))
    if why is None:
        # The first process reads text for all of them, and cannot while it works alone. Where a repair was named nothing has to
        # be read for a no, and a run without healing is spared what a Trainer imports: a second of its start.
        is_open = n_tokens >= FEWEST_HEALED and not inputs.is_streamed and mended_by_name(healed) is None
        unfit = _unfit(inputs, healed) if is_open else ""
        why = inputs.workers.from_first(lambda: next(_reasons(inputs, healed, unfit), ""))
    return replace(inputs, recipe=_with(recipe, None) if why else healed, not_healed=why)


def without_healing(recipe: Recipe) -> Recipe:
    """The recipe without an optional healing; any other stays."""
    return _with(recipe, None) if recipe.heal is not None and recipe.heal.optional else recipe


def spare_healing(recipe: Recipe) -> HealConfig:
    """What time that is left may go to where a recipe asks for no healing: its optional one, else LoRA on logits."""
    asked = recipe.heal
    return asked if asked is not None and asked.optional else HealConfig(seed=recipe.seed)


def no_room_to_heal(inputs: Inputs, healing: HealConfig) -> str:
    """Why a short healing may not fit into memory behind a recipe without one; empty where it fits."""
    from shoal.run.memory_plan.needs import too_little_to_heal

    healed = _with(inputs.recipe, healing.model_copy(update={"tokens": SHORT_HEAL_TOKENS}))
    return inputs.workers.from_first(lambda: too_little_to_heal(healed, inputs.opened.opening))


def reason_of(folder: Path) -> str:
    """Why a run that goes on has no healing: that it began so, and why it did."""
    noted, began = folder / NOT_HEALED, "this run began without it"
    why = noted.read_text(encoding="utf-8") if noted.exists() else ""
    return why if why.startswith(began) else f"{began}: {why}" if why else began


def mended_by_name(recipe: Recipe) -> str | None:
    """The field that names how the cut is mended, or None where that is left to the recipe."""
    named = {
        "growing": recipe.grow is not None,
        f"replace {recipe.replace}": recipe.replace != "none",
        f"polish {recipe.polish}": recipe.polish is not None,
        f"repair {recipe.repair}": recipe.repair != "auto",
    }
    return next((what for what, is_named in named.items() if is_named), None)


def _tokens(inputs: Inputs, wanted: int) -> int:
    try:
        return min(wanted, inputs.training_up_to(wanted).n_tokens)
    except ValueError:  # The text does not fill eight samples.
        return 0


def _with(recipe: Recipe, healing: HealConfig | None) -> Recipe:
    return recipe.model_copy(update={"heal": healing})


def _as_begun(recipe: Recipe, healed: Recipe, folder: RunFolder) -> str | None:
    """What a run decided when it began, whatever else was asked for then: its reason, or empty; None where none stands."""
    begun = folder / "recipe.yaml"
    if folder.overwrite or not begun.exists():
        return None
    try:
        stands = _with(recipe, load_recipe(str(begun)).heal).to_yaml()
    except ValueError:  # Somebody edited it; it is written anew when the run ends.
        return None
    return {healed.to_yaml(): "", _with(recipe, None).to_yaml(): reason_of(folder.path)}.get(stands)


def _unfit(inputs: Inputs, healed: Recipe) -> str:
    """Why the healing would be refused when it begins; empty where it would not."""
    assert healed.heal is not None
    try:
        refuse_unhealable(inputs, healed.heal)
    except ValueError as error:
        return str(error)
    return ""


def _reasons(inputs: Inputs, healed: Recipe, unfit: str) -> Iterator[str]:
    assert healed.heal is not None
    n_tokens = healed.heal.tokens or 0
    named = mended_by_name(healed)
    if named is not None:
        yield f"{named} was asked for; add --heal {healed.heal.method} for both"
    if inputs.is_streamed:
        yield "it trains with all layers in memory, and here they are read from disk"
    if n_tokens < FEWEST_HEALED:
        has = f"has {n_tokens:,} tokens" if n_tokens else "fills no eight samples"
        yield f"the text {has} to train on, and it takes {FEWEST_HEALED:,} tokens"
    if unfit:
        yield unfit
    from shoal.run.memory_plan.needs import too_little_to_heal

    too_little = too_little_to_heal(healed, inputs.opened.opening)
    if too_little:
        yield too_little
