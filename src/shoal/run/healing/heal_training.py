"""The step that trains: ``heal.json`` and ``heal.safetensors``, the values of the best step; ``heal/`` while it runs."""

from __future__ import annotations

import shutil
import time
from functools import partial
from typing import TYPE_CHECKING

from shoal.run.folder import RunFolder
from shoal.run.healing.heal_bench import HealBench
from shoal.run.stages.polish import claim
from shoal.words.progress import tell

if TYPE_CHECKING:
    from shoal.train.heal.result import HealTraining

HEALED = "heal.safetensors"


def train_stage(bench: HealBench, folder: RunFolder) -> HealTraining:
    """``heal.json`` and ``heal.safetensors``: the values of the best step."""
    from shoal.engine.tensors import save_tensors
    from shoal.train.heal.merge import trained_values
    from shoal.train.heal.result import HealTraining
    from shoal.train.heal.train import train

    with folder.unless_refused():
        if folder.is_done("heal", bench.key):
            return HealTraining.load(folder / "heal.json")
        started = time.monotonic()
        pupil = bench.pupil  # opened, and perhaps refused, before anything of the training is written
    folder.workers.on_first(lambda: claim(folder, "heal", bench.key))
    training = train(
        pupil,
        bench.config,
        bench.lesson(folder / "heal"),
        folder / "heal" / "trainer",
        device=bench.device,
        tell=partial(tell, "heal"),
    )
    training = training.model_copy(update={"quantised": bench.quantised()})
    values = trained_values(pupil.model)  # asked for by every process: each may hold a part of them

    def write() -> None:
        save_tensors(folder / HEALED, values)
        training.save(folder / "heal.json")

    folder.workers.on_first(write)
    if bench.config.processes == "shard":
        del bench.pupil, pupil  # its parameters are parts; merging opens the student anew
    folder.finish("heal", bench.key, seconds=time.monotonic() - started, files=[HEALED, "heal.json"])
    folder.workers.on_first(lambda: shutil.rmtree(folder / "heal", ignore_errors=True))
    return training
