"""Whether a recipe chooses by answers to tasks, and what does not go with that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shoal.measure.task_metric import TASK
from shoal.select.table import SELECTORS

if TYPE_CHECKING:
    from shoal.recipes.recipe import Recipe


def asks_tasks(recipe: Recipe) -> bool:
    """Whether its selector runs sets of units on tasks, or its score of units does."""
    if recipe.is_by_hand:
        return False
    reads = SELECTORS.named(recipe.select).reads
    return "values" in reads and recipe.search.metric == TASK or "tables" in reads and recipe.by.endswith(f"_{TASK}")


def task_conflicts(recipe: Recipe) -> Iterator[str]:
    """Tasks that nobody asks, a choice by tasks without any, and selectors that compare states or refit in between."""
    selector = SELECTORS.named(recipe.select)
    by_task = recipe.search.metric == TASK and not recipe.is_by_hand
    if by_task and ("weights" in selector.reads or selector.refits):
        yield f"--select {recipe.select} compares students on text; choose another --metric than {TASK}"
    elif asks_tasks(recipe) and not recipe.search.tasks:
        what = f"--by {recipe.by}" if recipe.by.endswith(f"_{TASK}") else f"--metric {TASK}"
        yield f"{what} asks tasks, and none is named; give --task FILE (search.tasks in a recipe)"
    elif recipe.search.tasks and not asks_tasks(recipe):
        yield (
            f"{recipe.search.tasks[0]} is a task to choose by: --metric {TASK} of a selector that runs the model reads it, or "
            f"a score such as windowed_{TASK}; leave out --task, or use --select lowest --by windowed_{TASK}"
        )
