"""Stability: does the student answer as the teacher does, item by item? LLM-Streamline (arXiv 2403.19135), on mean NLL.

For the scores p_ij of option j of item i under the teacher (lower is better)::

    sigma_i   = population standard deviation over j of p_ij
    w_i       = exp(sigma_i) / sum_k exp(sigma_k)
    stability = sum_i w_i [teacher right on i == student right on i]

Agreement is on *correctness*: right and right, wrong and wrong, even with another wrong answer. An item that the teacher is
sure of weighs more; an item whose options it cannot tell apart may flip by chance. Variants, by what p_ij is:

* ``mean_nll``: mean negative log-likelihood per token over context and option, nats, no exp. The definition (OpenCompass' PPL).
* ``option_nll``: negative log-likelihood of the option alone, summed; lm-eval's sample logs hold no more. Its spread is larger
  and fewer items carry the weight (see ``effective_items``): not comparable with ``mean_nll``.
* ``exact_match``: one score per item, 0 for the right text and 1 for another; all weights are equal.
* ``last_word``: one option per item; every sigma is 0, all weights are equal, right means that the word is the greedy one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shoal.evaluate.intervals import N_RESAMPLES, Interval, bootstrap, mean, share_of, sign_test
from shoal.words.records import Record

Variant = Literal["mean_nll", "option_nll", "last_word", "exact_match"]


@dataclass(frozen=True)
class Answer:
    """A model's answer to one item.

    Attributes:
        key: hash of the item, equal for both models.
        text: the item for people, cut short.
        gold: index of the right option.
        chosen: index of the option the model takes, None for none of them.
        scores: one per option, lower is better.
        said: what a model that writes its answer answered, None where it chooses.
    """

    key: str
    text: str
    gold: int
    chosen: int | None
    scores: tuple[float, ...]
    said: str | None = None

    @property
    def is_right(self) -> bool:
        return self.chosen == self.gold


@dataclass(frozen=True)
class Answers:
    """One model's answers to a task, in the order of its file.

    Raises:
        ValueError: no answers, a score that is NaN or infinite, or gold outside the options.
    """

    task: str
    variant: Variant
    items: tuple[Answer, ...]

    def __post_init__(self) -> None:
        if not self.items:
            raise ValueError(f"task {self.task!r} has no items; there is nothing to compare")
        for index, item in enumerate(self.items):
            if not all(math.isfinite(score) for score in item.scores):
                raise ValueError(
                    f"task {self.task!r}, item {index} ({item.text[:40]!r}): scores {list(item.scores)} are not finite; "
                    "score the model again"
                )
            if not 0 <= item.gold < len(item.scores):
                raise ValueError(f"task {self.task!r}, item {index}: gold {item.gold} is not one of {len(item.scores)} options")


class Flip(Record):
    """An item that one model has right and the other wrong; ``None``: none of the options was chosen, nothing was written."""

    key: str
    text: str
    gold: int
    teacher: int | None
    student: int | None
    teacher_scores: tuple[float, ...]
    student_scores: tuple[float, ...]
    teacher_said: str | None = None
    student_said: str | None = None


class Stability(Record):
    """Teacher and student on one task.

    Attributes:
        stability: as defined at the top of this file.
        correctness: share of items on which both are right or both are wrong.
        answers: share of items on which both take the same option or write the same answer; None where items have one option.
        kl: mean over items of KL(teacher || student) between the options, probabilities = softmax of minus the scores, in nats;
            None where items have one option.
        teacher_accuracy, student_accuracy: by the answers that are compared here.
        effective_items: (sum w)^2 / sum w^2, as many equally weighted items would count.
        right_to_wrong, wrong_to_right: the flips, the teacher's surest first; ``p_value``: exact sign test of their numbers.
    """

    task: str
    variant: Variant
    n_items: int
    stability: Interval
    correctness: Interval
    answers: Interval | None
    kl: Interval | None
    teacher_accuracy: Interval
    student_accuracy: Interval
    effective_items: float
    right_to_wrong: tuple[Flip, ...]
    wrong_to_right: tuple[Flip, ...]
    p_value: float


def stability(teacher: Answers, student: Answers, *, n_resamples: int = N_RESAMPLES, seed: int = 0) -> Stability:
    """Compare the answers of two models; the order of the items does not matter.

    Raises:
        ValueError: different variants, or sets of items that are not the same.
    """
    pairs = matched(teacher, student)
    spread_N = np.array([np.std(a.scores) for a, _ in pairs])
    weight_N = np.exp(spread_N - spread_N.max())
    right_N2 = np.array([[a.is_right, b.is_right] for a, b in pairs], dtype=float)
    agree_N = (right_N2[:, 0] == right_N2[:, 1]).astype(float)
    one_N = np.ones(len(pairs))

    def measure(column_N: np.ndarray, weights_N: np.ndarray) -> Interval:
        columns_NK = np.stack([column_N * weights_N, weights_N], axis=1)
        return bootstrap(columns_NK, mean, n_resamples=n_resamples, seed=seed)

    lost, won = (_flips(pairs, from_right=side) for side in (True, False))
    many = all(len(a.scores) > 1 for a, _ in pairs)
    is_written = all(a.said is not None for a, _ in pairs)
    same_N = np.array([(a.chosen, a.said) == (b.chosen, b.said) for a, b in pairs], dtype=float)
    return Stability(
        task=teacher.task,
        variant=teacher.variant,
        n_items=len(pairs),
        stability=measure(agree_N, weight_N),
        correctness=measure(agree_N, one_N),
        answers=measure(same_N, one_N) if many or is_written else None,
        kl=measure(np.array([option_kl(a.scores, b.scores) for a, b in pairs]), one_N) if many else None,
        teacher_accuracy=share_of(right_N2[:, 0], n_resamples=n_resamples, seed=seed),
        student_accuracy=share_of(right_N2[:, 1], n_resamples=n_resamples, seed=seed),
        effective_items=float(weight_N.sum() ** 2 / (weight_N**2).sum()),
        right_to_wrong=lost,
        wrong_to_right=won,
        p_value=sign_test(len(lost), len(won)),
    )


def official_stability(teacher: Answers, student: Answers) -> float:
    """The number that LLM-Streamline's released script prints, with its defect: it counts the M items on which correctness
    agrees, then adds the *first* M weights in file order instead of the weights of those items. The number therefore depends on
    the order of the items. For comparison with published tables only; no stable softmax, as in the script.

    Raises:
        ValueError: different items, or another order of them.
    """
    if [a.key for a in teacher.items] != [b.key for b in student.items]:
        raise ValueError(
            f"task {teacher.task!r}: the official script compares items one by one; both files need the same items in one order"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        weight_N = np.exp(np.array([np.std(a.scores) for a in teacher.items]))
        weight_N = weight_N / weight_N.sum()
    n_agreed = sum(a.is_right == b.is_right for a, b in zip(teacher.items, student.items, strict=True))
    return float(weight_N[:n_agreed].sum())


def matched(teacher: Answers, student: Answers) -> list[tuple[Answer, Answer]]:
    """Pairs of answers to the same item, in an order that does not depend on the files'.

    Raises:
        ValueError: other variants, or an item that only one of them has, or with other options or gold.
    """
    if teacher.variant != student.variant:
        raise ValueError(
            f"task {teacher.task!r}: the teacher's scores are {teacher.variant}, the student's {student.variant}; "
            "score both in the same way"
        )
    ours, theirs = (sorted(one.items, key=lambda item: (item.key, item.scores)) for one in (teacher, student))
    if [a.key for a in ours] != [b.key for b in theirs]:
        raise ValueError(_difference(teacher, student))
    for a, b in zip(ours, theirs, strict=True):
        if (a.gold, len(a.scores)) != (b.gold, len(b.scores)):
            raise ValueError(
                f"task {teacher.task!r}: item {a.text[:40]!r} has gold {a.gold} of {len(a.scores)} options for the teacher, "
                f"{b.gold} of {len(b.scores)} for the student; both must come from one task file"
            )
    return list(zip(ours, theirs, strict=True))


def option_kl(teacher: Sequence[float], student: Sequence[float]) -> float:
    """KL(teacher || student) between the options of an item, in nats; exactly 0 for equal scores."""
    if tuple(teacher) == tuple(student):
        return 0.0
    log_p, log_q = (_log_softmax(-np.array(scores)) for scores in (teacher, student))
    return max(0.0, math.fsum(np.exp(log_p) * (log_p - log_q)))


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def _flips(pairs: Sequence[tuple[Answer, Answer]], *, from_right: bool) -> tuple[Flip, ...]:
    found = [(a, b) for a, b in pairs if a.is_right is from_right and b.is_right is not from_right]
    found.sort(key=lambda pair: (-float(np.std(pair[0].scores)), pair[0].key))
    return tuple(
        Flip(
            key=a.key,
            text=a.text,
            gold=a.gold,
            teacher=a.chosen,
            student=b.chosen,
            teacher_scores=a.scores,
            student_scores=b.scores,
            teacher_said=a.said,
            student_said=b.said,
        )
        for a, b in found
    )


def _difference(teacher: Answers, student: Answers) -> str:
    ours, theirs = ({item.key: item for item in one.items} for one in (teacher, student))
    missing, extra = [k for k in ours if k not in theirs], [k for k in theirs if k not in ours]
    said = f"task {teacher.task!r}: {len(teacher.items)} items of the teacher, {len(student.items)} of the student"
    if missing or extra:
        first = ours[missing[0]] if missing else theirs[extra[0]]
        said += f", {len(missing)} only with the teacher and {len(extra)} only with the student, first {first.text[:40]!r}"
    else:
        said += ", some of them more than once"
    return said + "; both must answer the same items"
