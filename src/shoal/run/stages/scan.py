"""The stage scan: one pass over calibration text, in ``scan.json``, ``scan.safetensors`` and the heat map."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from shoal.checkpoint.blueprint import check_can_be_cut
from shoal.measure.observers import OBSERVERS, ScanFacts
from shoal.measure.scan import Asked, Scan, scan
from shoal.recipes.reads import needs_scan
from shoal.run.folder import RunFolder
from shoal.run.keys import scan_key
from shoal.run.memory_plan.sizes import Sizes, StageNeed
from shoal.run.pace import Pace
from shoal.run.stage import Made, Stage, State
from shoal.show.chart_files import save_figures
from shoal.show.heat import Heat
from shoal.words.progress import each_batch


def key(state: State) -> str:
    return scan_key(state.inputs)


def run(state: State, folder: RunFolder) -> Made:
    inputs = state.inputs
    check_can_be_cut(inputs.opened.model.config, model_class=type(inputs.opened.model))
    batches = inputs.batches(inputs.calibration)
    facts = ScanFacts(inputs.view.n_layers, inputs.view.hidden_size, inputs.length, inputs.recipe.seed)
    found = scan(
        inputs.view,
        batches,
        provenance=inputs.provenance(inputs.calibration),
        observers=[OBSERVERS.named(name).build(facts) for name in inputs.recipe.observers],
        after_batch=each_batch("scan", len(batches)),
        workers=inputs.workers,
    )
    recipe = inputs.recipe
    asked = Asked(text=recipe.text.model_dump(mode="json"), seed=recipe.seed, observers=recipe.observers)
    found = replace(found, asked=asked)
    inputs.workers.on_first(lambda: found.save(folder.path))
    pictures = inputs.workers.from_first(lambda: draw(found, folder.path, by=inputs.recipe.by))
    return Made(replace(state, scan=found), ("scan.json", "scan.safetensors", *pictures))


def load(state: State, folder: RunFolder) -> State:
    return replace(state, scan=Scan.load(folder.path))


def takes(sizes: Sizes) -> StageNeed:
    recipe, shape = sizes.recipe, sizes.shape
    facts = ScanFacts(shape.n_layers, shape.hidden, sizes.length, recipe.seed)
    geometry = min(sizes.machine.scan, 2 * sizes.length * shape.n_layers * shape.hidden * 4)
    return sizes.need(
        "scan",
        {name: OBSERVERS.named(name).n_bytes(facts) for name in recipe.observers},
        states=sizes.states(shape.n_layers + 1, sizes.tokens("calibration")),
        work=sizes.layer_work(sizes.n_batch) + geometry,
    )


def lasts(pace: Pace) -> dict[str, float]:
    """The layers, and a tenth of their time for what is summed; where spans are chosen in rounds, anew for each."""
    return {"scan": 1.1 * pace.recipe.rounds * pace.layers(pace.tokens("calibration"))}


def draw(found: Scan, folder: Path, *, by: str) -> list[str]:
    """The heat map of UIDL's figure for the table in use (angular distance of the last token where it has none)."""
    table = found.tables.get(by) or found["angular/last"]
    # Without matplotlib there is none, and the command says so.
    return [path.name for path in save_figures([Heat((table,))], folder)]


SCAN = Stage(
    "scan",
    "scores of every span, in one pass over calibration text",
    key,
    run,
    load,
    takes,
    lasts,
    is_asked=needs_scan,
)
