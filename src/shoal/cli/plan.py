"""The verb ``plan``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from shoal.cli.early import model_argument
from shoal.cli.groups import MachineOptions, ResultOptions
from shoal.cli.option import flag, option
from shoal.cli.recipe_groups import MethodOptions, RecipeOptions
from shoal.cli.recipe_options import refuse_unopened, with_options
from shoal.cli.verb import command_line, given, verb

if TYPE_CHECKING:
    from shoal.cli.console import Screen
    from shoal.edits.plan import Plan
    from shoal.measure.scan import Asked
    from shoal.recipes.recipe import Recipe


@verb
def plan(
    target: Annotated[str, model_argument("DIR|MODEL", "A run folder with a scan, or a model to scan first.")],
    options: RecipeOptions,
    method: MethodOptions,
    machine: MachineOptions,
    result: ResultOptions,
    out: Annotated[Path | None, option("DIR", "Run folder; needed for a model.", "the DIR that is given")] = None,
    memory: Annotated[bool, flag("--memory", "Say what every stage of compress will take; run nothing.")] = False,
) -> None:
    """Choose what to remove: plan.json, readable and editable by hand.

    The best cuts of several scores, four by default, are repaired on a part of the text and compared before one is chosen; the
    first lines say how long that takes on this machine. With --guard 1 none is repaired: the score's first choice stands, after
    the scan.
    """
    screen = result.screen()
    model, asked, folder = scanned(target)
    out = out or folder
    chosen = with_options(method.name, asked=asked, model=model, **given(options))
    # Only now what imports torch: a wrong option is refused at once.
    from shoal.cli.console import steps_said
    from shoal.cli.show import say_files, say_removed, say_spread
    from shoal.show.plan_tables import candidates, sizes_said

    if memory:
        return show_memory(screen, chosen, machine, out)
    if out is None:
        raise ValueError(f"{target} is not a run folder with a scan; for a model give --out DIR as well")
    made = choose(screen, chosen, out, options, machine, result)
    if len(made.candidates) > 1:
        screen.show(candidates(made.candidates, n_layers=made.n_layers))
    say_spread(screen, made)
    screen.say(f"Plan: {made} ({sizes_said(made)})")
    say_removed(screen, made)
    say_files(screen, out, ("plan", "plan.json"), ("scores", "scores.json"), ("search", "search.json"))
    where = shlex.quote(str(out))
    steps = {"write the cut": f"shoal apply {where}/plan.json --out {where}-cut"}
    if model.endswith(".gguf") and made.is_pure_removal:
        steps["cut the file"] = f"shoal cut {shlex.quote(model)} --plan {where}/plan.json --out {where}-cut.gguf"
    for line in steps_said(steps):
        screen.say(line)
    screen.result(made.model_dump(mode="json"))


def scanned(target: str) -> tuple[str, Asked | None, Path | None]:
    """The model that is meant; for a run folder also what its scan was asked for, and the folder."""
    if not is_run_folder(target):
        return target, None, None
    from shoal.measure.scan import Scan

    found = Scan.load(Path(target))
    return found.provenance.model, found.asked, Path(target)


def is_run_folder(target: str) -> bool:
    """Whether a name is a folder with a scan."""
    try:
        return (Path(target) / "scan.json").exists()
    except (OSError, ValueError):  # No file can have such a name.
        return False


def show_memory(screen: Screen, chosen: Recipe, machine: MachineOptions, out: Path | None) -> None:
    """What every stage will take."""
    from shoal.run.memory_plan.needs import needs_of, needs_table

    with screen.working("look at the model"):
        needs = needs_of(chosen, machine.opening, out=out)
    screen.show(needs_table(needs))
    screen.result(needs.model_dump(mode="json"))


def choose(
    screen: Screen, chosen: Recipe, out: Path, options: RecipeOptions, machine: MachineOptions, result: ResultOptions
) -> Plan:
    """The plan: by a scan and what the recipe runs, or, where nothing needs the model, from its config and names alone."""
    from shoal.cli.console import FIRST_STAGE
    from shoal.cli.show import say_beside, say_candidates, say_time
    from shoal.run.asking import needs_model
    from shoal.run.begin import open_to_choose, open_unopened
    from shoal.run.pace import Pace, measure_rates
    from shoal.run.refusals import check_budget
    from shoal.run.stage import State, run_all
    from shoal.run.stages.choose import CHOOSE
    from shoal.run.stages.scan import SCAN
    from shoal.run.unopened import plan_unopened

    place = machine.place
    if not needs_model(chosen):
        refuse_unopened({**given(options), "dtype": place.dtype}, device=place.device, resident=machine.resident)
        folder = open_unopened(chosen, out, overwrite=result.overwrite, command=command_line())
        with folder.unless_refused(), screen.working("look at the model"):
            return plan_unopened(chosen, folder, trust_remote_code=place.trust_remote_code)
    with screen.progress():
        inputs, folder = open_to_choose(
            chosen, out, machine.opening, overwrite=result.overwrite, command=command_line(), say=screen.say
        )
    say_beside(screen, inputs.opened.beside)
    with folder.unless_refused(), screen.working("look at the layers"):
        check_budget(inputs)
    if not inputs.is_streamed:  # The time of such a run is that of the disk.
        with screen.working("measure the pace"):
            rates = measure_rates(inputs)
        say_time(screen, Pace(inputs, rates), folder, (SCAN, CHOOSE))
    say_candidates(screen, inputs.recipe)
    with screen.progress(FIRST_STAGE):
        return run_all((SCAN, CHOOSE), State(inputs), folder).planned
