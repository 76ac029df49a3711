"""The verbs that measure: ``eval`` and ``stability``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

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
    ModelOption,
    NoSpeedOption,
    RemoteOption,
    SeedOption,
    ShotsOption,
    TaskOption,
    TextOption,
    with_options,
)
from shoal.cli.show import say_text, show_flips, show_tasks


def evaluate(
    model: ModelOption,
    teacher: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--teacher", help="Reference model, for all that compares two; without it MODEL is measured alone."),
    ] = None,
    task: TaskOption = None,
    shots: ShotsOption = None,
    items: ItemsOption = None,
    include: IncludeOption = None,
    text: TextOption = None,
    field: FieldOption = None,
    samples: EvaluationSamplesOption = None,
    whole: Annotated[
        bool,
        typer.Option("--whole", help="Read all of the text, not a slice of it, and state the perplexity as papers do, too."),
    ] = False,
    length: LengthOption = None,
    no_speed: NoSpeedOption = False,
    seed: SeedOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    trust_remote_code: RemoteOption = False,
    json: JsonOption = False,
) -> None:
    """Measure a model: perplexity, cost and tasks, and against a teacher KL, agreement, generations, speed, stability."""
    from shoal.cli.console import Screen
    from shoal.run.asked_tasks import open_tasks
    from shoal.run.comparing import checkpoint_of
    from shoal.run.measuring import evaluate_alone, evaluate_pair
    from shoal.show.figure_tables import figures, figures_alone, generations, positions
    from shoal.show.task_tables import accuracy_alone

    screen = Screen(as_json=json)
    tasks = open_tasks(task or (), shots=shots, n_items=items, include=include)
    model, teacher = checkpoint_of(model), teacher and checkpoint_of(teacher)
    chosen = with_options(
        "default",
        model=teacher or model,
        text=text,
        field=field,
        evaluation=samples,
        length=length,
        seed=seed,
        speed=False if no_speed else None,
    )
    if whole and samples is not None:
        raise ValueError("--samples takes a part of the text and --whole all of it; give one of them")
    if no_speed and teacher is None:
        raise ValueError("--no-speed is about teacher and student, and one model alone is not timed; leave it out")
    say_text(screen, chosen)
    if tasks:
        screen.say(str(tasks))
    with screen.progress():
        if teacher is None:
            alone = evaluate_alone(
                chosen,
                tasks=tasks,
                whole=whole,
                device=device,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                progress=screen.step,
            )
        else:
            found = evaluate_pair(
                chosen,
                model,
                tasks=tasks,
                whole=whole,
                device=device,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                progress=screen.step,
            )
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


def stability(
    teacher: Annotated[Path, typer.Argument(metavar="TEACHER", help="Folder of OpenCompass predictions or lm-eval logs.")],
    student: Annotated[Path, typer.Argument(metavar="STUDENT", help="The same of the compressed model.")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Resamples of the intervals.")] = 0,
    json: JsonOption = False,
) -> None:
    """Compare answers that another evaluator wrote: stability, agreement, flips."""
    from shoal.cli.console import Screen
    from shoal.run.asked_tasks import stability_of_files
    from shoal.show.task_tables import stabilities

    screen = Screen(as_json=json)
    found = stability_of_files(teacher, student, seed=seed)
    screen.show(stabilities(found.tasks, found.official))
    show_flips(screen, found.tasks)
    screen.result({"tasks": [one.model_dump(mode="json") for one in found.tasks], "official_script": found.official})
