"""Metrics: how far a student is from its teacher, by name. A new one is a function of tensors and a line in
``METRICS``.

A metric compares aligned tokens: row t of the teacher with row t of the student. It is given real tokens alone, those that are
followed by a real token, so padding cannot enter. What a metric ``needs`` decides what is run: ``hidden`` looks at boundary L,
before the final norm, and needs no output matrix; ``text`` looks at the student and the next token, and needs no teacher.
Lower is better, and 0 means that nothing was lost, except for ``text``, whose values are those of a model alone. The table is
plain data, free of torch: recipes, the command's help and the planner read it.

Shapes: N tokens, X: V (vocabulary) for logits and text, D (hidden size) for hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol

from shoal.words.entries import Entries, by_name
from shoal.words.late import late

if TYPE_CHECKING:
    from torch import Tensor

Needs = Literal["logits", "hidden", "text"]
PerToken = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
"""(teacher (N, X), student (N, X), next token (N,)) to one number per token, (N,); for ``text`` the teacher's rows are the
student's."""


class AdditiveSums(Protocol):
    """Additive sums from which one number for the whole text follows."""

    def add(self, teacher_NX: Tensor, student_NX: Tensor, next_N: Tensor) -> Tensor:
        """The sums of some tokens of one sample: a 1-dimensional fp64 tensor on the CPU, always of one length."""
        ...

    def result(self, sums: Tensor) -> float:
        """The number, from the sums over all samples; lower is better."""
        ...


@dataclass(frozen=True)
class TokenMean:
    """The sums of a mean over tokens: the sum of a number per token, and how many tokens there are."""

    per_token: PerToken

    def add(self, teacher_NX: Tensor, student_NX: Tensor, next_N: Tensor) -> Tensor:
        import torch

        total = self.per_token(teacher_NX, student_NX, next_N).double().sum().cpu()
        return torch.stack([total, torch.tensor(float(len(student_NX)), dtype=torch.float64)])

    def result(self, sums: Tensor) -> float:
        total, n_tokens = sums.tolist()
        return total / n_tokens


@dataclass(frozen=True)
class Metric:
    """A distance of a student from its teacher.

    Attributes:
        about: what it is, its unit and its range, for people.
        needs: what it compares.
        sums: gives how it adds up over the text.
        source: where it comes from.
        per_sample: its sums are additive over samples alone, so a sample comes whole; else it may come in pieces.
    """

    name: str
    about: str
    needs: Needs
    sums: Callable[[], AdditiveSums]
    source: str = ""
    per_sample: bool = False


def token_metric(name: str, about: str, needs: Needs, per_token: PerToken, source: str = "") -> Metric:
    """A metric that is the mean of a number per token."""
    return Metric(name, about, needs, partial(TokenMean, per_token), source)


def _of_both(where: str) -> PerToken:
    """A function of two tensors, named as for :func:`late`, as a metric, which is given the next tokens, too."""
    function = late(where)
    return lambda teacher_NX, student_NX, next_N: function(teacher_NX, student_NX)


def _kl(teacher_NV: Tensor, student_NV: Tensor, next_N: Tensor) -> Tensor:
    from shoal.measure.one_pass import compare_tokens

    return compare_tokens(teacher_NV, [student_NV], next_N)[0].kl_N  # This is the very figure that the oracle reports.


def _disagreement(teacher_NV: Tensor, student_NV: Tensor, next_N: Tensor) -> Tensor:
    from shoal.measure.divergence import top1_agreement

    return (~top1_agreement(teacher_NV, student_NV)).float()


def _cross_entropy(teacher_NV: Tensor, student_NV: Tensor, next_N: Tensor) -> Tensor:
    from shoal.measure.divergence import token_nll

    return token_nll(student_NV, next_N)


METRICS: Entries[Metric] = by_name(
    "metric",
    token_metric("kl", "KL(teacher || student), nats per token", "logits", _kl),
    token_metric(
        "reverse_kl", "KL(student || teacher), nats per token", "logits", _of_both("shoal.measure.divergence:reverse_kl")
    ),
    token_metric(
        "js",
        "Jensen-Shannon divergence, nats per token, at most ln 2",
        "logits",
        _of_both("shoal.measure.divergence:jensen_shannon"),
        "FinerCut, arXiv 2405.18218; its released code sums the KLs to the mixture the other way round",
    ),
    token_metric(
        "disagreement",
        "share of tokens whose most likely next token differs",
        "logits",
        _disagreement,
    ),
    token_metric(
        "angular_logits",
        "angle between the logits, in units of pi, 0 to 1",
        "logits",
        _of_both("shoal.measure.vector_distance:angle"),
        "FinerCut, arXiv 2405.18218",
    ),
    token_metric(
        "l2_logits",
        "Euclidean distance of the logits",
        "logits",
        _of_both("shoal.measure.vector_distance:distance"),
        "A deeper look at depth pruning, arXiv 2407.16286",
    ),
    token_metric("ce", "cross-entropy of the text, nats per token", "text", _cross_entropy, "SLEB, arXiv 2402.09025"),
    token_metric(
        "hidden_cosine",
        "1 - cosine of the states before the final norm, 0 to 2",
        "hidden",
        _of_both("shoal.measure.vector_distance:lost_cosine"),
        "Sliding-window merging, arXiv 2502.19159",
    ),
    Metric(
        "lost_cka",
        "1 - debiased linear CKA of the states before the final norm; blind to rotations, which the head is not",
        "hidden",
        late("shoal.measure.centred_alignment:LostAlignment"),
        "Effective layer pruning through a similarity metric, arXiv 2405.17081",
        per_sample=True,
    ),
)
