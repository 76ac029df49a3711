"""Objectives on the residual stream at one boundary: squared error, relative squared error, cosine.

Each takes (student_BTD, teacher_BTD, mask_BT): streams of any float dtype, computed in fp32; the mask is True on real tokens,
None when nothing is padded, and what stands on padding has no weight, NaN included. Each returns a scalar >= 0, the mean over
real tokens, 0 when the streams are equal; a ValueError where shapes differ.
Shapes: B samples, T positions, D hidden size, N real tokens.
"""

import torch
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny


def hidden_mse(student_BTD: Tensor, teacher_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Mean squared difference over real tokens and elements, in squared units of the stream.

    Source: LLM-Streamline, arXiv 2403.19135. A sink (a token of 100 times the norm) counts as much as 10,000 others.
    """
    student_ND, teacher_ND = _real(student_BTD, teacher_BTD, mask_BT)
    return (student_ND - teacher_ND).square().mean()


def relative_mse(student_BTD: Tensor, teacher_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Mean over real tokens of |student - teacher|^2 / |teacher|^2: a sink counts as one token, like any other."""
    student_ND, teacher_ND = _real(student_BTD, teacher_BTD, mask_BT)
    missed_N = (student_ND - teacher_ND).square().sum(-1)
    return (missed_N / teacher_ND.square().sum(-1).clamp(min=TINY)).mean()


def cosine_loss(student_BTD: Tensor, teacher_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Mean over real tokens of 1 - cos(student, teacher), in [0, 2]; blind to the length of either.

    As half the squared chord between the unit vectors: 1 - cos loses all digits near 0.
    """
    student_ND, teacher_ND = _real(student_BTD, teacher_BTD, mask_BT)
    return (_unit(student_ND) - _unit(teacher_ND)).square().sum(-1).mean() / 2


def _unit(h_ND: Tensor) -> Tensor:
    return h_ND / h_ND.square().sum(-1, keepdim=True).clamp(min=TINY).sqrt()


def _real(student_BTD: Tensor, teacher_BTD: Tensor, mask_BT: Tensor | None) -> tuple[Tensor, Tensor]:
    """Real tokens of both, in fp32 (fp64 stays)."""
    if student_BTD.shape != teacher_BTD.shape:
        raise ValueError(f"streams of shapes {tuple(student_BTD.shape)} and {tuple(teacher_BTD.shape)} cannot be compared")
    pair = (student_BTD, teacher_BTD) if mask_BT is None else (student_BTD[mask_BT], teacher_BTD[mask_BT])
    student, teacher = (one.to(torch.promote_types(one.dtype, torch.float32)) for one in pair)
    return student, teacher
