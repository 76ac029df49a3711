"""Magnitude pruning: the smallest weights of every map go. No text is read.

A baseline: it sees weights, not what passes through them.
Shapes: D outputs, F inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.prune.amount import Amount
from shoal.prune.input_sums import InputSums
from shoal.prune.lowest_scores import lowest_of_all
from shoal.prune.pruner import Pruner

if TYPE_CHECKING:
    from torch import Tensor


def thin_by_size(w_DF: Tensor, sums: InputSums | None, amount: Amount) -> Tensor:
    """Zero the smallest ``|w|`` of the map."""
    return w_DF.masked_fill(lowest_of_all(w_DF.abs(), amount), 0.0)


MAGNITUDE = Pruner("magnitude", "the smallest weights of each map; no text is read", "weights", thin_by_size)
