"""The verb ``compress``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from shoal.cli.groups import MachineOptions, ResultOptions
from shoal.cli.options import ModelOption, NoSpeedOption, OutOption, TimeOption
from shoal.cli.recipe_groups import HealingOptions, MethodOptions, RecipeOptions, ZeroOptions
from shoal.cli.recipe_options import with_options
from shoal.cli.verb import command_line, given, verb

if TYPE_CHECKING:
    from shoal.recipes.recipe import Recipe
    from shoal.train.heal.config import HealConfig


@verb
def compress(
    model: ModelOption,
    out: OutOption,
    options: RecipeOptions,
    method: MethodOptions,
    *,
    time: TimeOption = None,
    zeros: ZeroOptions,
    healing: HealingOptions,
    machine: MachineOptions,
    no_speed: NoSpeedOption = False,
    result: ResultOptions,
) -> None:
    """Remove layers, repair the cut, train it for a moment, measure what was lost, save a checkpoint for plain transformers.

    The best cuts of several scores, four by default, are repaired on a part of the text and compared before one is chosen; with
    --guard 1 none is, and --effort low compares two. Behind the repair the student learns from the teacher's logits where both
    fit into memory; --heal none leaves that out. The first lines of a run say how long each stage takes on this machine.
    """
    speed = False if no_speed else None
    chosen = with_options(method.name, model=model, speed=speed, **given(options, zeros, healing))
    # Only now what imports torch: a wrong option is refused at once.
    from shoal.run.optional_healing import spare_healing

    spare = None if healing.heal.heal == "none" else spare_healing(chosen)
    run_recipe(chosen, out, machine, result, seconds=time, spare=spare)


def run_recipe(
    chosen: Recipe,
    out: Path,
    machine: MachineOptions,
    result: ResultOptions,
    *,
    seconds: float | None = None,
    spare: HealConfig | None = None,
) -> None:
    """A recipe from its first refusal to its tables: what ``compress``, ``run`` and ``demo`` do.

    Args:
        seconds: what ``--time`` gives.
        spare: the healing that time which is left may go to where the recipe asks for none.
    """
    from shoal.cli.console import FIRST_STAGE
    from shoal.cli.show import settle_time, show_outcome
    from shoal.run.begin import open_to_cut
    from shoal.run.compress import run_stages
    from shoal.run.optional_healing import without_healing

    screen = result.screen()
    if seconds is not None:
        chosen = without_healing(chosen)  # The time decides whether it heals, and for how long.
    with screen.progress():
        inputs, folder = open_to_cut(
            chosen, out, machine.opening, overwrite=result.overwrite, command=command_line(), say=screen.say
        )
        with folder.unless_refused():
            inputs = settle_time(screen, inputs, folder, seconds=seconds, spare=spare)
    with screen.progress(FIRST_STAGE):
        outcome = run_stages(inputs, folder, command=command_line())
    show_outcome(screen, outcome)
