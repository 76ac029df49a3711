"""v(S) by the answers to tasks: 1 - accuracy of the model without a set of units, the mean over tasks.

Source of the idea: Investigating Layer Importance (arXiv 2409.14381), whose values are accuracies. Accuracy moves in steps of
one item, so a hundred items cannot tell apart sets that differ by less than 0.01; and what is chosen on the items of a task
says nothing about how well the student does on these same items.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.engine.workers import ALONE, Workers
from shoal.evaluate.tasks.answers import TaskAnswers
from shoal.evaluate.tasks.choice import score_task
from shoal.evaluate.tasks.task_files import Task
from shoal.measure.set_function import CountedSets, UnitSet
from shoal.measure.task_metric import TASK
from shoal.measure.value_file import ValueFile
from shoal.text.samples import tokenizer_hash
from shoal.words.types import Unit

MOST_TOGETHER = 64
"""Sets that share one reading of the items."""


def task_function(
    view: DecoderView,
    tasks: Sequence[Task],
    units: Sequence[Unit],
    *,
    tokenizer: object,
    window: int | None = None,
    limit: int | None = None,
    folder: Path | None = None,
    model_hash: str = "",
    workers: Workers = ALONE,
    progress: Callable[[int, int], None] | None = None,
) -> CountedSets:
    """1 - accuracy without sets of units, the mean over tasks of choices or last words.

    Args:
        tasks: one or more; each counts alike, whatever its number of items.
        window: longest input in tokens.
        limit: most sets to be measured.
        folder: where values are kept across processes, under ``model_hash`` and the hashes of tokenizer and items.
        workers: the first of them answers, for all.
        progress: called with (batches done, batches in all) of one task.
    Raises:
        ValueError: no task, one of written answers, or a folder without a hash of the model.
    """
    if not tasks:
        raise ValueError("there is no task to compare sets on; give one task or more")
    refuse_written(tasks)
    if folder is not None and not model_hash:
        raise ValueError("values that are kept in a folder need the hash of their model: pass model_hash")

    def measure(sets: Sequence[UnitSet]) -> list[float]:
        losses = []
        for start in range(0, len(sets), MOST_TOGETHER):
            students = [Student(removed=one) for one in sets[start : start + MOST_TOGETHER]]
            answers = [
                score_task(view, task, tokenizer=tokenizer, students=students, window=window, progress=progress)
                for task in tasks
            ]
            losses += [fmean(1 - _accuracy(one) for one in of_set) for of_set in zip(*answers, strict=True)]
        return losses

    items = sorted((task.name, task.data_hash) for task in tasks)
    about = {"model": model_hash, "tokenizer": tokenizer_hash(tokenizer), "metric": TASK, "tasks": items, "window": window}
    file = None if folder is None else ValueFile(folder, about, workers=workers)
    return CountedSets(lambda sets: workers.from_first(lambda: measure(sets)), units, limit=limit, file=file)


def refuse_written(tasks: Sequence[Task]) -> None:
    """Raises ValueError for a task whose answers are written: what they are worth is not counted item by item here."""
    for task in tasks:
        if task.form == "generation":
            raise ValueError(
                f"task {task.name!r} asks for written answers; sets are compared on tasks of choices or last words"
            )


def _accuracy(found: TaskAnswers) -> float:
    answers = found.counted.items
    return sum(one.chosen == one.gold for one in answers) / len(answers)
