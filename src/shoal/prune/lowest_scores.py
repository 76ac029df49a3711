"""Weights of the lowest scores set to zero: of a whole map, of each of its rows, or of groups along the rows.

Of equal scores the first go. Shapes: D outputs, F inputs of a map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.prune.amount import Amount, SparsePattern, n_zeros

if TYPE_CHECKING:
    from torch import Tensor


def lowest_of_all(score_DF: Tensor, amount: Amount) -> Tensor:
    """(D, F) bool, True on the weights that go: the lowest of the map, or of each group where the amount is a pattern."""
    if isinstance(amount, SparsePattern):
        return lowest_of_groups(score_DF, amount)
    lowest = score_DF.flatten().argsort(stable=True)[: n_zeros(amount, score_DF.numel())]
    return score_DF.new_zeros(score_DF.numel()).bool().index_fill(0, lowest, True).view(score_DF.shape)


def lowest_of_rows(score_DF: Tensor, amount: Amount) -> Tensor:
    """(D, F) bool, True on the weights that go: as many of every row, or of each group where the amount is a pattern."""
    if isinstance(amount, SparsePattern):
        return lowest_of_groups(score_DF, amount)
    lowest_DK = score_DF.argsort(dim=1, stable=True)[:, : n_zeros(amount, score_DF.shape[1])]
    return score_DF.new_zeros(score_DF.shape).bool().scatter(1, lowest_DK, True)


def lowest_of_groups(score_DF: Tensor, pattern: SparsePattern) -> Tensor:
    """(D, F) bool, True on the weights that go: the lowest of every group of neighbouring inputs of an output.

    Raises:
        ValueError: the inputs cannot be divided into such groups.
    """
    n_outputs, n_inputs = score_DF.shape
    if n_inputs % pattern.of:
        raise ValueError(f"a map with {n_inputs} inputs has no whole groups of {pattern.of}; use another pattern, or none")
    score_DGM = score_DF.view(n_outputs, -1, pattern.of)
    lowest_DGK = score_DGM.argsort(dim=2, stable=True)[:, :, : pattern.of - pattern.keep]
    return score_DGM.new_zeros(score_DGM.shape).bool().scatter(2, lowest_DGK, True).view(score_DF.shape)
