"""Metrics: how far a student is from its teacher, by name. A new one is a function and a line in ``METRICS``.

A metric compares aligned tokens: row t of the teacher with row t of the student. It is given real tokens alone, those that are
followed by a real token, so padding cannot enter. What a metric ``needs`` decides what is run: ``hidden`` looks at boundary L,
before the final norm, and needs no output matrix; ``text`` looks at the student and the next token, and needs no teacher.
Lower is better, and 0 means that nothing was lost, except for ``text``, whose values are those of a model alone.

Shapes: N tokens, X: V (vocabulary) for logits and text, D (hidden size) for hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from shoal.measure.centred_alignment import LostAlignment
from shoal.measure.divergence import forward_kl, jensen_shannon, reverse_kl, token_nll, top1_agreement
from shoal.measure.vector_distance import angle, distance, lost_cosine
from shoal.words.records import nearest

Needs = Literal["logits", "hidden", "text"]
PerToken = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(teacher (N, X), student (N, X), next token (N,)) to one number per token, (N,); for ``text`` the teacher's rows are the
student's."""


@dataclass(frozen=True)
class Metric:
    """A distance of a student from its teacher that is a mean over tokens.

    Attributes:
        about: what it is, its unit and its range, for people.
        needs: what it compares.
        per_token: the numbers whose mean over all counted tokens it is.
        source: where it comes from.
    """

    name: str
    about: str
    needs: Needs
    per_token: PerToken
    source: str = ""


class CorpusSums(Protocol):
    """Sums over samples from which one number for the whole text follows; additive."""

    def add(self, teacher_TX: Tensor, student_TX: Tensor, next_T: Tensor) -> Tensor:
        """The sums of one sample, a 1-dimensional fp64 tensor on the CPU; all samples give the same length."""
        ...

    def result(self, sums: Tensor) -> float:
        """The number, from the sums over all samples; lower is better."""
        ...


@dataclass(frozen=True)
class CorpusMetric:
    """A distance that is no mean over tokens: it is computed from sums over samples."""

    name: str
    about: str
    needs: Needs
    sums: CorpusSums
    source: str = ""


def _of_logits(function: Callable[[Tensor, Tensor], Tensor]) -> PerToken:
    """A function of two tensors as a metric, which is given the next tokens, too."""
    return lambda teacher_NX, student_NX, next_N: function(teacher_NX, student_NX)


def _disagreement(teacher_NV: Tensor, student_NV: Tensor) -> Tensor:
    return (~top1_agreement(teacher_NV, student_NV)).float()


def _cross_entropy(teacher_NV: Tensor, student_NV: Tensor, next_N: Tensor) -> Tensor:
    return token_nll(student_NV, next_N)


METRICS: dict[str, Metric | CorpusMetric] = {
    one.name: one
    for one in (
        Metric("kl", "KL(teacher || student), nats per token", "logits", _of_logits(forward_kl)),
        Metric("reverse_kl", "KL(student || teacher), nats per token", "logits", _of_logits(reverse_kl)),
        Metric(
            "js",
            "Jensen-Shannon divergence, nats per token, at most ln 2",
            "logits",
            _of_logits(jensen_shannon),
            "FinerCut, arXiv 2405.18218; its released code sums the KLs to the mixture the other way round",
        ),
        Metric(
            "disagreement",
            "share of tokens whose most likely next token differs",
            "logits",
            _of_logits(_disagreement),
        ),
        Metric(
            "angular_logits",
            "angle between the logits, in units of pi, 0 to 1",
            "logits",
            _of_logits(angle),
            "FinerCut, arXiv 2405.18218",
        ),
        Metric(
            "l2_logits",
            "Euclidean distance of the logits",
            "logits",
            _of_logits(distance),
            "A deeper look at depth pruning, arXiv 2407.16286",
        ),
        Metric("ce", "cross-entropy of the text, nats per token", "text", _cross_entropy, "SLEB, arXiv 2402.09025"),
        Metric(
            "hidden_cosine",
            "1 - cosine of the states before the final norm, 0 to 2",
            "hidden",
            _of_logits(lost_cosine),
            "Sliding-window merging, arXiv 2502.19159",
        ),
        CorpusMetric(
            "lost_cka",
            "1 - debiased linear CKA of the states before the final norm; blind to rotations, which the head is not",
            "hidden",
            LostAlignment(),
            "Effective layer pruning through a similarity metric, arXiv 2405.17081",
        ),
    )
}


def metric_named(name: str) -> Metric | CorpusMetric:
    """Raises ValueError: no such metric; lists the known ones."""
    if name not in METRICS:
        raise ValueError(f"no metric {name!r}; {nearest(name, METRICS)}")
    return METRICS[name]
