"""The stage train: what the plan put in is trained, in ``train/``, ``train.json`` and ``train.safetensors``."""

import shutil
from dataclasses import replace

from shoal.edits.replace.table import parse_replacement
from shoal.fit.table import REPAIRS
from shoal.recipes.recipe import Recipe
from shoal.run.asking import oracle
from shoal.run.folder import OtherRun, RunFolder
from shoal.run.keys import train_key
from shoal.run.memory_plan.sizes import TRAINED_BYTES, Sizes, StageNeed
from shoal.run.pace import Pace
from shoal.run.stage import Made, Stage, State, Values, read_values, write_values
from shoal.select.table import SELECTORS
from shoal.train.config import DEFAULT_TOKENS, TrainConfig
from shoal.train.train_plan import train_plan
from shoal.train.train_result import TrainResults
from shoal.words.progress import tell
from shoal.words.records import write_atomically

TRAINED = "train.safetensors"


def key(state: State) -> str | None:
    """None where a repair that was undone leaves nothing to polish."""
    is_there = any(edit.is_trainable for edit in state.planned.edits)
    return train_key(state.inputs, state.planned, state.values.digest) if is_there else None


def load(state: State, folder: RunFolder) -> State:
    results = TrainResults.load(folder / "train.json")
    return replace(state, values=read_values(folder / TRAINED, results.values_digest), trained=results.results)


def run(state: State, folder: RunFolder) -> Made:
    inputs, config, claimed = state.inputs, _config(state.recipe), key(state)
    assert claimed is not None, "a stage without a key does not run"
    folder.workers.on_first(lambda: claim(folder, "train", claimed))
    judge = oracle(inputs, inputs.selection, what="validate")
    trained = train_plan(
        inputs.view,
        state.planned,
        training=inputs.training,
        selection=inputs.selection,
        config=config,
        values=state.values.tensors,
        folder=folder / "train",
        quality=lambda student: judge.measure([student])[0].kl,
        progress=lambda step, n_steps, loss: tell("train", step, n_steps),
        workers=inputs.workers,
    )

    def write() -> str:
        digest = write_values(folder / TRAINED, trained.values).digest
        TrainResults(results=trained.results, values_digest=digest).save(folder / "train.json")
        return digest

    digest = inputs.workers.from_first(write)
    state = replace(state, values=Values(trained.values, digest), trained=trained.results)
    return Made(state, (TRAINED, "train.json", "train"))


def _config(recipe: Recipe) -> TrainConfig:
    found = recipe.training()
    assert found is not None, "a recipe without training has not this stage"
    return found


def takes(sizes: Sizes) -> StageNeed:
    """Where one part is trained after the other, one layer's worth at a time; else all that repair and replacements set."""
    recipe, shape = sizes.recipe, sizes.shape
    config = _config(recipe)
    kind, refits = parse_replacement(recipe.replace), REPAIRS.named(recipe.repair).size(shape, sizes.n_kept)
    n_spans = 0 if kind is None else SELECTORS.named(recipe.select).most_spans(sizes.n_cut, recipe.max_spans)
    n_modules, per_span = (0, 0) if kind is None else (max(1, kind.n_layers), kind.most_parameters(shape))
    if recipe.merges_layers:  # Every group leaves one layer, all of which is trained.
        n_spans, n_modules, per_span = max(1, min(sizes.n_cut, sizes.n_kept)), 1, shape.layer_parameters
    n_trained = n_spans * per_span + refits.parameters
    on_logits = bool(config.needs() - {"boundary"})
    in_turns = config.several == "sequential"
    runs_on = on_logits or not in_turns and (n_spans > 1 or refits.layers > 1)
    n_run = sizes.n_kept if runs_on else max(1, n_modules if in_turns else n_spans * n_modules)
    at_once = max(per_span, min(refits.parameters, shape.layer_parameters)) if in_turns else n_trained
    n_selection = sizes.tokens("selection")
    n_waiting = min(config.all_tokens() or DEFAULT_TOKENS, DEFAULT_TOKENS)
    work = sizes.gradients(config.micro_batch * sizes.length, n_run, logits=on_logits)
    return sizes.need(
        "train",
        states=sizes.states(3, max(n_waiting, n_selection)),
        work=max(work, sizes.judging(n_selection)),
        values=(n_trained - at_once) * shape.itemsize,
        trained=at_once * TRAINED_BYTES + refits.layers * shape.layer_parameters * 4 * (shape.itemsize < 4),
        disk=n_trained * (12 + shape.itemsize),
        refusal=_refusal(n_run) if sizes.held is not None and n_run > sizes.held and (on_logits or not in_turns) else "",
    )


def _refusal(n_run: int) -> str:
    return (
        f"training runs all kept layers behind the cut at every step, at most {n_run}: with fewer in memory it is "
        "refused; give a larger --resident, or train one part after the other (several: sequential under train of a recipe)"
    )


def lasts(pace: Pace) -> dict[str, float]:
    return {"training": pace.training(_config(pace.recipe).all_tokens() or DEFAULT_TOKENS)}


def claim(folder: RunFolder, name: str, key: str) -> None:
    """Make ``name/`` the work folder of a stage with these inputs: an unfinished one of the same inputs is continued.

    Raises:
        OtherRun: it holds unfinished work of other inputs, and ``overwrite`` was not given.
    """
    mark = folder / name / "key"
    if mark.exists() and mark.read_text() != key:
        if not folder.overwrite:
            raise OtherRun(
                f"{folder / name} holds an unfinished run with other options, model or text{folder.otherwise()}; "
                "add --overwrite to drop it, or give another --out"
            )
        shutil.rmtree(folder / name)
    write_atomically(mark, key.encode())


POLISH = Stage(
    "train",
    "gradient training of exactly what repair, replacements and merges set",
    key,
    run,
    load,
    takes,
    lasts,
    is_asked=lambda recipe: recipe.training() is not None,
)
