"""What a recipe's choice reads: the scores of a scan, and the calibration text at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.measure.unit_scores import is_unit_table
from shoal.select.table import SELECTORS

if TYPE_CHECKING:
    from shoal.recipes.recipe import Recipe


def needs_scan(recipe: Recipe) -> bool:
    """False where nothing reads the scores: named layers, or a selector without tables and no other candidates to propose."""
    reads_spans = "tables" in SELECTORS.named(recipe.select).reads and not is_unit_table(recipe.by)
    return not recipe.is_by_hand and (reads_spans or (recipe.guard > 1 and recipe.units == "layers"))


def reads_calibration(recipe: Recipe) -> bool:
    """False where no score, no search and no pruner reads the calibration text, so that its size changes nothing."""
    if recipe.prune is not None and recipe.prune.reads_text:
        return True
    measures = needs_scan(recipe) or recipe.rounds > 1 or "latency" in recipe.drop
    return not recipe.is_by_hand and (measures or bool(SELECTORS.named(recipe.select).reads))
