"""The verb ``compare``."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal.cli.options import (
    DeviceOption,
    DtypeOption,
    EvaluationSamplesOption,
    FieldOption,
    IncludeOption,
    ItemsOption,
    JsonOption,
    LengthOption,
    RemoteOption,
    SeedOption,
    ShotsOption,
    TaskOption,
    TextOption,
    with_options,
)
from shoal.cli.show import say_text


def compare(
    models: Annotated[
        list[str],
        typer.Argument(metavar="A B [C...]", help="Folders, hub ids, or run folders (their model/); A is the reference."),
    ],
    task: TaskOption = None,
    shots: ShotsOption = None,
    items: ItemsOption = None,
    include: IncludeOption = None,
    text: TextOption = None,
    field: FieldOption = None,
    samples: EvaluationSamplesOption = None,
    length: LengthOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    trust_remote_code: RemoteOption = False,
    json: JsonOption = False,
) -> None:
    """Compare any models in one table, on the same text and the same items."""
    from shoal.cli.console import Screen
    from shoal.run.asked_tasks import open_tasks
    from shoal.run.comparing import compare_models
    from shoal.show.figure_tables import comparison

    screen = Screen(as_json=json)
    tasks = open_tasks(task or (), shots=shots, n_items=items, include=include)
    chosen = with_options("default", text=text, field=field, evaluation=samples, length=length, seed=seed)
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
    screen.show(comparison(found))
    screen.result(found.model_dump(mode="json"))
