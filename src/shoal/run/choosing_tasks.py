"""A choice by answers to tasks: the files that a recipe names, the set function that asks them, and what records say of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shoal.evaluate.tasks.task_files import Task
from shoal.evaluate.tasks.task_loss import refuse_written, task_function
from shoal.measure.set_function import CountedSets
from shoal.recipes.recipe import Recipe
from shoal.run.asked_tasks import task_files
from shoal.run.job import Inputs, window_of
from shoal.select.request import Request
from shoal.words.progress import tell
from shoal.words.records import stable_hash


@dataclass(frozen=True)
class SearchedData:
    """What sets are run on: ``name`` and ``hash`` of the text or the items; ``n_tokens`` of the text, 0 where there is none."""

    name: str
    hash: str
    n_tokens: int = 0

    def __str__(self) -> str:
        return f"{self.n_tokens:,} tokens" if self.n_tokens else self.name


def tasks_of(recipe: Recipe) -> list[Task]:
    """The tasks that a recipe chooses by, read.

    Raises:
        ValueError: a file that cannot be read, that is no task, that has the name of another, or whose answers are written.
    """
    tasks = task_files(recipe.search.tasks, n_items=recipe.search.items)
    refuse_written(tasks)
    return tasks


def items_read(recipe: Recipe) -> SearchedData:
    """``12 items of arc, 20 items of piqa``."""
    tasks = tasks_of(recipe)
    named = ", ".join(f"{len(task.items):,} items of {task.name}" for task in tasks)
    return SearchedData(named, stable_hash([task.data_hash for task in tasks]))


def task_sets_of(inputs: Inputs, request: Request, *, folder: Path, limit: int | None = None) -> CountedSets:
    """v(S) over the units that may go, by the answers to the recipe's tasks; values are kept in ``folder``.

    Raises:
        ValueError: a file that is no task, or whose items cannot be scored.
    """
    tasks = tasks_of(inputs.recipe)
    return task_function(
        inputs.view,
        tasks,
        request.free_units,
        tokenizer=inputs.opened.need_tokenizer(),
        window=window_of(inputs.view.config),
        limit=limit,
        folder=folder,
        model_hash=inputs.model_key,
        workers=inputs.workers,
        progress=partial(tell, f"{request.selector} by answers to {', '.join(task.name for task in tasks)}"),
    )
