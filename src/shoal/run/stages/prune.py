"""The stage prune: weights set to zero, in ``prune.json``, ``pruned.json`` (the plan) and ``prune/``, a file for each layer.

A layer's file is written when the layer is done, so a run that was killed goes on from the last of them. The values of all
layers together are as large as the model: where layers are on disk they are mapped, not read.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from shoal.edits.plan import Plan
from shoal.edits.prune import Prune
from shoal.engine.tensors import each_tensor, mapped_tensors, save_tensors
from shoal.prune.allocator import MapKey
from shoal.prune.amount import Amount
from shoal.prune.input_sums import MOST_MOMENTS
from shoal.prune.prune_config import PruneConfig
from shoal.prune.table import ALLOCATORS, PRUNERS
from shoal.prune.thin import ThinnedLayer, ThinSite, evidence_of, thin, thin_site
from shoal.prune.thin_result import LayerZeros, ThinnedMap, ThinResult
from shoal.recipes.recipe import Recipe
from shoal.run.folder import RunFolder
from shoal.run.keys import prune_key
from shoal.run.memory_plan.sizes import Sizes, StageNeed
from shoal.run.pace import Pace
from shoal.run.stage import Made, Stage, State, Values
from shoal.run.stages.polish import claim
from shoal.words.progress import tell
from shoal.words.records import file_digest, stable_hash

N_FACTORS = 4
"""Matrices beside the second moments of a map while its zeros are chosen: a damped copy, two Cholesky factors, an inverse."""

FOLDER, RESULT, PRUNED = "prune", "prune.json", "pruned.json"


def key(state: State) -> str:
    return prune_key(state.inputs, state.planned, state.values.digest)


def run(state: State, folder: RunFolder) -> Made:
    folder.workers.on_first(lambda: claim(folder, FOLDER, key(state)))
    result, plan = _thinned(state, folder)

    def write() -> None:
        digests = [file_digest(_file(folder / FOLDER, layer)) for layer in result.by_layer()]
        plan.save(folder / PRUNED)
        result.model_copy(update={"values_digest": stable_hash(digests)}).save(folder / RESULT)

    folder.workers.on_first(write)
    return Made(load(state, folder), (RESULT, PRUNED, FOLDER))


def load(state: State, folder: RunFolder) -> State:
    result = ThinResult.load(folder / RESULT)
    found = pruned_values(folder.path, mapped=state.inputs.is_streamed)
    values = Values({**state.values.tensors, **found}, stable_hash(state.values.digest, result.values_digest))
    return replace(state, plan=Plan.load(folder / PRUNED), values=values, thinned=result)


def pruned_values(folder: Path, *, mapped: bool = False) -> dict[str, Tensor]:
    """The values with zeros of a run folder, under the names of the plan's edits; none where nothing was thinned.

    Args:
        mapped: left on disk until they are used.
    """
    found: dict[str, Tensor] = {}
    for file in sorted((folder / FOLDER).glob("layer-*.safetensors")):
        layer = int(file.stem.removeprefix("layer-"))
        tensors = mapped_tensors(file) if mapped else each_tensor(file)
        found.update({f"prune.{layer}.{name}": value for name, value in tensors})
    return found


def _thinned(state: State, folder: RunFolder) -> tuple[ThinResult, Plan]:
    """Every layer thinned, its values in its file: the record, and the plan with its edits."""
    inputs, config = state.inputs, _config(state.recipe)
    started = time.monotonic()
    samples = inputs.calibration if config.reads_text else None
    batches = [] if samples is None else inputs.batches(samples)
    site = thin_site(inputs.view, state.student(), batches, pattern=config.fixed_pattern, workers=inputs.workers)
    share, amounts, outliers = _amounts(state, site)
    edits: list[Prune] = []
    maps: list[ThinnedMap] = []
    for done in thin(
        site,
        PRUNERS.named(config.method),
        amounts,
        known=lambda layer: _read_layer(folder, layer),
        after_layer=lambda layer: tell(f"prune by {config.method}", layer + 1, inputs.view.n_layers),
    ):
        _write_layer(folder, done)
        edits.append(Prune(layer=done.layer, parameters=tuple(sorted(done.values)), method=config.method))
        maps += done.maps
    result = ThinResult(
        config=config,
        share=share,
        maps=tuple(maps),
        left=site.left,
        outliers=outliers,
        n_samples=0 if samples is None else samples.n_samples,
        n_tokens=0 if samples is None else samples.n_tokens,
        data="" if samples is None else samples.data,
        data_hash="" if samples is None else samples.data_hash,
        seconds=time.monotonic() - started,
    )
    return result, state.planned.model_copy(update={"edits": (*state.planned.edits, *edits)})


def _amounts(state: State, site: ThinSite) -> tuple[float, Mapping[MapKey, Amount], dict[int, float]]:
    """The share of zeros in all maps together, the amount of each map, and the outliers where they were counted."""
    config, plan, n_layers = _config(state.recipe), state.planned, state.inputs.view.n_layers
    outliers: dict[int, float] = {}
    evidence = evidence_of(site, outliers=outliers, after_layer=lambda layer: tell("outliers", layer + 1, n_layers))
    n_weights = sum(evidence.sizes.values())
    share = config.share(of_maps=n_weights, parameters=plan.after.parameters, before=plan.before.parameters)
    pattern = config.fixed_pattern
    if pattern is not None:
        return share, dict.fromkeys(evidence.shapes, pattern), outliers
    divide = ALLOCATORS.named(config.allocate).divide
    return share, divide(evidence, share, spread=config.spread, outlier=config.outlier), outliers


def _config(recipe: Recipe) -> PruneConfig:
    assert recipe.prune is not None, "a recipe without zeros has not this stage"
    return recipe.prune


def _file(folder: Path, layer: int) -> Path:
    return folder / f"layer-{layer:04}.safetensors"


def _write_layer(folder: RunFolder, done: ThinnedLayer) -> None:
    """The tensors first: a layer counts as done when its record is there."""

    def write() -> None:
        file = _file(folder / FOLDER, done.layer)
        if not file.with_suffix(".json").exists():
            save_tensors(file, done.values)
            LayerZeros(maps=done.maps).save(file.with_suffix(".json"))

    folder.workers.on_first(write)


def _read_layer(folder: RunFolder, layer: int) -> ThinnedLayer | None:
    """What an earlier run of the same inputs made of a layer, on every process."""
    file = _file(folder / FOLDER, layer)
    if not folder.workers.from_first(file.with_suffix(".json").exists):
        return None
    return ThinnedLayer(layer, dict(each_tensor(file)), LayerZeros.load(file.with_suffix(".json")).maps)


def takes(sizes: Sizes) -> StageNeed:
    """Values of all layers where they are in memory, a layer twice, second moments with the factors of the widest map."""
    config, shape = _config(sizes.recipe), sizes.shape
    widest = 8 * shape.ffn**2
    is_solved = PRUNERS.named(config.method).reads == "moments"
    moments = min(4 * widest, MOST_MOMENTS + widest) + N_FACTORS * widest if is_solved else 0
    values = sizes.n_kept * shape.layer_bytes
    return sizes.need(
        "prune",
        states=sizes.all_states(2, sizes.tokens("calibration")) if config.reads_text else 0,
        work=sizes.layer_work(sizes.n_batch),
        sums=moments,
        values=(values if sizes.held is None else 0) + 2 * shape.layer_parameters * 8,
        disk=values,
    )


def lasts(pace: Pace) -> dict[str, float]:
    """A layer runs twice for its sums, as it is and with its zeros, and once more for each where outliers divide the share.

    SparseGPT factorises and inverts the second moments of every map (4/3 n^3 and 1/3 n^3) and goes through its columns.
    """
    config, shape, rates = _config(pace.recipe), pace.shape, pace.rates
    width, wide, n_tokens = shape.hidden, shape.ffn, pace.tokens("calibration")
    reads = PRUNERS.named(config.method).reads
    n_walks = (reads != "weights") + (ALLOCATORS.named(config.allocate).reads == "inputs" and config.fixed_pattern is None)
    seconds = 2 * n_walks * pace.layers(n_tokens)
    if reads == "moments":
        maps = [(width, width)] * 4 + [(width, wide)] * 2 + [(wide, width)]  # (inputs, outputs)
        sums = sum(2 * n**2 for n in (width, width, width, wide))  # Maps that read one tensor share its sums.
        seconds += shape.n_layers * n_tokens * sums / rates.products
        seconds += shape.n_layers * sum(5 * n**3 / 3 + n**2 * n_outputs for n, n_outputs in maps) / rates.solves
    return {"prune": seconds}


PRUNE = Stage(
    "prune",
    "weights of the layers that stay set to zero",
    key,
    run,
    load,
    takes,
    lasts,
    is_asked=lambda recipe: recipe.prune is not None,
)
