"""The verb ``compare``."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal.cli.options import (
    Device,
    Dtype,
    Engine,
    EvaluationSamples,
    Include,
    Items,
    Json,
    Length,
    Remote,
    Seed,
    Shots,
    TaskNames,
    TextOption,
    with_options,
)
from shoal.cli.show import say_text


def compare(
    models: Annotated[
        list[str],
        typer.Argument(metavar="A B [C...]", help="Folders, hub ids, or run folders (their model/); A is the reference."),
    ],
    task: TaskNames = None,
    engine: Engine = "auto",
    shots: Shots = None,
    items: Items = None,
    include: Include = None,
    text: TextOption = None,
    samples: EvaluationSamples = None,
    length: Length = None,
    seed: Seed = None,
    device: Device = "cpu",
    dtype: Dtype = None,
    trust_remote_code: Remote = False,
    json: Json = False,
) -> None:
    """Compare any models in one table, on the same text and the same items."""
    from shoal.cli.console import Screen
    from shoal.evaluate import comparison_notes, comparison_table
    from shoal.run.compare import compare_models
    from shoal.run.tasks import open_tasks

    screen = Screen(as_json=json)
    tasks = open_tasks(task or (), engine=engine, shots=shots, n_items=items, include=include)
    chosen = with_options("default", text=text, evaluation=samples, length=length, seed=seed)
    say_text(screen, chosen)
    if tasks:
        screen.say(str(tasks))
    with screen.progress():
        found = compare_models(
            models,
            recipe=chosen,
            tasks=tasks,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            progress=screen.step,
        )
    screen.show(comparison_table(found))
    for note in comparison_notes(found):
        screen.say(note)
    screen.result(found.model_dump(mode="json"))
