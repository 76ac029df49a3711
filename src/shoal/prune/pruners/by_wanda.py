"""Wanda: in every row of a map the weights of least ``|w_ij| * ||x_j||`` go; the others stay as they are. arXiv 2306.11695.

Assumption: what an output loses is about the sum of what its zeroed inputs carried, one by one; nothing is made up for.
Shapes: D outputs, F inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.prune.amount import Amount
from shoal.prune.input_sums import InputSums
from shoal.prune.lowest_scores import lowest_of_rows
from shoal.prune.pruner import Pruner

if TYPE_CHECKING:
    from torch import Tensor


def wanda_score(w_DF: Tensor, sums: InputSums) -> Tensor:
    """(D, F) ``|w| * ||x||``; the size of the weight alone where the map read nothing."""
    return w_DF.abs() if sums.saw_nothing else w_DF.abs() * sums.squares_F.to(w_DF).sqrt()


def thin_by_wanda(w_DF: Tensor, sums: InputSums | None, amount: Amount) -> Tensor:
    """Zero the lowest scores of every row."""
    assert sums is not None, "Wanda reads the norms of the inputs"
    return w_DF.masked_fill(lowest_of_rows(wanda_score(w_DF, sums), amount), 0.0)


WANDA = Pruner(
    "wanda",
    "in each row the least |weight| times norm of its input; no weight is updated",
    "norms",
    thin_by_wanda,
    ("2306.11695",),
)
