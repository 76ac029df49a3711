"""The verb ``scan``."""

import shlex

from shoal.cli.groups import MachineOptions, ResultOptions, SampleOptions, TextOptions
from shoal.cli.options import ByOption, ModelOption, ObserveOption, OutOption
from shoal.cli.recipe_options import with_options
from shoal.cli.verb import command_line, given, verb


@verb
def scan(
    model: ModelOption,
    out: OutOption,
    text: TextOptions,
    sampling: SampleOptions,
    machine: MachineOptions,
    result: ResultOptions,
    by: ByOption = None,
    observe: ObserveOption = None,
) -> None:
    """Measure every span of layers in one pass: scan.json, scan.safetensors, heat map."""
    from shoal.cli.console import FIRST_STAGE, steps_said
    from shoal.cli.show import HEAT_MAP, say_beside, say_files
    from shoal.run.begin import open_to_choose
    from shoal.run.stage import State, run_stage
    from shoal.run.stages.scan import SCAN
    from shoal.show.plan_tables import best_spans, telling_lengths

    screen = result.screen()
    chosen = with_options("default", model=model, by=by, observers=observe, **given(text, sampling))
    with screen.progress():
        inputs, folder = open_to_choose(
            chosen, out, machine.opening, overwrite=result.overwrite, command=command_line(), say=screen.say
        )
    say_beside(screen, inputs.opened.beside)
    with screen.progress(FIRST_STAGE):
        found = run_stage(SCAN, State(inputs), folder).scan
    assert found is not None, "the recipe default reads a scan"
    screen.show(best_spans(found, lengths=telling_lengths(max(1, found.n_layers - 1))))
    say_files(screen, out, ("scan", "scan.json"), HEAT_MAP)
    for line in steps_said({"choose layers": f"shoal plan {shlex.quote(str(out))} --drop 25%"}):
        screen.say(line)
    screen.result({"scan": str(out / "scan.json"), "provenance": found.provenance.model_dump(mode="json")})
