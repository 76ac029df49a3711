"""Scores of single units for a choice by them: measured when the recipe asks, and written as ``scores.json``."""

from __future__ import annotations

from shoal.measure.unit_score_record import UnitScores
from shoal.measure.unit_scores import UnitScore, is_unit_table, score_with_table
from shoal.recipes.recipe import Recipe
from shoal.run.choosing_tasks import SearchedData
from shoal.run.folder import RunFolder
from shoal.run.job import Inputs
from shoal.run.searching import VALUES_FOLDER, searched_data, searched_text, set_function_of
from shoal.select.request import Request
from shoal.select.table import SELECTORS
from shoal.words.types import UnitTable

SCORES_FILE = "scores.json"
FEWEST_FOR_GRADIENTS = 30
"""Samples below which Taylor scores rank poorly: 0.36 against 0.55 mean accuracy after the cut (arXiv 2411.15558, table 6)."""


def wanted_score(recipe: Recipe) -> UnitScore | None:
    """The score of units that a recipe chooses by; None where it chooses by anything else."""
    is_read = "tables" in SELECTORS.named(recipe.select).reads and is_unit_table(recipe.by)
    return score_with_table(recipe.by) if is_read else None


def measured_scores(inputs: Inputs, request: Request, *, folder: RunFolder) -> tuple[dict[str, UnitTable], list[str]]:
    """The table that a recipe chooses by, and the files that hold it; nothing where it chooses by anything else.

    Raises:
        ValueError: too few samples for gradients; and what the score itself refuses.
    """
    entry = wanted_score(inputs.recipe)
    if entry is None:
        return {}, []
    data, n_evaluations, files = searched_data(inputs, entry.metric), 0, [SCORES_FILE]
    if entry.of_values is not None:
        function = set_function_of(inputs, request, folder=folder, metric=entry.metric)
        table = entry.of_values(function)
        n_evaluations, files = function.n_evaluations, [SCORES_FILE, VALUES_FOLDER]
    else:
        samples = searched_text(inputs)
        if entry.reads == "gradients":
            samples = inputs.calibration
            refuse_few_samples(samples.n_samples, entry.name)
            data = SearchedData(samples.data, samples.data_hash, samples.n_tokens)
        tables = entry.score(inputs.view, inputs.batches(samples), request.free_units)
        table = next(one for one in tables if one.criterion == inputs.recipe.by)
    is_read = entry.reads != "weights"
    record = UnitScores(
        by=table.criterion,
        about=entry.about,
        unit=table.unit,
        higher_is_more_redundant=table.higher_is_more_redundant,
        data=data.name if is_read else "",
        data_hash=data.hash if is_read else "",
        n_tokens=data.n_tokens if is_read else 0,
        n_evaluations=n_evaluations,
        values={str(unit): float(value) for unit, value in zip(table.units, table.values, strict=True)},
        stderr={str(unit): float(error) for unit, error in zip(table.units, table.stderr, strict=True) if error == error},
    )
    inputs.workers.on_first(lambda: record.save(folder / SCORES_FILE))
    return {table.criterion: table}, files


def refuse_few_samples(n_samples: int, name: str) -> None:
    """Raises ValueError: gradients of so few samples rank units poorly."""
    if n_samples < FEWEST_FOR_GRADIENTS:
        raise ValueError(
            f"score {name!r} reads gradients, and {n_samples} samples are too few to rank by (arXiv 2411.15558, table 6); give "
            f"--samples {FEWEST_FOR_GRADIENTS} or more"
        )
