"""The set function of a run: its model, a part of its calibration text, its metric; values are kept in the run folder.

A run that was killed inside a search finds there what it had measured. ``search.json`` says how the search went.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.select.search.search_record import SearchRecord
from shoal.words.progress import Progress, silent

if TYPE_CHECKING:
    from shoal.measure.set_function import CountedSets
    from shoal.recipes.recipe import Recipe
    from shoal.run.folder import RunFolder
    from shoal.run.job import Inputs
    from shoal.select.request import Request
    from shoal.text import Samples

VALUES_FOLDER, SEARCH_FILE = "search", "search.json"


def runs_the_model(recipe: Recipe) -> bool:
    """Whether the selector asks the set function."""
    from shoal.select.table import selector_named

    return not recipe.is_by_hand and "values" in selector_named(recipe.select).reads


def searched_text(inputs: Inputs) -> Samples:
    """The first samples of the calibration slice that hold the tokens of the search; one sample at least."""
    samples = inputs.calibration
    return samples.take(max(1, min(samples.n_samples, inputs.recipe.search.tokens // samples.length)))


def set_function_of(
    inputs: Inputs,
    request: Request,
    *,
    folder: RunFolder,
    metric: str | None = None,
    limit: int | None = None,
    progress: Progress = silent,
) -> CountedSets:
    """v(S) over the units that may go, with what an earlier run of the same folder measured.

    Args:
        metric: in place of the recipe's.
        limit: most sets that may be asked for.
    """
    from shoal.measure.removals import removal_function

    search, samples = inputs.recipe.search, searched_text(inputs)
    batches = inputs.batches(samples)
    return removal_function(
        inputs.view,
        batches,
        request.free_units,
        metric=metric or search.metric,
        limit=limit,
        folder=folder / VALUES_FOLDER,
        about={"model": inputs.model_key, "data": samples.data_hash},
        workers=inputs.workers,
        after_batch=lambda batch: progress(f"{request.selector} by {metric or search.metric}", batch.index + 1, len(batches)),
    )


def search_said(inputs: Inputs, function: CountedSets | None) -> str:
    """What a plan's method adds where layers were chosen by running the model: ``; 50 sets run by kl on 16,384 tokens``."""
    if function is None:
        return ""
    n_tokens = searched_text(inputs).n_tokens
    return f"; {function.n_evaluations} sets run by {inputs.recipe.search.metric} on {n_tokens:,} tokens"


def write_search(inputs: Inputs, function: CountedSets, request: Request, *, folder: RunFolder) -> list[str]:
    """``search.json``. Returns the files that belong to the stage.

    Args:
        request: with what the budget asks for.
    """
    recipe, samples, goal = inputs.recipe, searched_text(inputs), request.goal
    curve: list[tuple[int, float]] = []
    n_best = 0
    for place, (units, loss) in enumerate(function.asked.items(), start=1):
        if (not curve or loss < curve[-1][1]) and goal.is_met(units, function.units):
            curve.append((place, loss))
            n_best = len(units)
    record = SearchRecord(
        selector=recipe.select,
        metric=recipe.search.metric,
        data=samples.data,
        data_hash=samples.data_hash,
        n_tokens=samples.n_tokens,
        units=request.units,
        n_units=len(function.units),
        n=n_best,
        n_evaluations=function.n_evaluations,
        curve=tuple(curve),
    )
    inputs.workers.on_first(lambda: record.save(folder / SEARCH_FILE))
    return [SEARCH_FILE, VALUES_FOLDER]
