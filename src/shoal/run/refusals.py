"""What can be refused before the long stages: options that fit no model, a folder in the wrong place, a budget out of reach."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shoal.checkpoint.in_memory import refuse_inexact_sublayers
from shoal.checkpoint.new_folder import side_files
from shoal.edits.inserted_layers import silent_values
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.recipes.recipe import Recipe
from shoal.recipes.task_choice import asks_tasks
from shoal.run.asking import budget_of, request_of
from shoal.run.by_hand import named_gone, refuse_inseparable
from shoal.run.choosing_tasks import tasks_of
from shoal.run.job import Inputs
from shoal.run.resource_amounts import amounts_of
from shoal.select.growth import new_layers
from shoal.select.model_size import model_size
from shoal.select.shortlist import check_reach
from shoal.words.reading import reason_of, refuse_long_path, shortened
from shoal.words.types import Unit


def refuse_side_files(recipe: Recipe) -> None:
    """Raises ValueError for a model folder with a side file that links out of it: its checkpoint would get a copy."""
    source = Path(recipe.model or "")
    if recipe.model and source.is_dir():
        side_files(source)


def refuse_place(out: Path, model: str | Path | None) -> None:
    """Refuse an ``--out`` that a result cannot take: before anything is loaded, and nothing is made there.

    Args:
        model: the model's folder, or anything that is no folder.
    Raises:
        ValueError: too long a name, below a file, a link to nothing or to itself, a pipe; the model's folder, or inside it.
    """
    out, source = Path(out), Path(model or "")
    refuse_long_path(out)
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
        ValueError: tasks to choose by that cannot be read; zeros that no map can take; protected or named layers that do not
            exist, named sublayers that this family cannot leave out, or a budget out of reach; says the allowed range.
    """
    if asks_tasks(inputs.recipe):
        tasks_of(inputs.recipe)
    if inputs.recipe.prune is not None:
        from shoal.prune.thin import refuse_unthinnable

        refuse_unthinnable(inputs.view, inputs.recipe.prune.fixed_pattern)
    if inputs.recipe.is_by_hand:
        refuse_named(inputs)
        return
    budget, request = budget_of(inputs.recipe), request_of(inputs.recipe, inputs.view)
    if request.units != "layers":
        refuse_units(inputs.view, request.free_units)
    check_reach(budget, model_size(inputs.view), request, amounts=amounts_of(inputs, budget))


def refuse_little_text(inputs: Inputs) -> None:
    """Raises ValueError where the text does not fill what a run reads behind its first stage: all work before would be lost."""
    recipe = inputs.recipe
    _ = inputs.evaluation
    if recipe.guard > 1 and not recipe.is_by_hand:
        _ = inputs.selection
    if recipe.prune is not None and recipe.prune.reads_text:
        _ = inputs.calibration
    if recipe.training() is not None:
        _ = inputs.training, inputs.selection


def refuse_units(view: DecoderView, units: Sequence[Unit]) -> None:
    """Raises ValueError, before a search, for sublayers that this family cannot leave out."""
    refuse_inseparable(units, view.model.get_submodule(view.layers_path))
    refuse_inexact_sublayers(view, Student(removed=frozenset(units[:1])))  # The other units are refused when they run.


def refuse_named(inputs: Inputs) -> None:
    """Raises ValueError for named layers that this model has not, named sublayers that it cannot leave out, a depth that it
    cannot be grown to, or new layers that cannot be silent."""
    view = inputs.view
    gone = named_gone(inputs.recipe, view.n_layers)
    if inputs.recipe.grow is not None:
        new = new_layers(inputs.recipe.grow, view.n_layers, {unit.index for unit in gone if unit.kind == "layer"})
        for like in sorted({like for edit in new if edit.start.is_silent for like in edit.of}):
            silent_values(view, like)
    layers = view.model.get_submodule(view.layers_path)
    refuse_inseparable(gone, layers, quantised=inputs.opened.quantised)
    refuse_inexact_sublayers(view, Student(removed=gone))
