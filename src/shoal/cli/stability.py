"""The verb ``stability``."""

from pathlib import Path
from typing import Annotated

from shoal.cli.console import Screen
from shoal.cli.option import argument, option
from shoal.cli.options import JsonOption
from shoal.cli.verb import verb


@verb
def stability(
    teacher: Annotated[Path, argument("TEACHER", "Folder of OpenCompass predictions or lm-eval logs.")],
    student: Annotated[Path, argument("STUDENT", "The same of the compressed model.")],
    seed: Annotated[int, option("N", "Resamples of the intervals.", min=0)] = 0,
    json: JsonOption = False,
) -> None:
    """Compare answers that another evaluator wrote: stability, agreement, flips."""
    from shoal.evaluate.tasks.answer_files import stability_of_files

    screen = Screen(as_json=json)
    with screen.working("compare the answers"):
        found = stability_of_files(teacher, student, seed=seed)

    from shoal.cli.show import show_flips  # These import torch, which what cannot be compared does not wait for.
    from shoal.show.task_tables import stabilities

    screen.show(stabilities(found.tasks, found.official))
    show_flips(screen, found.tasks)
    screen.result({"tasks": [one.model_dump(mode="json") for one in found.tasks], "official_script": found.official})
