"""The step that trains: ``heal.json`` and ``heal.safetensors``, the values of the best step; ``heal/`` while it runs."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from shoal.engine.out_of_memory import is_out_of_memory
from shoal.engine.tensors import save_tensors
from shoal.run.folder import RunFolder
from shoal.run.healing.heal_bench import HealBench
from shoal.run.stages.polish import claim
from shoal.train.heal.result import HealTraining
from shoal.train.heal.table import TRAINABLE
from shoal.words.progress import tell

HEALED = "heal.safetensors"


def train_stage(bench: HealBench, folder: RunFolder) -> HealTraining:
    """``heal.json`` and ``heal.safetensors``: the values of the best step."""
    from shoal.train.heal.merge import trained_values
    from shoal.train.heal.train import train

    with folder.unless_refused():
        if folder.is_done("heal", bench.key):
            return HealTraining.load(folder / "heal.json")
        started = time.monotonic()
        pupil = bench.pupil  # The pupil is opened, and perhaps refused, before anything of the training is written.
    with folder.unless_refused():
        folder.workers.on_first(lambda: claim(folder, "heal", bench.key))
        with dropped_if_refused(bench, folder):
            training = train(
                pupil,
                bench.config,
                bench.lesson(folder / "heal"),
                folder / "heal" / "trainer",
                device=bench.device,
                tell=partial(tell, "heal"),
            )
    training = training.model_copy(update={"quantised": bench.quantised()})
    values = trained_values(pupil.model)  # Every process asks for them, because each may hold a part of them.

    def write() -> None:
        save_tensors(folder / HEALED, values)
        training.save(folder / "heal.json")

    folder.workers.on_first(write)
    if bench.config.processes == "shard":
        del bench.pupil, pupil  # Parameters of this pupil are parts; merging opens the student anew.
    gc.collect()  # A Trainer and its optimiser refer to each other; what is merged and measured next would stand beside them.
    folder.finish("heal", bench.key, seconds=time.monotonic() - started, files=[HEALED, "heal.json"])
    folder.workers.on_first(lambda: shutil.rmtree(folder / "heal", ignore_errors=True))
    return training


@contextmanager
def dropped_if_refused(bench: HealBench, folder: RunFolder) -> Iterator[None]:
    """A training that cannot be leaves no work behind: one that diverged would diverge again from its checkpoint, and one that
    found too little memory or text before its first checkpoint has done nothing.

    Raises:
        ValueError: in place of an error of memory, with what takes less.
    """
    from shoal.train.heal.trainer import DivergedError, last_whole_checkpoint

    try:
        yield
    except Exception as error:
        is_memory = is_out_of_memory(error)
        if not (is_memory or isinstance(error, ValueError)):
            raise
        leads_nowhere = isinstance(error, DivergedError) or last_whole_checkpoint(folder / "heal" / "trainer") is None
        if folder.workers.is_first and leads_nowhere:  # The others are not asked: they may have met no error.
            shutil.rmtree(folder / "heal", ignore_errors=True)
        if is_memory:
            raise ValueError(f"healing ran out of memory; give {less_memory(bench)}") from None
        raise


def less_memory(bench: HealBench) -> str:
    """Options that take less memory than those that were asked for."""
    config = bench.config
    length = bench.inputs.length if config.predict == "answers" else bench.given.length
    lighter = TRAINABLE.named(config.method).lighter
    less = {
        f"micro_batch 1 ({config.micro_batch} here)": config.micro_batch > 1,
        "checkpointing": not config.checkpointing,
        f"method {lighter}": bool(lighter),
        "teacher_bits 4": bench.request.teacher is not None and config.teacher_bits is None,
    }
    return ", ".join([*(name for name, takes_less in less.items() if takes_less), f"or samples shorter than {length} tokens"])
