"""What does not go with layers that are named, merged or put in, and with tasks to choose by: a line for each conflict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from shoal.fit.table import REPAIRS
from shoal.recipes.task_choice import task_conflicts
from shoal.words.unit_names import parse_units

if TYPE_CHECKING:
    from shoal.recipes.recipe import Recipe


def of_nothing(recipe: Recipe) -> Iterator[str]:
    """Where no layer goes, nothing can be put in its place, and something else has to be done."""
    if recipe.layers is None or parse_units(recipe.layers, option="--layers"):
        return
    if recipe.replace != "none" or recipe.repair != "none":
        yield "--layers none removes nothing, so there is nothing to repair; use --replace none --repair none"
    if recipe.prune is None and (recipe.heal is None or recipe.heal.optional):
        yield "--layers none removes nothing, and nothing is pruned or healed; name layers, or add --prune wanda"


def of_sublayers(recipe: Recipe) -> Iterator[str]:
    """What stands in place of whole layers, or needs them, goes with no single sublayers."""
    if recipe.layers is None or all(one.kind == "layer" for one in parse_units(recipe.layers, option="--layers")):
        return
    named = f"--layers {recipe.layers} names single sublayers"
    if recipe.replace != "none":
        yield f"--replace {recipe.replace} stands in place of whole layers, and {named}; use --replace none"
    if REPAIRS.named(recipe.repair).needs_layers:
        yield f"--repair {recipe.repair} is of whole layers, and {named}; use --repair refit, auto or none"
    if recipe.heal is not None and not (recipe.heal.keep_zeros or recipe.heal.optional):
        yield (
            "healing trains a stock checkpoint, in which sublayers that are gone are maps of zeros that would grow back, and "
            f"{named}; use --heal none, or heal: keep_zeros: true in a recipe"
        )


def of_merging(recipe: Recipe) -> Iterator[str]:
    """A selector that merges has run what it proposes; what stands in place of spans, or competes, knows removal alone."""
    if not recipe.merges_layers:
        return
    merges = f"--select {recipe.select} proposes merged layers"
    if recipe.guard > 1:
        yield f"{merges}, which were compared by running them; use --guard 1"
    if recipe.rounds > 1:
        yield f"{merges} one after the other already; leave out --rounds"
    if recipe.replace != "none":
        yield f"{merges}, and --replace {recipe.replace} puts something else in place of layers; use --replace none"


def of_growing(recipe: Recipe) -> Iterator[str]:
    """What is put in is no cut that could be repaired; it is trained by healing."""
    if recipe.grow is None:
        return
    if recipe.replace != "none" or recipe.repair != "none":
        yield f"new layers go with no repair ({recipe.repair}) and no replacement ({recipe.replace}); --heal new trains them"
    if recipe.grow.cut and (recipe.layers is not None or recipe.keep is not None):
        yield f"grow.cut={recipe.grow.cut} removes the deepest layers, and others are named; leave out one of them"


OF_NAMED: tuple[Callable[[Recipe], Iterator[str]], ...] = (of_nothing, of_sublayers, of_merging, of_growing, task_conflicts)
