"""The stage after the fit: what the plan put in is trained, in ``train/``, ``train.json`` and ``train.safetensors``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.run.folder import RunFolder
from shoal.run.job import Inputs
from shoal.run.keys import train_key
from shoal.run.stages.stages import VALUES, Fitted, claim, oracle
from shoal.words.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from shoal.edits.plan import Plan

TRAINED = "train.safetensors"


def train_stage(
    inputs: Inputs, folder: RunFolder, plan: Plan, *, values: Mapping[str, Tensor] | None = None, progress: Progress = silent
) -> Fitted:
    """Polish a plan as the recipe asks; with ``polish: none`` its values stand as they are.

    Args:
        values: of the plan's refits and replacements, where training starts.
    """
    from shoal.edits.student_of import student_of
    from shoal.engine.tensors import each_tensor, save_tensors
    from shoal.train.train_plan import train_plan
    from shoal.train.train_result import TrainResults

    values = dict(values or {})
    config = inputs.recipe.training()
    if config is None or not (plan.replacements or values):  # a repair that was undone leaves nothing to polish
        if "train" in folder.record.stages:
            folder.is_done("train", "none")  # refused without --overwrite, else forgotten
        return Fitted(student_of(inputs.view, plan, values), values, ())
    key = train_key(inputs, plan, values)
    if folder.is_done("train", key):
        found = dict(each_tensor(folder / TRAINED))
        return Fitted(student_of(inputs.view, plan, found), found, TrainResults.load(folder / "train.json").results)
    started = time.monotonic()
    folder.workers.on_first(lambda: claim(folder, "train", key))
    judge = oracle(inputs, inputs.selection, what="validate", progress=silent)
    trained = train_plan(
        inputs.view,
        plan,
        training=inputs.training,
        selection=inputs.selection,
        config=config,
        values=values,
        folder=folder / "train",
        quality=lambda student: judge.measure([student])[0].kl,
        progress=lambda step, n_steps, loss: progress("train", step, n_steps),
        workers=inputs.workers,
    )

    def write() -> None:
        save_tensors(folder / TRAINED, trained.values)
        TrainResults(results=trained.results).save(folder / "train.json")

    inputs.workers.on_first(write)
    folder.finish("train", key, seconds=time.monotonic() - started, files=[TRAINED, "train.json", "train"])
    return Fitted(trained.student, trained.values, trained.results)


def read_values(folder: Path) -> dict[str, Tensor]:
    """Values beside a plan: the trained ones where they were, else those of the closed form; none where there are no files."""
    from shoal.engine.tensors import each_tensor

    files = (folder / TRAINED, folder / VALUES)
    return next((dict(each_tensor(file)) for file in files if file.exists()), {})
