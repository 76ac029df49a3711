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
    """Remove layers, repair the cut, measure what was lost, save a checkpoint for plain transformers.

    The best cuts of several scores, four by default, are repaired on a part of the text and compared before one is chosen. That
    takes 38 s for the bundled model of 8 M parameters on two cores, and the first lines say how long each stage takes here.
    With --guard 1 none is repaired before the choice; --effort low compares two.
    """
    speed = False if no_speed else None
    chosen = with_options(method.name, model=model, speed=speed, **given(options, zeros, healing))
    run_recipe(chosen, out, machine, result, time=time, heals=healing.heal.heal != "none")


def run_recipe(
    chosen: Recipe, out: Path, machine: MachineOptions, result: ResultOptions, *, time: str | None = None, heals: bool = True
) -> None:
    """A recipe from its first refusal to its tables: what ``compress``, ``run`` and ``demo`` do.

    Args:
        heals: whether time that is left may heal where the recipe does not ask for it.
    """
    from shoal.cli.show import settle_time, show_outcome
    from shoal.run.begin import open_to_cut
    from shoal.run.compress import run_stages
    from shoal.run.optional_healing import without_healing
    from shoal.run.time_budget import parse_time

    screen = result.screen()
    seconds = None if time is None else parse_time(time)
    if seconds is not None:
        chosen = without_healing(chosen)  # The time decides whether it heals, and for how long.
    with screen.progress():
        inputs, folder = open_to_cut(
            chosen, out, machine.opening, overwrite=result.overwrite, command=command_line(), say=screen.say
        )
        with folder.unless_refused():
            inputs = settle_time(screen, inputs, folder, seconds=seconds, heals=heals)
    with screen.progress():
        outcome = run_stages(inputs, folder, command=command_line())
    show_outcome(screen, outcome)
