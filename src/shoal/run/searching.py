"""The set function of a run: its model, its metric, a part of its calibration text or tasks; values are kept in the run folder.

A run that was killed inside a search finds there what it had measured. ``search.json`` says how the search went.
"""

from __future__ import annotations

import math
from dataclasses import replace

from shoal.measure.removals import RemovalLosses, hash_of_tokens, removal_function
from shoal.measure.set_function import CountedSets, UnitSet, as_compared
from shoal.measure.task_metric import TASK
from shoal.measure.value_file import ValueFile
from shoal.recipes.recipe import Recipe
from shoal.run.candidate_repair import refit_without
from shoal.run.choosing_tasks import SearchedData, items_read, task_sets_of
from shoal.run.folder import RunFolder
from shoal.run.job import Inputs
from shoal.run.refitted_sets import RefittedSets
from shoal.select.proposals import search_beside
from shoal.select.request import Request
from shoal.select.search.search_record import SearchRecord
from shoal.select.table import SELECTORS
from shoal.text.samples import Samples
from shoal.words.progress import each_batch

VALUES_FOLDER, SEARCH_FILE = "search", "search.json"

METRIC_BESIDE, TOKENS_BESIDE = "kl", 1_024
"""Of the search that competes with a selector of scores. On SmolLM2-135M greedy goes the same way on 512 tokens and on 1,024
for fourteen layers of thirty (docs/decisions/0018)."""


def runs_the_model(recipe: Recipe) -> bool:
    """Whether the selector asks the set function."""
    return not recipe.is_by_hand and "values" in SELECTORS.named(recipe.select).reads


def searched_text(inputs: Inputs, *, n_tokens: int | None = None) -> Samples:
    """The first samples of the calibration slice that hold the tokens of the search; one sample at least.

    Args:
        n_tokens: in place of the recipe's.
    """
    samples, n_tokens = inputs.calibration, n_tokens or inputs.recipe.search.tokens
    return samples.take(max(1, min(samples.n_samples, n_tokens // samples.length)))


def search_in_use(recipe: Recipe, request: Request) -> tuple[str, str, int]:
    """Selector, metric and tokens of the search that a run makes: the one that was asked for, or the one that competes."""
    if (beside := search_beside(request)) is not None:
        return beside, METRIC_BESIDE, TOKENS_BESIDE
    return recipe.select, recipe.search.metric, recipe.search.tokens


def set_function_of(
    inputs: Inputs,
    request: Request,
    *,
    folder: RunFolder,
    metric: str | None = None,
    limit: int | None = None,
    n_tokens: int | None = None,
) -> CountedSets:
    """v(S) over the units that may go, with what an earlier run of the same folder measured.

    Args:
        metric, n_tokens: in place of the recipe's.
        limit: most sets that may be asked for.
    """
    metric = metric or inputs.recipe.search.metric
    if metric == TASK:
        return task_sets_of(inputs, request, folder=folder / VALUES_FOLDER, limit=limit)
    samples = searched_text(inputs, n_tokens=n_tokens)
    batches = inputs.batches(samples)
    return removal_function(
        inputs.view,
        batches,
        request.free_units,
        metric=metric,
        limit=limit,
        folder=folder / VALUES_FOLDER,
        about={"model": inputs.model_key, "data": samples.data_hash},
        workers=inputs.workers,
        after_batch=each_batch(f"{request.selector} by {metric}", len(batches)),
    )


def searched_data(inputs: Inputs, metric: str, *, n_tokens: int | None = None) -> SearchedData:
    """What sets are run on by a metric, for records: so much of the text, or the items of the recipe's tasks."""
    if metric == TASK:
        return items_read(inputs.recipe)
    samples = searched_text(inputs, n_tokens=n_tokens)
    return SearchedData(samples.data, samples.data_hash, samples.n_tokens)


def refitted_sets_of(inputs: Inputs, request: Request, *, folder: RunFolder) -> RefittedSets:
    """As :func:`set_function_of` in a student that is refitted after every round of a search."""
    search, batches = inputs.recipe.search, inputs.batches(searched_text(inputs))
    refit, refitted_on = refit_without(inputs)
    about = {"model": inputs.model_key, "metric": search.metric, "text": hash_of_tokens(batches), "refitted on": refitted_on}

    def file_of(off: UnitSet) -> ValueFile:
        return ValueFile(
            folder / VALUES_FOLDER, {**about, "without": [str(unit) for unit in sorted(off)]}, workers=inputs.workers
        )

    measure = RemovalLosses(
        inputs.view,
        batches,
        search.metric,
        workers=inputs.workers,
        after_batch=each_batch(f"{request.selector} by {search.metric}", len(batches)),
    )
    return RefittedSets(measure, request.free_units, refit=refit, limit=search.evaluations, file_of=file_of)


def searched_sets(inputs: Inputs, request: Request, *, folder: RunFolder) -> CountedSets | RefittedSets | None:
    """The set function that the recipe's selector asks, or the search that competes with it; None where neither asks one."""
    recipe = inputs.recipe
    if search_beside(request) is not None:
        selector, metric, n_tokens = search_in_use(recipe, request)
        return set_function_of(inputs, replace(request, selector=selector), folder=folder, metric=metric, n_tokens=n_tokens)
    if not runs_the_model(recipe):
        return None
    if SELECTORS.named(recipe.select).refits:
        return refitted_sets_of(inputs, request, folder=folder)
    return set_function_of(inputs, request, folder=folder, limit=recipe.search.evaluations)


def search_said(inputs: Inputs, request: Request, function: CountedSets | RefittedSets | None) -> str:
    """What a plan's method adds where sets were run to choose by: ``; 50 sets run by kl on 16,384 tokens``."""
    if function is None or not function.n_evaluations:
        return ""
    _, metric, most = search_in_use(inputs.recipe, request)
    return f"; {function.n_evaluations} sets run by {metric} on {searched_data(inputs, metric, n_tokens=most)}"


def write_search(inputs: Inputs, function: CountedSets | RefittedSets, request: Request, *, folder: RunFolder) -> str:
    """``search.json``. Returns its name.

    Args:
        request: with what the budget asks for.
    """
    goal = request.goal
    selector, metric, most = search_in_use(inputs.recipe, request)
    data = searched_data(inputs, metric, n_tokens=most)
    curve: list[tuple[int, float]] = []
    n_best = 0
    for place, (units, loss) in enumerate(function.asked.items(), start=1):
        if as_compared(loss) < (curve[-1][1] if curve else math.inf) and goal.is_met(units, function.units):
            curve.append((place, loss))
            n_best = len(units)
    record = SearchRecord(
        selector=selector,
        metric=metric,
        data=data.name,
        data_hash=data.hash,
        n_tokens=data.n_tokens,
        units=request.units,
        n_units=len(function.units),
        n=n_best,
        n_evaluations=function.n_evaluations,
        curve=tuple(curve),
    )
    inputs.workers.on_first(lambda: record.save(folder / SEARCH_FILE))
    return SEARCH_FILE
