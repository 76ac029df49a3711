"""What a recipe asks of scan and selection, for a model: budget, request, the family's refusals, an oracle on some text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from shoal.checkpoint.blueprint import check_layers
from shoal.edits.replace.table import parse_replacement
from shoal.engine.view import DecoderView
from shoal.measure.oracle import Oracle
from shoal.recipes.reads import needs_scan
from shoal.recipes.recipe import Recipe
from shoal.run.candidate_repair import repairs_candidates
from shoal.run.job import Inputs
from shoal.select.budget import MEASURED, Budget, parse_budget, parse_parameters, parse_size
from shoal.select.model_size import put_back_of
from shoal.select.request import Request
from shoal.select.table import SELECTORS
from shoal.text.samples import Samples
from shoal.words.progress import each_batch
from shoal.words.structure import Structure, stored


def needs_model(recipe: Recipe) -> bool:
    """False where the choice follows from config and names alone: named layers or a rule without measurements, and nothing is
    put back."""
    if recipe.is_by_hand or recipe.replace != "none":
        return recipe.replace != "none"
    return bool(SELECTORS.named(recipe.select).reads) or needs_scan(recipe) or is_measured(recipe)


def is_measured(recipe: Recipe) -> bool:
    """Whether the budget is a share of what is known of an opened model alone."""
    return any(one.kind in MEASURED for one in budget_of(recipe).all)


def budget_of(recipe: Recipe) -> Budget:
    if recipe.size:
        return parse_size(recipe.size)

    return parse_parameters(recipe.parameters) if recipe.parameters else parse_budget(recipe.drop)


def request_of(recipe: Recipe, view: DecoderView) -> Request:
    """What the recipe says of selection, for a model: the options of a replacement are those its family has."""
    found = parse_replacement(recipe.replace)
    put_back = put_back_of(None if found is None else found.resolved(view), view.hidden_size)
    put_back = replace(put_back, scores_inherited=not repairs_candidates(recipe))
    return replace(plain_request_of(recipe, view.n_layers), put_back=put_back)


def plain_request_of(recipe: Recipe, n_layers: int) -> Request:
    """As :func:`request_of` for plain removal."""
    return Request(
        n_layers=n_layers,
        selector=recipe.select,
        by=recipe.by,
        max_spans=recipe.max_spans,
        protected=recipe.protected(n_layers),
        n_rounds=recipe.rounds,
        n_candidates=recipe.guard,
        merge=recipe.merge,
        units=recipe.units,
    )


def why_not(inputs: Inputs, structure: Structure) -> str | None:
    """Why this family cannot be that structure, or None. Asked once per order of layers: the answer builds two models."""
    model, order = inputs.opened.model, tuple(slot.like for slot in stored(structure))
    if order not in inputs.refusals:
        inputs.refusals[order] = reason_of(lambda: check_layers(model.config, order, model_class=type(model)))
    return inputs.refusals[order]


def reason_of(check: Callable[[], object]) -> str | None:
    """The message of a refusal, or None where there is none."""
    try:
        check()
    except ValueError as refusal:
        return str(refusal)
    return None


def oracle(inputs: Inputs, samples: Samples, *, what: str) -> Oracle:
    """What measures students on some text; its passes are told as ``what``."""
    batches = inputs.batches(samples)
    return Oracle(
        inputs.view,
        batches,
        after_batch=each_batch(what, len(batches)),
        workers=inputs.workers,
    )
