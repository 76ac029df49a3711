"""The verb ``run``."""

from typing import Annotated

from shoal.cli.compress import run_recipe
from shoal.cli.groups import MachineOptions, ResultOptions, TextOptions
from shoal.cli.option import argument, option
from shoal.cli.options import NoSpeedOption, OutOption, SeedOption
from shoal.cli.recipe_groups import BudgetOptions
from shoal.cli.recipe_options import with_options
from shoal.cli.verb import OF_THE_RECIPE, given, verb


@verb
def run(
    recipe: Annotated[str, argument("RECIPE", "YAML file (its keys: docs/recipe_keys.md), or a name of the list below.")],
    out: OutOption,
    budget: Annotated[BudgetOptions, OF_THE_RECIPE],
    text: Annotated[TextOptions, OF_THE_RECIPE],
    machine: MachineOptions,
    result: ResultOptions,
    model: Annotated[str | None, option("MODEL", "Hub id or folder.", "as the recipe names it")] = None,
    no_speed: NoSpeedOption = False,
    seed: Annotated[SeedOption, OF_THE_RECIPE] = None,
) -> None:
    """Run a recipe from end to end."""
    speed = False if no_speed else None
    chosen = with_options(recipe, model=model, speed=speed, seed=seed, **given(budget, text))
    run_recipe(chosen, out, machine, result)
