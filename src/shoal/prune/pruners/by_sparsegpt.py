"""SparseGPT: zeros column by column, and what each one costs is made up for by the columns to its right. arXiv 2301.00774.

H = sum x x^T + damping; U the upper Cholesky factor of H^-1, so that U_jj^2 = [(H_{j:,j:})^-1]_00. Of every block of columns
the entries of lowest w_ij^2 / U_jj^2 go, over all rows together; with a pattern, of each row and group. Setting w_ij to zero
changes the rest of the row by -w_ij / U_jj * U_{j,j:}, the least-squares answer among the columns that are not decided yet.
Shapes: D outputs, F inputs, C columns of a block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.prune.amount import Amount, SparsePattern
from shoal.prune.input_sums import InputSums
from shoal.prune.lowest_scores import lowest_of_all, lowest_of_groups
from shoal.prune.pruner import Pruner

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 128
"""Columns whose mask is chosen at once, as in the paper's program; a pattern needs whole groups inside."""

DAMPING = 0.01
"""Of the mean diagonal of H, added to it, as there."""


def thin_by_sparsegpt(w_DF: Tensor, sums: InputSums | None, amount: Amount, *, block: int = BLOCK) -> Tensor:
    """Zero and update, in fp64 throughout.

    Args:
        block: columns per block, rounded up to whole groups of a pattern.
    """
    assert sums is not None and sums.moments_FF is not None, "SparseGPT reads all second moments of the inputs"
    dtype, moments_FF = w_DF.dtype, sums.moments_FF
    dead_F = moments_FF.diagonal() == 0
    w_DF = w_DF.to(moments_FF).masked_fill(dead_F & (not sums.saw_nothing), 0.0)
    upper_FF = inverse_factor(moments_FF)
    if isinstance(amount, SparsePattern):
        block = -(-block // amount.of) * amount.of
    for start in range(0, w_DF.shape[1], block):
        stop = min(start + block, w_DF.shape[1])
        errors_DC = _thin_block(w_DF[:, start:stop], upper_FF[start:stop, start:stop], amount)
        w_DF[:, stop:] -= errors_DC @ upper_FF[start:stop, stop:]
    return w_DF.to(dtype)


def inverse_factor(moments_FF: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse of the damped moments; inputs that are always zero stand apart with 1."""
    import torch

    h_FF = moments_FF.clone()
    diagonal_F = h_FF.diagonal()
    diagonal_F[diagonal_F == 0] = 1.0
    diagonal_F += DAMPING * diagonal_F.mean()
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h_FF)), upper=True)


def _thin_block(w_DC: Tensor, upper_CC: Tensor, amount: Amount) -> Tensor:
    """Zero and update one block in place; returns what each column's zeros cost, (D, C), for the columns behind the block."""
    steps_C = upper_CC.diagonal()
    is_group = isinstance(amount, SparsePattern)
    gone_DC = None if is_group else lowest_of_all((w_DC / steps_C).square(), amount)
    errors_DC = w_DC.new_zeros(w_DC.shape)
    for at in range(w_DC.shape[1]):
        if isinstance(amount, SparsePattern):
            if at % amount.of == 0:  # A group is decided when its first column is reached, on the weights as they are by then.
                group = slice(at, at + amount.of)
                gone_group = lowest_of_groups((w_DC[:, group] / steps_C[group]).square(), amount)
            gone_D = gone_group[:, at % amount.of]
        else:
            assert gone_DC is not None
            gone_D = gone_DC[:, at]
        errors_DC[:, at] = w_DC[:, at].masked_fill(~gone_D, 0.0) / steps_C[at]
        w_DC[:, at:] -= errors_DC[:, at, None] * upper_CC[at, at:]
        w_DC[:, at].masked_fill_(gone_D, 0.0)  # The zeros are set again, because the update leaves a rounding.
    return errors_DC


SPARSEGPT = Pruner(
    "sparsegpt",
    "by what a weight's loss costs once the weights to its right make up for it; those are updated",
    "moments",
    thin_by_sparsegpt,
    ("2301.00774",),
)
