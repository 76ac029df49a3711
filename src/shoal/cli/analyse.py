"""The verb ``analyse``."""

from pathlib import Path
from typing import Annotated

from shoal.cli.early import model_argument
from shoal.cli.groups import EvaluationOptions, PlaceOptions, ResultOptions, TextOptions
from shoal.cli.option import option
from shoal.cli.options import OutOption
from shoal.cli.recipe_options import with_options
from shoal.cli.verb import command_line, given, verb


@verb
def analyse(
    model: Annotated[str, model_argument("A", "Folder, hub id, or run folder (its model/).")],
    other: Annotated[
        str | None,
        model_argument(
            "[B]",
            "Another checkpoint of the same shape, such as the healed one of a cut: barriers and the way between the two.",
        ),
    ] = None,
    *,
    out: OutOption,
    at: Annotated[
        float | None,
        option("T", "Write the checkpoint that far from A (0) to B (1) into model/, reloaded and checked.", "none is written"),
    ] = None,
    text: TextOptions,
    reading: EvaluationOptions,
    place: PlaceOptions,
    result: ResultOptions,
) -> None:
    """Look at layers as directions in weight space: each on its way out, what a linear read-out sees, and barriers to B.

    The page has the charts; all figures are in landscape.json. Every layer is measured at four points of its way out, so the
    text is run four times for each; --samples sets how much text that is.
    """
    chosen = with_options("default", model=model, **given(text), **reading.given())

    from shoal.run.analysing import LANDSCAPE, PAGE
    from shoal.run.analysing import analyse as look
    from shoal.run.begin import say_text
    from shoal.show.landscape_views import blend_said, removal_table, warning

    screen = result.screen()
    say_text(chosen, screen.say)
    with screen.progress():
        found = look(
            model,
            Path(out),
            other=other,
            at=at,
            recipe=chosen,
            opening=place.opening,
            overwrite=result.overwrite,
            command=command_line(),
        )
    if found.removal:
        screen.show(removal_table(found))
    screen.say(warning(found))
    if found.barriers:
        whole = found.barrier("all")[0]
        highest = max(found.barrier("layer"), key=lambda one: one.of_models)
        screen.say(
            f"Barrier of everything {whole.of_models:+.4g} nats per token, of one layer at most {highest.of_models:+.4g} "
            f"(layer {highest.n})"
        )
        screen.say(f"Between the two: {blend_said(found.blend)}")
    if at is not None:
        screen.say(f"checkpoint: {out / 'model'} ({at:g} of the way)")
    screen.say(f"figures:    {out / LANDSCAPE}")
    screen.say(f"report:     {out / PAGE}")
    screen.result(found.model_dump(mode="json"))
