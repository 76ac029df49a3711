"""A plan from config and names alone: named layers, or a rule that measures nothing. Quantised models of any size will do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.run.asking import budget_of, needs_model, plain_request_of, reason_of
from shoal.run.by_hand import as_edited, named_key, named_plan
from shoal.run.folder import RunFolder
from shoal.run.keys import unopened_choice_key
from shoal.words.structure import Structure, stored

if TYPE_CHECKING:
    from torch import nn

    from shoal.edits.plan import Plan
    from shoal.recipes.recipe import Recipe
    from shoal.select.model_size import ModelSize


@dataclass(frozen=True, eq=False)
class Unopened:
    """A source without its weights.

    Attributes:
        name: as it was given; ``path``: its folder; ``fingerprint``: its identity.
        model: on the ``meta`` device; ``layers`` are its decoder's.
        quantised: the method of a quantised checkpoint.
    """

    name: str
    path: Path
    fingerprint: str
    config: Any
    model: nn.Module
    layers: nn.ModuleList
    size: ModelSize
    quantised: str | None

    def refuse(self, structure: Structure) -> str | None:
        """Why this family cannot be that structure, or None."""
        from shoal.checkpoint.blueprint import check_layers

        order = [slot.like for slot in stored(structure)]
        return reason_of(lambda: check_layers(self.config, order, model_class=type(self.model)))


def look_at(model: str, *, trust_remote_code: bool = False) -> Unopened:
    """Read config and names of a model. Raises ValueError: no such model, a damaged one, no decoder that can be cut."""
    from shoal.engine.families import find_layers
    from shoal.engine.model_config import describe
    from shoal.engine.source import fingerprint, quantisation, resolve_source
    from shoal.select.model_size import size_of
    from shoal.words.reading import read_json

    path = resolve_source(model, trust_remote_code=trust_remote_code)
    described = describe(path, trust_remote_code=trust_remote_code)
    layers_path, layers = find_layers(described.model)
    size = size_of(described.model, layers_path)
    method = quantisation(read_json(path / "config.json"))
    return Unopened(model, path, fingerprint(path), described.config, described.model, layers, size, method)


def plan_unopened(recipe: Recipe, folder: RunFolder, *, trust_remote_code: bool = False) -> Plan:
    """``plan.json`` of a run folder, made or read back.

    Raises:
        ValueError: the recipe needs scores or puts something back; what cannot go; as for the stage plan.
    """
    from shoal.edits.plan import Plan

    if recipe.model is None or needs_model(recipe):
        raise ValueError("a plan without opening the model needs a model, --select deepest, --guard 1 and --replace none")
    source = look_at(recipe.model, trust_remote_code=trust_remote_code)
    key = _key(recipe, source)
    standing = folder.record.stages.get("plan")
    if standing is not None and standing.key == key and folder.is_done("plan", key):
        return as_edited(Plan.load(folder / "plan.json"), source.size)
    # The plan is made before the one that stands is forgotten: a refusal must not cost it.
    plan = chosen_unopened(recipe, source)
    folder.is_done("plan", key)
    folder.workers.on_first(lambda: plan.save(folder / "plan.json"))
    folder.finish("plan", key, seconds=0.0, files=["plan.json"])
    return plan


def chosen_unopened(recipe: Recipe, source: Unopened) -> Plan:
    """The plan itself, in no folder yet. Raises ValueError as :func:`plan_unopened`."""
    from shoal.checkpoint.blueprint import check_can_be_cut
    from shoal.run.tournament import choose
    from shoal.select.plan_of import plan_of
    from shoal.select.request import Evidence
    from shoal.select.shortlist import shortlist

    if recipe.is_by_hand:
        return named_plan(
            recipe,
            source.size,
            source=source.name,
            source_hash=source.fingerprint,
            layers=source.layers,
            refuse=source.refuse,
            quantised=source.quantised,
        )
    check_can_be_cut(source.config, model_class=type(source.model))
    request = plain_request_of(recipe, source.size.n_layers)
    choice = choose(shortlist(budget_of(recipe), source.size, request, Evidence(refuse=source.refuse)), source.size)
    return plan_of(
        choice.best.edits,
        source.size,
        source=source.name,
        source_hash=source.fingerprint,
        method=choice.method,
        candidates=choice.candidates,
    )


def _key(recipe: Recipe, source: Unopened) -> str:
    if recipe.is_by_hand:
        return named_key(source.fingerprint, recipe)
    return unopened_choice_key(source.fingerprint, budget_of(recipe), plain_request_of(recipe, source.size.n_layers))
