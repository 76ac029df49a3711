"""What a replacement is trained to do: pure functions of a student's and the teacher's tensors, by name.

Shapes: B samples, T positions, D hidden size. Every objective is a mean over real tokens, so the loop can weigh pieces of a
batch by their tokens and get the whole batch's value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from shoal.types import nearest

Needs = Literal["boundary"]


@dataclass(frozen=True)
class Objective:
    """A loss and what it reads.

    Attributes:
        needs: ``boundary``: both streams at the span's end; the teacher runs no layer after it.
        loss: (student, teacher, mask_BT or None) to a scalar, the mean over real tokens; differentiable in the student.
        about: one line for people.
    """

    name: str
    needs: Needs
    loss: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    about: str


def hidden_mse(student_BTD: Tensor, teacher_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Mean squared difference over real tokens and elements, in fp32. LLM-Streamline (arXiv 2403.19135).

    Args:
        student_BTD, teacher_BTD: residual streams at one boundary, any float dtype.
        mask_BT: True on real tokens; None when nothing is padded. What stands on padding has no weight, NaN included.
    Returns:
        Scalar >= 0, in squared units of the stream; 0 when the streams are equal.
    """
    if student_BTD.shape != teacher_BTD.shape:
        raise ValueError(f"streams of shapes {tuple(student_BTD.shape)} and {tuple(teacher_BTD.shape)} cannot be compared")
    error_BTD = student_BTD.float() - teacher_BTD.float()
    if mask_BT is not None:
        error_BTD = error_BTD[mask_BT]
    return error_BTD.square().mean()


OBJECTIVES: dict[str, Objective] = {
    "hidden_mse": Objective("hidden_mse", "boundary", hidden_mse, "mean squared error of the stream after the span"),
}


def objective_named(name: str) -> Objective:
    """Raises ValueError for an unknown name, with the nearest."""
    if name not in OBJECTIVES:
        raise ValueError(f"unknown objective {name!r}; {nearest(name, OBJECTIVES)}")
    return OBJECTIVES[name]
