"""The verb ``compare``."""

from __future__ import annotations

from typing import Annotated

from shoal.cli.early import model_argument
from shoal.cli.groups import EvaluationOptions, PlaceOptions, TaskOptions, TextOptions
from shoal.cli.options import JsonOption
from shoal.cli.recipe_options import with_options
from shoal.cli.verb import given, verb


@verb
def compare(
    models: Annotated[
        list[str],
        model_argument("A B [C...]", "Folders, hub ids, or run folders (their model/); A is the reference."),
    ],
    tasks: TaskOptions,
    text: TextOptions,
    reading: EvaluationOptions,
    place: PlaceOptions,
    json: JsonOption = False,
) -> None:
    """Compare any models in one table, on the same text and the same items."""
    chosen = with_options("default", **given(text), **reading.given())

    from shoal.cli.console import Screen
    from shoal.run.begin import say_text
    from shoal.run.comparing import compare_models
    from shoal.show.figure_tables import comparison

    screen = Screen(as_json=json)
    with screen.working("read the tasks"):
        asked = tasks.open()
    say_text(chosen, screen.say)
    if asked:
        screen.say(str(asked))
    with screen.progress():
        found = compare_models(models, recipe=chosen, tasks=asked, opening=place.spread)
    screen.show(comparison(found))
    screen.result(found.model_dump(mode="json"))
