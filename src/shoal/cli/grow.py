"""The verb ``grow``: cutting's inverse, through the same surgery."""

from dataclasses import dataclass
from typing import Annotated

from shoal.cli.compress import run_recipe
from shoal.cli.groups import EvaluationOptions, MachineOptions, ResultOptions, TextOptions
from shoal.cli.option import option
from shoal.cli.options import ModelOption, NoSpeedOption, OutOption
from shoal.cli.recipe_groups import HealOptions
from shoal.cli.recipe_options import with_options
from shoal.cli.verb import OF_THE_RECIPE, given, verb
from shoal.edits.inits import INITS
from shoal.recipes.table import RECIPES
from shoal.select.grow_config import GrowConfig

USUAL = GrowConfig()
GROWING = tuple(name for name, one in RECIPES.items() if one.recipe.grow is not None)


@dataclass(frozen=True)
class GrowOptions:
    """How many new layers, what they start as, and where they stand."""

    to: Annotated[str | None, option("N|N%", "Layers of the result: a number, or percent of the model's.", USUAL.to)] = None
    init: Annotated[str | None, option("NAME", f"What new layers start as: {', '.join(INITS)}.", USUAL.init)] = None
    where: Annotated[
        str | None,
        option(
            "PLACES",
            "Behind which layers: spread, shallow, deep, range (the middle layers once more), or one layer for each new "
            "one, such as 3,7,11.",
            "where the paper of the init puts them",
        ),
    ] = None


@verb
def grow(
    model: ModelOption,
    out: OutOption,
    new: Annotated[GrowOptions, OF_THE_RECIPE],
    text: Annotated[TextOptions, OF_THE_RECIPE],
    reading: Annotated[EvaluationOptions, OF_THE_RECIPE],
    healing: Annotated[HealOptions, OF_THE_RECIPE],
    machine: MachineOptions,
    result: ResultOptions,
    recipe: Annotated[
        str,
        option(
            "NAME|FILE",
            f"{', '.join(GROWING)}: a paper's way, with its training; or a YAML file with grow. Options override it.",
        ),
    ] = "grow",
    no_speed: NoSpeedOption = False,
) -> None:
    """Put layers in, measure against the model as it was, save a checkpoint for plain transformers.

    Nothing is trained unless --heal new (the new layers alone), another --heal, or a recipe says so.
    """
    if recipe in RECIPES and recipe not in GROWING:
        raise ValueError(
            f"recipe {recipe!r} puts no layers in; shoal grow takes {', '.join(GROWING)}, or a YAML file with grow"
        )
    asked: dict[str, str | None] = {name: value for name, value in given(new).items() if value is not None}
    if new.init is not None and new.where is None:
        asked["where"] = None  # The place follows from this init, not from that of the recipe.
    speed = False if no_speed else None
    chosen = with_options(recipe, model=model, grow=asked or None, speed=speed, **given(text, healing), **reading.given())
    run_recipe(chosen, out, machine, result)
