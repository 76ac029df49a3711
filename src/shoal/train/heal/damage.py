"""How much each layer of a student adds to its distance from the teacher, for rank schedules that follow the damage.

At boundary i the distance is the relative squared error of the student's stream against the teacher's at the boundary that it
stands for; layer i adds the distance behind it minus the distance before it. What a cut did is counted to the layer before it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shoal.train.heal.cut_place import CutPlace
from shoal.train.heal.streams import run_model
from shoal.train.heal.teachers import Teacher
from shoal.train.stream_losses import relative_mse


@torch.no_grad()
def damage_by_layer(
    model: Any, layers: Sequence[nn.Module], cut: CutPlace, teacher: Teacher, batches: Sequence[dict[str, Tensor]]
) -> tuple[float, ...]:
    """What each of the n layers adds (below 0 where it lessens the distance), the mean over batches of one size."""
    boundaries = range(cut.n_layers + 1)
    sums = torch.zeros(cut.n_layers + 1, dtype=torch.float64)
    for batch in batches:
        ours = run_model(model, layers, batch, boundaries).states
        theirs = teacher.training(batch, cut.stands_for).states
        mask_BT = batch.get("attention_mask")
        sums += torch.stack([relative_mse(ours[i], theirs[cut.stands_for[i]], mask_BT).double().cpu() for i in boundaries])
    return tuple((sums.diff() / len(batches)).tolist())
