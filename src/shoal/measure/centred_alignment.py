"""1 - linear CKA between the teacher's states and the student's, debiased, from sums over samples.

For each sample HSIC is estimated without bias from tokens spread evenly over it, and averaged over samples before the ratio is
taken: CKA = mean HSIC(t, s) / sqrt(mean HSIC(t, t) · mean HSIC(s, s)). The unbiased estimator (measure/cka.py) is near 0 for
independent states also where a sample has fewer tokens than dimensions.
Shapes: T tokens of one sample, D hidden size.
"""

import math

import torch
from torch import Tensor

from shoal.measure.cka import FEWEST_TOKENS, hsic_between

MOST_TOKENS = 64
"""Tokens of a sample that are compared; the cost grows with their square."""


class LostAlignment:
    """Sums of HSIC between and within both models. Samples with fewer than 4 tokens do not count."""

    def add(self, teacher_TX: Tensor, student_TX: Tensor, next_T: Tensor) -> Tensor:
        """(3,): HSIC of teacher and student, of the teacher with itself, of the student with itself."""
        n_tokens = len(teacher_TX)
        if n_tokens < FEWEST_TOKENS:
            return torch.zeros(3, dtype=torch.float64)
        step = math.ceil(n_tokens / MOST_TOKENS)
        if n_tokens // step < FEWEST_TOKENS:
            step = 1
        exact = torch.promote_types(teacher_TX.dtype, torch.float32)
        features_2TD = torch.stack([one[::step].to(exact) for one in (teacher_TX, student_TX)])
        hsic_22 = hsic_between(features_2TD - features_2TD.mean(dim=1, keepdim=True)).cpu()
        return torch.stack([hsic_22[0, 1], hsic_22[0, 0], hsic_22[1, 1]])

    def result(self, sums: Tensor) -> float:
        """1 - CKA, at least 0; 1 where one of the models says the same of every token.

        Raises:
            ValueError: no sample had enough tokens.
        """
        between, teacher, student = sums.tolist()
        if teacher == 0.0 and student == 0.0:
            raise ValueError(f"no sample has {FEWEST_TOKENS} tokens, and CKA compares tokens of a sample; give longer text")
        if teacher <= 0.0 or student <= 0.0:
            return 1.0
        return max(0.0, 1.0 - between / math.sqrt(teacher * student))
