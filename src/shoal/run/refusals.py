"""What can be refused before the long stages: options that fit no model, a folder in the wrong place, a budget out of reach."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from shoal.recipes.recipe import Recipe
from shoal.words.reading import reason_of, shortened
from shoal.words.records import nearest

if TYPE_CHECKING:
    from shoal.run.job import Inputs


def check_recipe(recipe: Recipe, out: Path) -> None:
    """Before anything is loaded.

    Raises:
        ValueError: a budget that cannot be read, a score that no scan measures, an unknown objective, or ``out`` inside the
            model's folder.
    """
    from shoal.fit.linear_error import LINEAR_ERROR
    from shoal.measure.metrics import metric_named
    from shoal.measure.observers import observer_named
    from shoal.measure.pairwise import CRITERIA
    from shoal.measure.sinks import TOKENS
    from shoal.run.asking import budget_of
    from shoal.select.table import selector_named
    from shoal.train.objectives import weighted_sum

    budget_of(recipe)
    if recipe.heal is not None:
        from shoal.run.heal import refuse_unknown

        refuse_unknown(recipe.heal, has_teacher=True)
    for stage in recipe.train.schedule():
        weighted_sum(stage.objective)
    known = [f"{criterion}/{tokens}" for criterion in CRITERIA for tokens in TOKENS]
    observed = [table for name in recipe.observers for table in observer_named(name).tables]
    known += observed
    if "values" in selector_named(recipe.select).reads:
        metric_named(recipe.search.metric)
        if recipe.rounds > 1:
            raise ValueError(f"--rounds measures scores anew, and --select {recipe.select} reads none; leave out --rounds")
    if recipe.by == LINEAR_ERROR and (recipe.select != "span" or recipe.rounds > 1):
        raise ValueError(
            f"--by {LINEAR_ERROR} ranks contiguous spans of the length that goes: use --select span, and --rounds 1"
        )
    if recipe.by not in (*known, LINEAR_ERROR):
        raise ValueError(f"--by {recipe.by!r} is no score of the scan; {nearest(recipe.by, known)}")
    if recipe.rounds > 1 and recipe.by in observed:
        raise ValueError(f"rounds measure the pairwise scores only; with --rounds choose another score than {recipe.by}")
    refuse_place(out, Path(recipe.model or ""))


def refuse_side_files(recipe: Recipe) -> None:
    """Raises ValueError for a model folder with a side file that links out of it: its checkpoint would get a copy."""
    from shoal.checkpoint.new_folder import side_files

    source = Path(recipe.model or "")
    if recipe.model and source.is_dir():
        side_files(source)


def refuse_place(out: Path, source: Path) -> None:
    """Refuse an ``--out`` that a result cannot take: before anything is loaded, and nothing is made there.

    Args:
        source: the model's folder, or anything that is no folder.
    Raises:
        ValueError: too long a name, below a file, a link to nothing or to itself, a pipe; the model's folder, or inside it.
    """
    out = Path(out)
    try:
        where, above = out.resolve(), next(place for place in (out, *out.absolute().parents) if place.exists())
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"--out {shortened(str(out))} cannot be a folder ({reason_of(error)}); give another name") from None
    if not above.is_dir():
        raise ValueError(f"--out {out} is, or is below, {above}, which is no folder; give a new or empty folder")
    if out.is_symlink() and not out.exists():
        raise ValueError(f"--out {out} is a link to nothing; give a new or empty folder, or take the link away")
    if source.is_dir() and str(source) and (source / "config.json").exists():
        if where.is_relative_to(source.resolve()):
            raise ValueError(f"--out {out} is inside the model's folder {source}; choose a folder outside it")


def check_budget(inputs: Inputs) -> None:
    """Before the model is measured, where all removable layers have one size.

    Raises:
        ValueError: a healing where layers are on disk; protected layers that do not exist, or a budget out of reach; says the
            allowed range.
    """
    from shoal.run.asking import budget_of, request_of
    from shoal.select.model_size import model_size
    from shoal.select.shortlist import check_reach

    if inputs.recipe.heal is not None and inputs.is_streamed:
        raise ValueError("healing runs both models in memory, and here layers are on disk; use --resident all, or --heal none")
    check_reach(budget_of(inputs.recipe), model_size(inputs.view), request_of(inputs.recipe, inputs.view))
