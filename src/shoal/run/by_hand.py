"""A plan of layers that somebody named: nothing is measured and nothing competes, but what the family refuses is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from shoal.edits.drop import Drop
from shoal.edits.plan import Plan, structure_of
from shoal.edits.table import Edit
from shoal.engine.families import output_map
from shoal.recipes.recipe import Recipe
from shoal.select.amounts import Amounts
from shoal.select.budget import realised
from shoal.select.growth import deepest, new_layers
from shoal.select.model_size import NOTHING, ModelSize, PutBack
from shoal.select.plan_of import plan_of, removed_shares, sizes_of
from shoal.select.request import Refuse
from shoal.words.records import stable_hash
from shoal.words.structure import SUBLAYERS, runs_said
from shoal.words.types import Unit
from shoal.words.unit_names import removed_by_hand


def named_key(fingerprint: str, recipe: Recipe, put_back: PutBack = NOTHING) -> str:
    """Identity of such a plan; the same whether the model was opened for it or not."""
    grown = () if recipe.grow is None else (repr(recipe.grow),)
    return stable_hash("plan by hand", fingerprint, recipe.layers, recipe.keep, repr(put_back), *grown)


def named_plan(
    recipe: Recipe,
    size: ModelSize,
    *,
    source: str,
    source_hash: str,
    layers: nn.ModuleList,
    refuse: Refuse,
    quantised: str | None = None,
    put_back: PutBack = NOTHING,
    amounts: Mapping[str, Amounts] | None = None,
) -> Plan:
    """The plan that takes out what the recipe names, and puts in the new layers that it asks for.

    Args:
        layers: of the source, with or without weights; they say which sublayers there are.
        refuse: the family's own constraints.
        quantised: the method of a quantised source.
        put_back: what takes the place of the layers that go.
        amounts: what else leaves with units, where the source is open.
    Raises:
        ValueError: no such layer, nothing left, a sublayer that cannot go alone, or a structure that the family refuses.
    """
    gone = named_gone(recipe, size.n_layers)
    refuse_inseparable(gone, layers, quantised=quantised)
    edits = edits_without(gone, put_back)
    if recipe.grow is not None:
        whole = {unit.index for unit in gone if unit.kind == "layer"}
        edits = (*edits, *new_layers(recipe.grow, size.n_layers, whole))
    reason = refuse(structure_of(edits, size.n_layers))
    if reason is not None:
        raise ValueError(f"{asked_said(recipe)} cannot be done: {reason}")
    said = realised(size, edits, put_back.own_parameters) if recipe.grow is None else grown_said(size, edits)
    return plan_of(
        edits,
        size,
        own_parameters=put_back.own_parameters,
        source=source,
        source_hash=source_hash,
        amounts=amounts,
        method=f"{'layers given by hand' if recipe.grow is None else 'grown'}; {said}; asked {asked_said(recipe)}"
        if edits
        else "no layer goes",
    )


def named_gone(recipe: Recipe, n_layers: int) -> frozenset[Unit]:
    """What the recipe takes out; with new layers that may be nothing.

    Raises:
        ValueError: as :func:`~shoal.words.unit_names.removed_by_hand`; none would be left.
    """
    if recipe.layers is not None or recipe.keep is not None:
        return frozenset(removed_by_hand(recipe.layers, recipe.keep, n_layers))
    assert recipe.grow is not None
    return frozenset(Unit("layer", layer) for layer in deepest(recipe.grow, n_layers))


def as_edited(plan: Plan, size: ModelSize, own_parameters: int = 0, *, amounts: Mapping[str, Amounts] | None = None) -> Plan:
    """The plan that stands; where somebody edited it, with the sizes of its edits and without the verdict of another choice."""
    if not plan.is_edited_by_hand:
        return plan
    amounts = amounts or {}
    before, after = sizes_of(plan.structure, size, own_parameters=own_parameters, amounts=amounts)
    removed = removed_shares(plan.structure, size, own_parameters=own_parameters, amounts=amounts)
    update = {"before": before, "after": after, "removed": removed, "method": "edited by hand", "candidates": (), "spread": ()}
    return plan.model_copy(update=update)


def edits_without(units: Iterable[Unit], put_back: PutBack = NOTHING) -> tuple[Edit, ...]:
    """The edits that take out whole layers, with what is put back in their place, and single sublayers.

    Raises:
        ValueError: too few layers before a replacement.
    """
    gone = set(units)
    alone = {kind: tuple(sorted(unit.index for unit in gone if unit.kind == kind)) for kind in SUBLAYERS}
    drops = tuple(Drop(kind=kind, indices=indices) for kind, indices in alone.items() if indices)
    return (*put_back.edits(sorted(unit.index for unit in gone if unit.kind == "layer")), *drops)


def refuse_inseparable(units: Iterable[Unit], layers: nn.ModuleList, *, quantised: str | None = None) -> None:
    """Raises ValueError for sublayers that a stock checkpoint cannot leave out: they do not end in one linear map.

    Args:
        quantised: the method of a quantised source, whose maps cannot be set to zero.
    """
    if quantised is not None and any(unit.kind != "layer" for unit in units):
        raise ValueError(
            f"single sublayers go by a map of zeros, and this model is quantised ({quantised}): remove whole layers, or start "
            "from the unquantised checkpoint, or from what shoal export plain makes of this one"
        )
    bad: dict[str, list[int]] = {}
    for unit in sorted(units):
        if unit.kind != "layer" and output_map(layers[unit.index], unit.kind) is None:
            bad.setdefault(SUBLAYERS[unit.kind], []).append(unit.index)
    if bad:
        where = "; ".join(f"{name} of {runs_said(indices)}" for name, indices in bad.items())
        raise ValueError(
            f"{where}: such a sublayer does not end in one linear map here, so a stock checkpoint cannot leave it out; remove "
            "whole layers, or name others"
        )


def grown_said(size: ModelSize, edits: tuple[Edit, ...]) -> str:
    """``32 -> 40 layers (6,738,415,616 -> 8,357,474,304 parameters)``."""
    after = size.after(structure_of(edits, size.n_layers))
    return f"{size.n_layers} -> {after.layers} layers ({size.total:,} -> {after.parameters:,} parameters)"


def asked_said(recipe: Recipe) -> str:
    """The options as they were given."""
    if recipe.grow is not None:
        where = f" --where {recipe.grow.where}" if recipe.grow.where else ""
        cut = f" behind a cut of {recipe.grow.cut}" if recipe.grow.cut else ""
        return f"--to {recipe.grow.to} --init {recipe.grow.init}{where}{cut}"
    return f"--layers {recipe.layers}" if recipe.layers is not None else f"--keep {recipe.keep}"
