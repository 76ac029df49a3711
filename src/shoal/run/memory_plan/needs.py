"""Memory and disk of every stage, from the config and the sizes of files alone: nothing is loaded, nothing runs.

Each stage of the table states its own bound (:mod:`shoal.run.memory_plan.sizes`). With ``--device cuda`` the memory that counts
is the card's, and the machine's is told beside it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from shoal.edits.replace.table import parse_replacement
from shoal.engine.opening import Opening
from shoal.engine.source import quantisation, resolve_source
from shoal.recipes.recipe import Recipe
from shoal.run.asking import budget_of, is_measured
from shoal.run.by_hand import named_gone
from shoal.run.job import LONGEST_DEFAULT, SHARE_BESIDE_STUDENT, layers_in_memory, without_new_values
from shoal.run.memory_plan.machine import Machine, machine_of
from shoal.run.memory_plan.shape import amounts_without_weights, shape_of
from shoal.run.memory_plan.sizes import Sizes, StageNeed
from shoal.run.optional_healing import mended_by_name, without_healing
from shoal.run.resource_amounts import amounts_as_if_alike
from shoal.run.stages.table import STAGES
from shoal.select.amounts import Amounts
from shoal.select.budget import resolve
from shoal.select.grow_config import parse_depth
from shoal.select.model_size import NOTHING, ModelSize, PutBack
from shoal.show.table import Column, Table, numbers
from shoal.words.model_shape import ModelShape
from shoal.words.numbers import in_bytes
from shoal.words.reading import read_json
from shoal.words.records import Record


class MemoryNeeds(Record):
    """What a run will take at most, and what there is.

    Attributes:
        resident: layers held in memory; None: all.
        free_memory, free_disk: now, the process as it is included in the first; with a card the memory is the card's.
        free_host: of the machine, where layers run on a card.
        advice: what to change where it may not fit, or where a stage will refuse to run; else empty.
    """

    model: str
    resident: int | None
    stages: tuple[StageNeed, ...]
    free_memory: int
    free_disk: int
    free_host: int | None = None
    advice: tuple[str, ...] = ()

    @property
    def peak(self) -> StageNeed:
        return max(self.stages, key=lambda one: one.memory)

    @property
    def disk(self) -> int:
        """Most bytes on disk at a time: what stages leave, and the largest scratch."""
        return sum(one.disk for one in self.stages) + max(one.scratch for one in self.stages)

    @property
    def fits(self) -> bool:
        is_enough = self.free_host is None or max(one.host for one in self.stages) <= self.free_host
        return self.peak.memory <= self.free_memory and self.disk <= self.free_disk and is_enough


def needs_of(
    recipe: Recipe,
    opening: Opening = Opening(),
    *,
    out: Path | None = None,
) -> MemoryNeeds:
    """Bound every stage of :func:`shoal.run.compress.compress` with these arguments; an optional healing where it fits.

    Numbers of samples that the recipe leaves open are taken at their defaults: a short text takes less.

    Args:
        out: where the run folder will be, for the free disk.
    Raises:
        ValueError: no such model, a model that cannot be cut, a budget out of reach, a quantised model that would get new
            values.
    """
    model = recipe.model
    if model is None:
        raise ValueError("no model given; name a hub id or a folder")
    shape = shape_of(model, dtype=opening.dtype, trust_remote_code=opening.trust)
    path = resolve_source(model, trust_remote_code=opening.trust)
    method = quantisation(read_json(path / "config.json"))
    if method is not None:
        recipe = without_new_values(recipe, path, method)
    held = layers_in_memory(model, opening, share=SHARE_BESIDE_STUDENT)
    machine = machine_of(opening.device)
    if held is not None or mended_by_name(recipe):
        recipe = without_healing(recipe)
    folder = next(place for place in (Path(out or "."), *Path(out or ".").absolute().parents) if place.exists())
    sizes = sizes_of(recipe, shape, machine, held=held, amounts=unopened_amounts(recipe, shape, opening))
    if any(one.stage == "heal" and one.memory > machine.free for one in stage_needs(sizes)):
        sizes = replace(sizes, recipe=without_healing(recipe))
    found = MemoryNeeds(
        model=model,
        resident=held,
        stages=stage_needs(sizes),
        free_memory=machine.free,
        free_disk=shutil.disk_usage(folder).free,
        free_host=None if machine.host is None else machine.host.free,
    )
    streamed = stage_needs(replace(sizes, held=1))
    return found.model_copy(update={"advice": tuple(_advice(found, streamed))})


def too_little_to_heal(recipe: Recipe, opening: Opening) -> str:
    """Why the healing of a recipe may not fit into memory beside a teacher that is opened; empty where it fits."""
    assert recipe.heal is not None
    required = recipe.model_copy(update={"heal": recipe.heal.model_copy(update={"optional": False})})
    try:
        found = needs_of(required, opening)
    except ValueError as error:  # A budget that layers of one size could not meet, say.
        return f"what it takes cannot be told beforehand ({error})"
    need = next(one for one in found.stages if one.stage == "heal")
    free = found.free_memory - need.parts["process"]
    most = need.memory - need.parts["process"] - need.parts["weights"]
    return f"it takes up to {in_bytes(most)} of memory beside its teacher, {in_bytes(free)} are free" if most > free else ""


def unopened_amounts(recipe: Recipe, shape: ModelShape, opening: Opening) -> dict[str, Amounts]:
    """What the budget is a share of, where it is one of cache, arithmetic, bytes or active parameters; else nothing."""
    if recipe.is_by_hand or recipe.model is None or not is_measured(recipe):
        return {}
    context = recipe.text.length or min(shape.window or LONGEST_DEFAULT, LONGEST_DEFAULT)
    found = amounts_without_weights(recipe.model, dtype=opening.dtype, trust_remote_code=opening.trust, context=context)
    return {"latency": amounts_as_if_alike("time per token, as if all layers took the same", shape.n_layers), **found}


def sizes_of(
    recipe: Recipe,
    shape: ModelShape,
    machine: Machine,
    *,
    held: int | None = None,
    amounts: Mapping[str, Amounts] | None = None,
) -> Sizes:
    """The run with as many layers cut as its budget says, as if all were alike; what a replacement has beyond its layers does
    not count.

    Args:
        amounts: what a budget of other than layers and parameters is a share of.
    Raises:
        ValueError: a budget out of reach.
    """
    total = shape.other_parameters + shape.n_layers * shape.layer_parameters
    size = ModelSize(total=total, layers=(shape.layer_parameters,) * shape.n_layers)
    removable = tuple(sorted(set(range(shape.n_layers)) - recipe.protected(shape.n_layers)))
    kind = parse_replacement(recipe.replace)
    put_back = NOTHING if kind is None else PutBack(kind.name, kind.n_layers, kind.n_inherited)
    if recipe.is_by_hand:
        gone = sum(unit.kind == "layer" for unit in named_gone(recipe, shape.n_layers))
        n_removed = gone - put_back.layers + put_back.inherits
        if recipe.grow is not None:
            n_removed = shape.n_layers - parse_depth(recipe.grow.to, shape.n_layers)
        return Sizes(recipe, shape, machine, n_removed=n_removed, n_cut=gone, held=held)
    if recipe.units != "layers":  # A stock layer without a sublayer takes as much as with it.
        return Sizes(recipe, shape, machine, n_removed=0, n_cut=0, held=held)
    cut = resolve(budget_of(recipe), size, put_back=put_back, removable=removable, n_most=len(removable), amounts=amounts)
    return Sizes(recipe, shape, machine, n_removed=cut.n_net, n_cut=cut.n, held=held)


def stage_needs(sizes: Sizes) -> tuple[StageNeed, ...]:
    """What each stage that the recipe has says of itself, in order."""
    return tuple(stage.takes(sizes) for stage in STAGES.values() if stage.is_asked(sizes.recipe))


LESS = {
    "states": "fewer tokens in a sample (--length) or fewer samples (--samples, --fit-tokens) take less",
    "work": "fewer tokens in a sample (--length) or fewer samples (--samples, --fit-tokens) take less",
    "sums": "--repair none or map has smaller sums than one that solves for the whole MLP map",
    "trained": "--polish none trains nothing",
    "second model": "--dtype bfloat16 halves what a float32 model takes",
}
"""What takes less, by the largest part of a stage."""


def _advice(found: MemoryNeeds, streamed: tuple[StageNeed, ...]) -> list[str]:
    said = []
    peak = found.peak
    if peak.memory > found.free_memory:
        most = max((part for part in peak.parts if part != "margin"), key=lambda part: peak.parts[part]).replace("_", " ")
        less = max(one.memory for one in streamed)
        there = in_bytes(found.free_memory)
        said.append(f"{peak.stage} takes up to {in_bytes(peak.memory)}, {there} are there; most of it: {most}")
        if found.resident is None and less < peak.memory:
            said.append(f"--resident 1 takes up to {in_bytes(less)}: layers are read from disk, results are the same")
        said += [LESS[most]] if most in LESS else []
    host = max(one.host for one in found.stages)
    if found.free_host is not None and host > found.free_host:
        there = in_bytes(found.free_host)
        said.append(f"beside the card it takes {in_bytes(host)} of the machine's memory, {there} are there; give --resident 1")
    if found.disk > found.free_disk:
        there = in_bytes(found.free_disk)
        said.append(f"the run writes {in_bytes(found.disk)}, {there} are free; give an --out on a larger disk")
    return [*said, *(one.refusal for one in found.stages if one.refusal)]


def needs_table(found: MemoryNeeds) -> Table:
    """The stages for people; the largest stands out."""
    layers = "all layers" if found.resident is None else f"{found.resident} of the layers, the rest read from disk,"
    verdict = "fits" if found.fits else "may not fit"
    host = max(one.host for one in found.stages)
    beside = "" if found.free_host is None else f" of the card, {in_bytes(host)} of {in_bytes(found.free_host)} of the machine"
    rows = []
    for one in found.stages:
        parts = ", ".join(f"{name.replace('_', ' ')} {in_bytes(size)}" for name, size in one.parts.items() if size)
        rows.append((one.stage, one.memory or None, one.disk or None, one.scratch or None, parts))
    return Table(
        f"Memory and disk of every stage at most, {layers} in memory" + (" of the card" if found.free_host is not None else ""),
        (
            Column("stage"),
            *numbers("memory at the peak", "leaves on disk", "scratch on disk", form=in_bytes),
            Column("of which"),
        ),
        tuple(rows),
        notes=(
            f"{verdict}: {in_bytes(found.peak.memory)} of {in_bytes(found.free_memory)} memory{beside}, "
            f"{in_bytes(found.disk)} of {in_bytes(found.free_disk)} disk",
            *found.advice,
        ),
        strong=found.stages.index(found.peak),
    )
