"""v(S) by the answers to a task: 1 - accuracy of the model without a set of units.

Source of the idea: Investigating Layer Importance (arXiv 2409.14381), whose values are accuracies. Accuracy moves in steps of
one item, so a hundred items cannot tell apart sets that differ by less than 0.01; and what is chosen on the items of a task
says nothing about how well the student does on these same items.
"""

from collections.abc import Sequence
from pathlib import Path

from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.evaluate.tasks.answers import TaskAnswers
from shoal.evaluate.tasks.choice import score_task
from shoal.evaluate.tasks.task_files import Task
from shoal.measure.set_function import CountedSets, UnitSet
from shoal.measure.value_file import ValueFile
from shoal.words.types import Unit

MOST_TOGETHER = 64
"""Sets that share one reading of the items."""


def task_function(
    view: DecoderView,
    task: Task,
    units: Sequence[Unit],
    *,
    tokenizer: object,
    window: int | None = None,
    limit: int | None = None,
    folder: Path | None = None,
    model_hash: str = "",
) -> CountedSets:
    """1 - accuracy on a task of choices or last words without sets of units.

    Args:
        window: longest input in tokens.
        limit: most sets to be measured.
        folder: where values are kept across processes, under ``model_hash`` and the hash of the items.
    Raises:
        ValueError: a task of written answers, or a folder without a hash of the model.
    """
    if task.form not in ("choice", "last_word"):
        raise ValueError(f"task {task.name!r} asks for written answers; sets are compared on tasks of choices or last words")
    if folder is not None and not model_hash:
        raise ValueError("values that are kept in a folder need the hash of their model: pass model_hash")

    def measure(sets: Sequence[UnitSet]) -> list[float]:
        losses = []
        for start in range(0, len(sets), MOST_TOGETHER):
            students = [Student(removed=one) for one in sets[start : start + MOST_TOGETHER]]
            found = score_task(view, task, tokenizer=tokenizer, students=students, window=window)
            losses += [1 - _accuracy(one) for one in found]
        return losses

    about = {"model": model_hash, "metric": "task", "task": task.name, "text": task.data_hash, "window": window}
    file = None if folder is None else ValueFile(folder, about)
    return CountedSets(measure, units, limit=limit, file=file)


def _accuracy(found: TaskAnswers) -> float:
    answers = found.counted.items
    return sum(one.chosen == one.gold for one in answers) / len(answers)
