"""KL, agreement, NLL and overlap of any number of students against one teacher, in one pass over the logits.

Per token, with a and b the logits of teacher and student less their maxima, and S_a, S_b the sums of their exponentials:
KL = sum exp(a) (a - b) / S_a - ln(S_a / S_b). The logits are read once per model: a block of tokens is widened to fp32, stays
in cache, and gives all figures there; what belongs to the teacher is computed once for all students.
:mod:`shoal.measure.divergence` has the same figures one by one; they agree to 1e-6 nats, and equal logits give exactly 0, too.
Shapes: N tokens, n tokens of a block, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.measure.divergence import forward_kl, overlap, token_nll, tokens_per_chunk


@dataclass(frozen=True)
class ComparedPass:
    """A student's figures per token, (N,) on the teacher's device: nats, bool, nats, and a share where it was asked for."""

    kl_N: Tensor
    agreement_N: Tensor
    nll_N: Tensor
    overlap_N: Tensor | None


def compare_tokens(
    teacher_NV: Tensor, students_NV: Sequence[Tensor], next_N: Tensor, *, with_overlap: bool = False
) -> list[ComparedPass]:
    """Figures of every student, in order.

    Args:
        teacher_NV, students_NV: logits of the same tokens, any float dtype; computed in fp32. A student whose tensor is the
            teacher's own is read like any other.
        next_N: (N,) int64, the tokens that come next.
        with_overlap: also sum min(p, q).
    Raises:
        ValueError: shapes differ.
    """
    for one in students_NV:
        if one.shape != teacher_NV.shape:
            raise ValueError(f"teacher logits {tuple(teacher_NV.shape)} and student logits {tuple(one.shape)} differ in shape")
    size = tokens_per_chunk(teacher_NV)
    rows = min(size, len(teacher_NV))
    scratch = _Scratch(teacher_NV.new_empty(4, rows, teacher_NV.shape[-1], dtype=torch.float32))
    pieces: list[list[tuple[Tensor, ...]]] = [[] for _ in students_NV]
    for first in range(0, len(teacher_NV), size):
        stop = min(first + size, len(teacher_NV))
        ours = scratch.read_teacher(teacher_NV[first:stop])
        for found, student_NV in zip(pieces, students_NV, strict=True):
            found.append(scratch.compare(ours, student_NV[first:stop], next_N[first:stop], with_overlap=with_overlap))
    empty = teacher_NV.new_empty(0, dtype=torch.float32)
    results = []
    for found, student_NV in zip(pieces, students_NV, strict=True):
        columns = [torch.cat(one) for one in zip(*found, strict=True)] or [empty, empty.bool(), empty, empty]
        result = ComparedPass(columns[0], columns[1], columns[2], columns[3] if with_overlap else None)
        results.append(_mended(result, teacher_NV, student_NV, next_N))
    return results


@dataclass(frozen=True)
class _Teacher:
    """Of one block: logits less their maximum and their exponentials (n, V); most likely token and sum (n,)."""

    a_nV: Tensor
    exp_nV: Tensor
    best_n: Tensor
    sum_n: Tensor


class _Scratch:
    """Four blocks of memory that every block of tokens is worked on in.

    Fresh memory for each temporary would be fetched page by page from the system and fall out of cache before its next use.
    """

    def __init__(self, blocks_4nV: Tensor) -> None:
        self._blocks = blocks_4nV

    def read_teacher(self, logits_nV: Tensor) -> _Teacher:
        a_nV, exp_nV = self._blocks[0, : len(logits_nV)], self._blocks[1, : len(logits_nV)]
        highest_n, best_n = a_nV.copy_(logits_nV).max(-1)  # The function argmax is ten times as slow on a CPU.
        torch.exp(a_nV.sub_(highest_n[:, None]), out=exp_nV)
        return _Teacher(a_nV, exp_nV, best_n, exp_nV.sum(-1).double())

    def compare(self, ours: _Teacher, logits_nV: Tensor, next_n: Tensor, *, with_overlap: bool) -> tuple[Tensor, ...]:
        b_nV, work_nV = self._blocks[2, : len(logits_nV)], self._blocks[3, : len(logits_nV)]
        highest_n, best_n = b_nV.copy_(logits_nV).max(-1)
        b_nV.sub_(highest_n[:, None])
        at_next_n = b_nV.gather(-1, next_n[:, None])[:, 0].double()
        gap_n = torch.sub(ours.a_nV, b_nV, out=work_nV).mul_(ours.exp_nV).sum(-1).double()
        sum_n = b_nV.exp_().sum(-1).double()
        # Everything from the sums on is fp64: a logarithm of up to 11 in fp32 would carry an error of 5e-7.
        kl_n = (gap_n / ours.sum_n - (ours.sum_n / sum_n).log()).clamp_(min=0).float()
        figures = (kl_n, best_n == ours.best_n, (sum_n.log() - at_next_n).float())
        if not with_overlap:
            return figures
        torch.mul(ours.exp_nV, (sum_n / ours.sum_n).float()[:, None], out=work_nV)
        apart_n = work_nV.sub_(b_nV).abs_().sum(-1).double() / sum_n
        return (*figures, (1 - apart_n / 2).clamp_(min=0).float())


def _mended(found: ComparedPass, teacher_NV: Tensor, student_NV: Tensor, next_N: Tensor) -> ComparedPass:
    """Tokens whose sums are not finite are computed again one figure at a time, which knows logits of minus infinity."""
    odd_N = ~(found.kl_N.isfinite() & found.nll_N.isfinite())
    if not bool(odd_N.any()):
        return found
    p_NV, q_NV = teacher_NV[odd_N], student_NV[odd_N]
    found.kl_N[odd_N] = forward_kl(p_NV, q_NV)
    found.nll_N[odd_N] = token_nll(q_NV, next_N[odd_N])
    if found.overlap_N is not None:
        found.overlap_N[odd_N] = overlap(p_NV, q_NV)
    return found
