"""The stage train: what the plan put in is trained, in ``train/``, ``train.json`` and ``train.safetensors``."""

from __future__ import annotations

import shutil
from dataclasses import replace

from shoal.run.asking import oracle
from shoal.run.folder import RunFolder
from shoal.run.keys import train_key
from shoal.run.stage import Made, Stage, State, Values, read_values, write_values
from shoal.words.progress import Progress, silent
from shoal.words.records import write_atomically

TRAINED = "train.safetensors"


def key(state: State) -> str | None:
    """None with ``polish: none``, and where a repair that was undone leaves nothing to polish."""
    if state.inputs.recipe.training() is None or not (state.planned.replacements or state.values.tensors):
        return None
    return train_key(state.inputs, state.planned, state.values.digest)


def load(state: State, folder: RunFolder) -> State:
    from shoal.train.train_result import TrainResults

    results = TrainResults.load(folder / "train.json")
    return replace(state, values=read_values(folder / TRAINED, results.values_digest), trained=results.results)


def run(state: State, folder: RunFolder, progress: Progress) -> Made:
    from shoal.train.train_plan import train_plan
    from shoal.train.train_result import TrainResults

    inputs = state.inputs
    config = inputs.recipe.training()
    assert config is not None, "a run without training has no key"
    claimed = key(state)
    assert claimed is not None
    folder.workers.on_first(lambda: claim(folder, "train", claimed))
    judge = oracle(inputs, inputs.selection, what="validate", progress=silent)
    trained = train_plan(
        inputs.view,
        state.planned,
        training=inputs.training,
        selection=inputs.selection,
        config=config,
        values=state.values.tensors,
        folder=folder / "train",
        quality=lambda student: judge.measure([student])[0].kl,
        progress=lambda step, n_steps, loss: progress("train", step, n_steps),
        workers=inputs.workers,
    )

    def write() -> str:
        digest = write_values(folder / TRAINED, trained.values).digest
        TrainResults(results=trained.results, values_digest=digest).save(folder / "train.json")
        return digest

    digest = inputs.workers.from_first(write)
    state = replace(state, values=Values(trained.values, digest), trained=trained.results)
    return Made(state, (TRAINED, "train.json", "train"))


def claim(folder: RunFolder, name: str, key: str) -> None:
    """Make ``name/`` the work folder of a stage with these inputs: an unfinished one of the same inputs is continued.

    Raises:
        ValueError: it holds unfinished work of other inputs, and ``overwrite`` was not given.
    """
    mark = folder / name / "key"
    if mark.exists() and mark.read_text() != key:
        if not folder.overwrite:
            raise ValueError(
                f"{folder / name} holds an unfinished run with other options, model or text; add --overwrite to drop it, "
                "or give another --out"
            )
        shutil.rmtree(folder / name)
    write_atomically(mark, key.encode())


POLISH = Stage("train", "gradient training of exactly what repair and replacements set", key, run, load)
