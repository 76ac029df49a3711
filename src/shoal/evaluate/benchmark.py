"""Teacher and student on task files: accuracy of both with intervals, share kept, stability, flips, and the average.

retained = accuracy of the student / accuracy of the teacher, paired over items. A task where the teacher is *at chance* (the
lower bound of its accuracy does not exceed guessing) says nothing about what was lost: it is flagged and left out of the
average. The average is mean student accuracy / mean teacher accuracy over the other tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shoal.evaluate.bootstrap import LEVEL, N_RESAMPLES, Interval, bootstrap, interval_of, mean, resampled_sums
from shoal.evaluate.choice import TaskScores, choice_answers
from shoal.evaluate.last_word import last_word_answers, word_perplexity
from shoal.evaluate.stability import Answers, Stability, matched, stability
from shoal.evaluate.tasks import Form
from shoal.types import Record


class TaskResult(Record):
    """One task.

    Attributes:
        teacher, student: accuracy: lm-eval's acc for choices, the share of greedy words for last words.
        teacher_norm, student_norm: acc_norm, for choices.
        teacher_perplexity, student_perplexity: per word, for last words.
        retained: None where the teacher has nothing right.
        at_chance: the lower bound of the teacher's accuracy is not above ``chance``.
        answers: flips, agreement and KL over options by the answers that the accuracy counts.
        stability: LLM-Streamline's, on mean NLL over context and option; for choices.
        n_truncated: items whose context was cut from the left to fit the window.
    """

    task: str
    form: Form
    data_hash: str
    n_items: int
    n_truncated: int
    chance: float
    teacher: Interval
    student: Interval
    teacher_norm: Interval | None = None
    student_norm: Interval | None = None
    teacher_perplexity: float | None = None
    student_perplexity: float | None = None
    retained: Interval | None
    at_chance: bool
    answers: Stability
    stability: Stability | None = None


class Benchmark(Record):
    """All tasks. ``retained``: the average over ``counted`` tasks, None when there is none of them."""

    tasks: tuple[TaskResult, ...]
    counted: tuple[str, ...]
    teacher_average: float | None
    student_average: float | None
    retained: Interval | None
    seed: int
    n_resamples: int


def compare_tasks(
    teacher: Sequence[TaskScores],
    student: Sequence[TaskScores],
    *,
    n_resamples: int = N_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Benchmark:
    """Compare the scores of two models, task by task.

    Raises:
        ValueError: not the same tasks or items, or one task twice.
    """
    names = [one.task.name for one in teacher]
    if names != [one.task.name for one in student]:
        raise ValueError(f"the teacher's tasks are {', '.join(names)}, the student's {', '.join(s.task.name for s in student)}")
    if len(set(names)) != len(names):
        raise ValueError(f"two task files have one name ({', '.join(names)}); rename one of them")
    results, draws = [], []
    for a, b in zip(teacher, student, strict=True):
        result, sums_R2 = _compare(a, b, n_resamples=n_resamples, level=level, seed=seed)
        results.append(result)
        draws.append(sums_R2 / result.n_items)
    counted = [index for index, result in enumerate(results) if not result.at_chance]
    averages = [
        sum(getattr(results[i], one).value for i in counted) / len(counted) for one in ("teacher", "student") if counted
    ]
    retained = None
    if counted:
        mean_R2 = np.mean([draws[i] for i in counted], axis=0)
        retained = interval_of(averages[1] / averages[0], _ratios(mean_R2), level=level)
    return Benchmark(
        tasks=tuple(results),
        counted=tuple(results[i].task for i in counted),
        teacher_average=averages[0] if counted else None,
        student_average=averages[1] if counted else None,
        retained=retained,
        seed=seed,
        n_resamples=n_resamples,
    )


def _compare(
    teacher: TaskScores, student: TaskScores, *, n_resamples: int, level: float, seed: int
) -> tuple[TaskResult, np.ndarray]:
    """The result of a task, and (R, 2) resampled sums of right answers."""
    task = teacher.task
    draw = Draw(n_resamples, level, seed=int(task.data_hash, 16) % 2**32 + seed)  # tasks are drawn independently of each other
    answers = draw.stability(_counted_answers(teacher), _counted_answers(student))
    pairs = matched(_counted_answers(teacher), _counted_answers(student))
    right_N2 = np.array([[a.is_right, b.is_right] for a, b in pairs], dtype=float)
    sums_R2 = resampled_sums(right_N2, n_resamples=n_resamples, seed=draw.seed)
    a, b = answers.teacher_accuracy, answers.student_accuracy
    extra: dict[str, Any] = {}
    if task.form == "choice":
        extra["stability"] = draw.stability(choice_answers(teacher, "mean_nll"), choice_answers(student, "mean_nll"))
        extra["teacher_norm"], extra["student_norm"] = draw.accuracy_norm(teacher), draw.accuracy_norm(student)
    else:
        extra["teacher_perplexity"], extra["student_perplexity"] = word_perplexity(teacher), word_perplexity(student)
    result = TaskResult(
        task=task.name,
        form=task.form,
        data_hash=task.data_hash,
        n_items=len(teacher.items),
        n_truncated=teacher.n_truncated,
        chance=task.chance,
        teacher=a,
        student=b,
        retained=interval_of(b.value / a.value, _ratios(sums_R2), level=level) if a.value else None,
        at_chance=a.low <= task.chance,
        answers=answers,
        **extra,
    )
    return result, sums_R2


@dataclass(frozen=True)
class Draw:
    """How a task is resampled: the same draws for all its figures."""

    n_resamples: int
    level: float
    seed: int

    def stability(self, teacher: Answers, student: Answers) -> Stability:
        return stability(teacher, student, n_resamples=self.n_resamples, level=self.level, seed=self.seed)

    def accuracy_norm(self, scores: TaskScores) -> Interval:
        by_key = sorted(scores.items, key=lambda one: one.item.key)
        columns_N2 = np.array([[one.answer_norm == one.item.gold, 1] for one in by_key], dtype=float)
        return bootstrap(columns_N2, mean, n_resamples=self.n_resamples, level=self.level, seed=self.seed)


def _counted_answers(scores: TaskScores) -> Answers:
    """The answers that the accuracy of the task counts."""
    return choice_answers(scores, "option_nll") if scores.task.form == "choice" else last_word_answers(scores)


def _ratios(sums_R2: np.ndarray) -> np.ndarray:
    """Student over teacher; not a number where the teacher has nothing right."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(sums_R2[:, 1], sums_R2[:, 0])
