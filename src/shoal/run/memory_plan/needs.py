"""Memory and disk of every stage, from the config and the sizes of files alone: nothing is loaded, nothing runs.

A stage takes what the process has anyway, the weights it holds, and what it works on: states of a batch (of all batches where
layers are read from disk, up to the share that a pass may keep), sums, gradients and moments, a second model. Terms that are
below a percent on any real model are left out. With ``--device cuda`` the memory that counts is the card's, and the machine's
is told beside it. ``benchmarks/memory.py`` and ``gpu.py`` compare the figures with what a run then takes.

Letters: T tokens per batch, D hidden size, F inputs of the MLP's map, V vocabulary, b bytes per element.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.fit.table import repair_named
from shoal.recipes.recipe import Recipe
from shoal.run.candidate_repair import LINEAR_ERROR_BYTES, repairs_candidates
from shoal.run.job import LONGEST_DEFAULT, SHARE_BESIDE_STUDENT, TOKENS_PER_BATCH, default_samples, layers_in_memory
from shoal.run.memory_plan.machine import N_DIVERGENCE, Machine, machine_of
from shoal.run.memory_plan.shape import shape_of
from shoal.run.memory_plan.trained_sizes import on_logits, training_of
from shoal.run.searching import runs_the_model
from shoal.train.config import DEFAULT_TOKENS
from shoal.words.model_shape import ModelShape
from shoal.words.numbers import in_bytes
from shoal.words.records import Record

if TYPE_CHECKING:
    from shoal.select.budget import ResolvedBudget
    from shoal.show.table import Table

ADAM, GRADIENT = 4 + 8, 4
"""Bytes per trained parameter: the fp32 master and two moments; its gradient."""


class StageNeed(Record):
    """Bytes of one stage.

    Attributes:
        memory: of the whole process at the stage's peak; ``parts`` add up to it.
        host: where that is a card's memory, bytes of the machine's; most of it while the model is opened.
        disk: what the stage writes and leaves; ``scratch``: what it writes and removes.
    """

    stage: str
    memory: int
    parts: dict[str, int]
    host: int = 0
    disk: int = 0
    scratch: int = 0


class MemoryNeeds(Record):
    """What a run will take, and what there is.

    Attributes:
        resident: layers held in memory; None: all.
        free_memory, free_disk: now, the process as it is included in the first; with a card the memory is the card's.
        free_host: of the machine, where layers run on a card.
        advice: what to change where it does not fit, or where training may be refused; else empty.
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
    *,
    resident: str = "auto",
    device: str = "cpu",
    dtype: str | None = None,
    trust_remote_code: bool = False,
    out: Path | None = None,
) -> MemoryNeeds:
    """Predict every stage of :func:`shoal.run.compress.compress` with these arguments.

    Numbers of samples that the recipe leaves open are taken at their defaults: a short text takes less.

    Args:
        out: where the run folder will be, for the free disk.
    Raises:
        ValueError: no such model, a model that cannot be cut, a budget out of reach.
    """
    if recipe.model is None:
        raise ValueError("no model given; name a hub id or a folder")
    shape = shape_of(recipe.model, dtype=dtype, trust_remote_code=trust_remote_code)
    held = layers_in_memory(
        recipe.model, resident, device=device, trust_remote_code=trust_remote_code, share=SHARE_BESIDE_STUDENT
    )
    cut = _cut(recipe, shape)
    place = machine_of(device)
    folder = next(place for place in (Path(out or "."), *Path(out or ".").absolute().parents) if place.exists())
    stages = _stages(recipe, shape, cut=cut, held=held, place=place)
    found = MemoryNeeds(
        model=recipe.model,
        resident=held,
        stages=stages,
        free_memory=place.free,
        free_disk=shutil.disk_usage(folder).free,
        free_host=None if place.host is None else place.host.free,
    )
    streamed = _stages(recipe, shape, cut=cut, held=1, place=place)
    return found.model_copy(update={"advice": (*_advice(found, streamed), *_refused(recipe, shape, cut, held))})


def _cut(recipe: Recipe, shape: ModelShape) -> ResolvedBudget:
    """How many layers the budget removes, as if all were alike; what a replacement has beyond its layers does not count."""
    from shoal.edits.replace.table import parse_replacement
    from shoal.run.asking import budget_of
    from shoal.run.by_hand import asked_said
    from shoal.select.budget import ResolvedBudget, resolve
    from shoal.select.model_size import NOTHING, ModelSize, PutBack
    from shoal.words.unit_names import removed_by_hand

    total = shape.other_parameters + shape.n_layers * shape.layer_parameters
    size = ModelSize(total=total, layers=(shape.layer_parameters,) * shape.n_layers)
    removable = tuple(sorted(set(range(shape.n_layers)) - recipe.protected(shape.n_layers)))
    kind = parse_replacement(recipe.replace)
    put_back = NOTHING if kind is None else PutBack(kind.name, kind.n_layers, kind.n_inherited)
    if recipe.is_by_hand:
        gone = sum(unit.kind == "layer" for unit in removed_by_hand(recipe.layers, recipe.keep, shape.n_layers))
        n_net = gone - put_back.layers + put_back.inherits
        return ResolvedBudget(n_net=n_net, n=gone, n_layers=shape.n_layers, asked=asked_said(recipe))
    return resolve(budget_of(recipe), size, put_back=put_back, removable=removable, n_most=len(removable))


def _stages(
    recipe: Recipe, shape: ModelShape, *, cut: ResolvedBudget, held: int | None, place: Machine
) -> tuple[StageNeed, ...]:
    from shoal.measure.observers import ScanFacts, observer_named
    from shoal.measure.removals import MOST_TOGETHER

    length = recipe.text.length or min(shape.window or LONGEST_DEFAULT, LONGEST_DEFAULT)
    n_batch = max(1, TOKENS_PER_BATCH // length) * length
    state = shape.hidden * shape.itemsize  # of one token
    work = _activations(shape, n_batch)
    geometry = min(place.scan, 2 * length * shape.n_layers * shape.hidden * 4)
    is_streamed = held is not None
    if held is None:
        weights = shape.other_bytes + shape.n_layers * shape.layer_bytes
    else:
        weights = shape.other_bytes + min(shape.n_layers, held + 1) * shape.layer_bytes  # one more is read ahead
    kept = shape.n_layers - cut.n_net
    student = shape.other_bytes + kept * shape.layer_bytes

    def states(n_streams: int, n_tokens: int) -> tuple[int, int]:
        """In memory and beyond it: of one batch, or of all where they wait between the layers."""
        if not is_streamed:
            return n_streams * n_batch * state, 0
        everything = n_streams * n_tokens * state
        return min(everything, place.spill), max(0, everything - place.spill)

    def read_back(n_streams: int, on_disk: int) -> int:
        """Of states that wait on disk for an observer, those of one sample."""
        return n_streams * length * state if on_disk else 0

    def comparing(n_tokens: int) -> int:
        """Logits of a batch, teacher's and student's, and what their divergence takes."""
        n = min(n_batch, n_tokens)
        return 2 * n * shape.vocabulary * shape.itemsize + min(place.logits, N_DIVERGENCE * n * shape.vocabulary * 4)

    def judging(n_tokens: int) -> int:
        """Temporaries of a measure on the logits of so many tokens, batch by batch; the heap keeps those of the layers."""
        return _activations(shape, min(n_batch, n_tokens)) + comparing(n_tokens)

    def need(stage: str, *, disk: int = 0, scratch: int = 0, **parts: int) -> StageNeed:
        """``scratch``: states beyond the memory of the place; a card's go to the machine's before they go to disk."""
        parts = {"process": place.base, "weights": weights} | parts
        on_host, host = 0, 0
        if place.host is not None:
            on_host = min(scratch, place.host.spill)
            host = place.host.base + (weights if held is None else shape.layer_bytes) + on_host
        return StageNeed(stage=stage, memory=sum(parts.values()), parts=parts, host=host, disk=disk, scratch=scratch - on_host)

    found = []
    n_calibration = (recipe.text.samples or default_samples("calibration", length)) * length
    n_selection = (recipe.text.selection or default_samples("selection", length)) * length
    memory, disk = states(shape.n_layers + 1, n_calibration)
    facts = ScanFacts(shape.n_layers, shape.hidden, length, recipe.seed)
    scanning = {name: observer_named(name).n_bytes(facts) for name in recipe.observers}
    sample = read_back(shape.n_layers + 1, disk)
    found.append(need("scan", states=memory, work=work + geometry, sample=sample, scratch=disk, **scanning))

    n_students = recipe.guard + 1 if recipe.guard > 1 else 1
    memory, disk = states(n_students, n_selection)
    choose = need("plan", states=memory, work=judging(n_selection), scratch=disk)
    if recipe.guard > 1 and (recipe.repair != "none" or recipe.replace != "none"):
        n_spans, sums = _linear_error_sums(recipe, shape, cut)
        n_ends = min(2 * n_spans, shape.n_layers + 1)
        memory, disk = states(n_ends, n_calibration)
        spans = need("plan", states=memory, work=work, sums=sums, sample=read_back(n_ends, disk), scratch=disk)
        choose = max(choose, spans, key=lambda one: one.memory)
    if runs_the_model(recipe):
        n_searched = min(n_calibration, max(length, recipe.search.tokens))
        # the chain of the teacher and of the sets that grow from it, at every boundary; boundary L of all sets of a pass
        cache = min(place.spill, 2 * shape.n_layers * n_searched * state)
        memory, disk = states(MOST_TOGETHER + 1, n_searched)
        searching = need("plan", states=memory, cache=cache, work=judging(n_searched), scratch=disk)
        choose = max(choose, searching, key=lambda one: one.memory)
    repair = repair_named(recipe.repair).size(shape, kept)
    values = repair.parameters * shape.itemsize
    if recipe.repair != "none":
        n_fit = recipe.fit.n_tokens(max(shape.ffn, 4 * shape.hidden))
        # On a CPU the heap keeps what a batch took beside the sums that come next; a card's allocator gives it to them.
        beside = work + (repair.per_token * n_batch if place.host is None else 0)

        def fitting(stage: str, n_tokens: int, *, disk: int = 0) -> StageNeed:
            """Two states of the teacher and three of the student, and what the repair itself takes."""
            everything = 5 * n_tokens * state
            memory, scratch = min(everything, place.spill), max(0, everything - place.spill)
            own = {"states": memory, "sums": repair.sums, "pool": repair.pool, "values": values}
            return need(stage, work=beside, **own, disk=disk, scratch=scratch)

        if repairs_candidates(recipe):
            choose = max(choose, fitting("plan", n_fit // 4), key=lambda one: one.memory)
        found += [choose, fitting("fit", n_fit, disk=values)]
    else:
        found.append(choose)

    config = recipe.training()
    if config is not None:
        size = training_of(recipe, config, shape, cut=cut, kept=kept)
        n_micro = config.micro_batch * length
        graph = size.most_run * n_micro * (16 * shape.hidden + 6 * shape.ffn) * 4
        if on_logits(config):
            graph += 3 * n_micro * shape.vocabulary * shape.itemsize
            graph += min(place.logits, N_DIVERGENCE * n_micro * shape.vocabulary * 4)
        n_training = min(config.all_tokens() or DEFAULT_TOKENS, DEFAULT_TOKENS) if is_streamed else n_micro
        memory, scratch = states(3, max(n_training, n_selection))
        parts = {
            "states": memory,
            "values": values,
            "widened": size.widened,
            # masters and moments; what would be saved, and the best of it so far; the start of modules (of refits: the values)
            "trained": size.at_once * ADAM + (2 * size.at_once + size.modules) * shape.itemsize,
        }
        files = {"disk": size.parameters * (ADAM + shape.itemsize), "scratch": scratch}
        # gradients are there during a step, when of the layers on disk those it runs are held, and one that was read ahead
        n_held = min(size.most_kept + 1, shape.n_layers) if size.most_kept else 0
        step_weights = shape.other_bytes + n_held * shape.layer_bytes if is_streamed else weights
        step = need("train", weights=step_weights, work=graph, **parts, gradients=size.at_once * GRADIENT, **files)
        # where layers are read from disk, freed memory goes back before a measure and before its logits
        measuring = max(comparing(n_selection), work) if is_streamed else judging(n_selection)
        measured = need("train", work=measuring, **parts, **files)
        found.append(max(step, measured, key=lambda one: one.memory))
    second = 0 if is_streamed else student
    found.append(need("model", second_model=second, work=2 * length * shape.vocabulary * 4 + work, disk=student))
    n_evaluation = (recipe.text.evaluation or default_samples("evaluation", length)) * length
    memory, disk = states(2, n_evaluation)
    found.append(need("evaluation", second_model=second, states=memory, work=judging(n_evaluation), scratch=disk))
    return tuple(found)


def _activations(shape: ModelShape, n_tokens: int) -> int:
    """Bytes of a layer's temporaries."""
    return n_tokens * (8 * shape.hidden + 3 * shape.ffn) * shape.itemsize


def _linear_error_sums(recipe: Recipe, shape: ModelShape, cut: ResolvedBudget) -> tuple[int, int]:
    """Spans that are ranked by their linear error, and the bytes of their sums."""
    from shoal.fit.linear_error import bytes_per_span

    n_spans = max(1, shape.n_layers - len(recipe.protected(shape.n_layers)) - cut.n + 1)
    n_spans = min(n_spans, max(1, LINEAR_ERROR_BYTES // bytes_per_span(shape.hidden)))
    return n_spans, n_spans * bytes_per_span(shape.hidden)


def _advice(found: MemoryNeeds, streamed: tuple[StageNeed, ...]) -> tuple[str, ...]:
    said = []
    if found.peak.memory > found.free_memory:
        peak, most = found.peak, max(found.peak.parts, key=lambda part: found.peak.parts[part])
        less = max(one.memory for one in streamed)
        said.append(f"{peak.stage} takes {in_bytes(peak.memory)}, {in_bytes(found.free_memory)} are there; most of it: {most}")
        if found.resident is None and less < peak.memory:
            said.append(f"--resident 1 takes {in_bytes(less)}: layers are read from disk, results are the same")
        if most in ("states", "work"):
            said.append("fewer tokens in a sample (--length) or fewer samples (--samples, --fit-tokens) take less")
        if most == "sums":
            said.append("--repair none or map has smaller sums than one that solves for the whole MLP map")
        if most in ("trained", "gradients", "second_model"):
            said.append("--dtype bfloat16 halves what a float32 model takes; --polish none trains nothing")
    host = max(one.host for one in found.stages)
    if found.free_host is not None and host > found.free_host:
        there = in_bytes(found.free_host)
        said.append(f"beside the card it takes {in_bytes(host)} of the machine's memory, {there} are there; give --resident 1")
    if found.disk > found.free_disk:
        there = in_bytes(found.free_disk)
        said.append(f"the run writes {in_bytes(found.disk)}, {there} are free; give an --out on a larger disk")
    return tuple(said)


def _refused(recipe: Recipe, shape: ModelShape, cut: ResolvedBudget, held: int | None) -> tuple[str, ...]:
    """Layers that a step of the training runs stay in memory; which they are shows when the cut is chosen."""
    config = recipe.training()
    if held is None or config is None:
        return ()
    size = training_of(recipe, config, shape, cut=cut, kept=shape.n_layers - cut.n_net)
    if size.most_run <= held or (config.several != "joint" and not on_logits(config)):
        return ()
    return (
        f"training runs all kept layers behind the cut at every step, at most {size.most_run}: with fewer in memory it is "
        "refused; give a larger --resident, or train one part after the other (several: sequential under train of a recipe)",
    )


def needs_table(found: MemoryNeeds) -> Table:
    """The stages for people; the largest stands out."""
    from shoal.show.table import Column, Table, numbers

    layers = "all layers" if found.resident is None else f"{found.resident} of the layers, the rest read from disk,"
    verdict = "fits" if found.fits else "does not fit"
    host = max(one.host for one in found.stages)
    beside = "" if found.free_host is None else f" of the card, {in_bytes(host)} of {in_bytes(found.free_host)} of the machine"
    rows = []
    for one in found.stages:
        parts = ", ".join(f"{name.replace('_', ' ')} {in_bytes(size)}" for name, size in one.parts.items() if size)
        rows.append((one.stage, one.memory or None, one.disk or None, one.scratch or None, parts))
    return Table(
        f"Memory and disk of every stage, {layers} in memory" + (" of the card" if found.free_host is not None else ""),
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
