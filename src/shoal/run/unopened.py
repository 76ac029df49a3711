"""A plan from config and names alone: named layers, or a rule that measures nothing. Quantised models of any size will do."""

from __future__ import annotations

from shoal.checkpoint.blueprint import check_can_be_cut, check_layers
from shoal.edits.plan import Plan
from shoal.engine.model_config import Described, describe_source
from shoal.recipes.recipe import Recipe
from shoal.run.asking import budget_of, needs_model, plain_request_of, reason_of
from shoal.run.by_hand import as_edited, named_key, named_plan
from shoal.run.folder import RunFolder
from shoal.run.keys import unopened_choice_key
from shoal.run.tournament import choose
from shoal.select.model_size import size_of
from shoal.select.plan_of import plan_of
from shoal.select.request import Evidence
from shoal.select.shortlist import shortlist
from shoal.words.structure import Structure, stored


def plan_unopened(recipe: Recipe, folder: RunFolder, *, trust_remote_code: bool = False) -> Plan:
    """``plan.json`` of a run folder, made or read back.

    Raises:
        ValueError: the recipe needs scores or puts something back; what cannot go; as for the stage plan.
    """
    if recipe.model is None or needs_model(recipe):
        raise ValueError("a plan without opening the model needs a model, --select deepest, --guard 1 and --replace none")
    source = describe_source(recipe.model, trust_remote_code=trust_remote_code)
    key = _key(recipe, source)
    standing = folder.record.stages.get("plan")
    if standing is not None and standing.key == key and folder.is_done("plan", key):
        return as_edited(Plan.load(folder / "plan.json"), size_of(source.model, source.layers_path))
    # The plan is made before the one that stands is forgotten: a refusal must not cost it.
    plan = chosen_unopened(recipe, source)
    folder.is_done("plan", key)
    folder.workers.on_first(lambda: plan.save(folder / "plan.json"))
    folder.finish("plan", key, seconds=0.0, files=["plan.json"])
    return plan


def chosen_unopened(recipe: Recipe, source: Described) -> Plan:
    """The plan itself, in no folder yet. Raises ValueError as :func:`plan_unopened`."""
    assert recipe.model is not None
    name, found, size = recipe.model, source.fingerprint, size_of(source.model, source.layers_path)
    config, model_class = source.config, type(source.model)

    def refuse(structure: Structure) -> str | None:
        order = [slot.like for slot in stored(structure)]
        return reason_of(lambda: check_layers(config, order, model_class=model_class))

    if recipe.is_by_hand:
        layers, quantised = source.layers, source.quantised
        return named_plan(recipe, size, source=name, source_hash=found, layers=layers, refuse=refuse, quantised=quantised)
    check_can_be_cut(config, model_class=model_class)
    request = plain_request_of(recipe, size.n_layers)
    choice = choose(shortlist(budget_of(recipe), size, request, Evidence(refuse=refuse)), size)
    return plan_of(
        choice.best.edits,
        size,
        source=name,
        source_hash=found,
        method=choice.method,
        candidates=choice.candidates,
    )


def _key(recipe: Recipe, source: Described) -> str:
    if recipe.is_by_hand:
        return named_key(source.fingerprint, recipe)
    return unopened_choice_key(source.fingerprint, budget_of(recipe), plain_request_of(recipe, source.n_layers))
