"""The verb ``eval``."""

from __future__ import annotations

from typing import Annotated

from shoal.cli.groups import EvaluationOptions, PlaceOptions, TaskOptions, TextOptions
from shoal.cli.option import flag, option
from shoal.cli.options import JsonOption, ModelOption, NoSpeedOption
from shoal.cli.recipe_options import with_options
from shoal.cli.verb import given, verb


@verb
def evaluate(
    model: ModelOption,
    tasks: TaskOptions,
    text: TextOptions,
    reading: EvaluationOptions,
    place: PlaceOptions,
    teacher: Annotated[
        str | None, option("MODEL", "Reference model, for all that compares two.", "none, MODEL is measured alone")
    ] = None,
    whole: Annotated[
        bool, flag("--whole", "Read all of the text, not a slice of it, and state the perplexity as papers do, too.")
    ] = False,
    no_speed: NoSpeedOption = False,
    json: JsonOption = False,
) -> None:
    """Measure a model: perplexity, cost and tasks, and against a teacher KL, agreement, generations, speed, stability."""
    from shoal.run.folder import checkpoint_of

    if whole and reading.samples is not None:
        raise ValueError("--samples takes a part of the text and --whole all of it; give one of them")
    if no_speed and teacher is None:
        raise ValueError("--no-speed is about teacher and student, and one model alone is not timed; leave it out")
    model, teacher = checkpoint_of(model), teacher and checkpoint_of(teacher)
    speed = False if no_speed else None
    chosen = with_options("default", model=teacher or model, speed=speed, **given(text), **reading.given())

    from shoal.cli.console import Screen
    from shoal.cli.show import show_tasks
    from shoal.run.begin import say_text
    from shoal.run.measuring import evaluate_alone, evaluate_pair
    from shoal.show.figure_tables import figures, figures_alone, generations, positions
    from shoal.show.task_tables import accuracy_alone

    screen = Screen(as_json=json)
    with screen.working("read the tasks"):
        asked = tasks.open()
    if whole and reading.seed is not None and not asked:
        raise ValueError("--seed orders the text, and --whole reads all of it in its own order; leave out one of them")
    say_text(chosen, screen.say)
    if asked:
        screen.say(str(asked))
    with screen.progress():
        if teacher is None:
            alone = evaluate_alone(chosen, tasks=asked, whole=whole, opening=place.spread)
        else:
            found = evaluate_pair(chosen, model, tasks=asked, whole=whole, opening=place.spread)
    if teacher is None:
        screen.show(figures_alone(alone))
        if alone.tasks:
            screen.show(accuracy_alone(alone.tasks))
        screen.result(alone.model_dump(mode="json"))
        return
    screen.show(figures(found))
    if found.by_position is not None:
        screen.show(positions(found.by_position))
    screen.show(generations(found.generations))
    show_tasks(screen, found)
    screen.result(found.model_dump(mode="json"))
