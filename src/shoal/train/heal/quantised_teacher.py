"""What it costs to be taught by a teacher in few bits: its distance from the teacher as its checkpoint is, and its bytes."""

from __future__ import annotations

from pathlib import Path

import torch

from shoal.engine.shards import read_shards
from shoal.train.heal.losses import measured
from shoal.train.heal.result import QuantisedFigures
from shoal.train.heal.teachers import RunningTeacher, Teacher
from shoal.train.heal.text_rows import TextRows, counted
from shoal.words.progress import each

N_BATCHES, BATCH = 8, 4


@torch.no_grad()
def compare_teachers(whole: Teacher, quantised: Teacher, text: TextRows, *, bits: int, source: Path) -> QuantisedFigures:
    """KL between the two over the first samples of a text.

    Args:
        quantised: a model in memory.
        source: the teacher's checkpoint, whose bytes are counted.
    """
    assert isinstance(quantised, RunningTeacher)
    model = quantised.model
    kl, n = 0.0, 0
    for batch in each("compare the teacher in few bits", text.batches(BATCH)[:N_BATCHES]):
        batch = {name: value.to(model.device) for name, value in batch.items()}
        _, more = measured(quantised.selection(batch), whole.selection(batch), batch["labels"])
        kl += 0.0 if more is None else float(more)
        n += int(counted(batch["labels"]).sum())
    stored = sum(slot.n_bytes for shard in read_shards(source) for slot in shard.slots.values())
    held = sum(value.numel() * value.element_size() for value in model.parameters())
    return QuantisedFigures(bits=bits, n_bytes=held, n_bytes_whole=stored, kl=kl / n)
