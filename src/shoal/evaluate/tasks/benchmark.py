"""Teacher and student on task files: accuracy of both with intervals, share kept, stability, flips, and the average.

retained = accuracy of the student / accuracy of the teacher, paired over items. A task where the teacher is *at chance* (the
lower bound of its accuracy does not exceed guessing) says nothing about what was lost: it is flagged and left out of the
average. The average is mean student accuracy / mean teacher accuracy over the other tasks. Kinds of tasks (choices, last words,
generation) also stand apart, above chance, because a model may keep one of them and lose another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shoal.evaluate.intervals import N_RESAMPLES, Interval, interval_of, resampled_sums, share_of
from shoal.evaluate.stability import Answers, Stability, matched, stability
from shoal.evaluate.tasks.answers import TaskAnswers, TaskFacts
from shoal.evaluate.tasks.task_files import TaskForm
from shoal.words.records import Record


class OfTask(Record):
    """Figures of a task. ``at_chance``: the lower bound of the (teacher's) accuracy is not above guessing."""

    facts: TaskFacts
    at_chance: bool

    @property
    def name(self) -> str:
        """For people: a star marks a task at chance."""
        return f"{self.facts.task} *" if self.at_chance else self.facts.task


class TaskFigures(OfTask):
    """One model on one task, without another to compare.

    Attributes:
        accuracy_norm: acc_norm, for choices.
        word_perplexity: for last words.
    """

    accuracy: Interval
    accuracy_norm: Interval | None = None
    word_perplexity: float | None = None


class TaskResult(OfTask):
    """One task.

    Attributes:
        teacher, student: accuracy, as the metric of the facts names it.
        teacher_norm, student_norm: acc_norm, for choices.
        teacher_perplexity, student_perplexity: per word, for last words.
        retained: None where the teacher has nothing right.
        answers: flips, agreement and KL over options by the answers that the accuracy counts.
        stability: LLM-Streamline's, on mean NLL over context and option; for choices whose context was scored, too.
    """

    teacher: Interval
    student: Interval
    teacher_norm: Interval | None = None
    student_norm: Interval | None = None
    teacher_perplexity: float | None = None
    student_perplexity: float | None = None
    retained: Interval | None
    answers: Stability
    stability: Stability | None = None

    @property
    def agreement(self) -> Stability:
        """LLM-Streamline's stability where it is known, else that of the answers that the accuracy counts."""
        return self.stability or self.answers


class KeptShares(Record):
    """One kind of task: (student - chance) / (teacher - chance), both averaged over the counted ``tasks`` of that form."""

    form: TaskForm
    tasks: tuple[str, ...]
    share: Interval


class Benchmark(Record):
    """All tasks. ``retained``: the average over ``counted`` tasks, None when there is none of them; ``kinds``: form by form."""

    tasks: tuple[TaskResult, ...]
    counted: tuple[str, ...]
    teacher_average: float | None
    student_average: float | None
    retained: Interval | None
    kinds: tuple[KeptShares, ...] = ()
    seed: int
    n_resamples: int


def task_figures(found: TaskAnswers, *, n_resamples: int = N_RESAMPLES, seed: int = 0) -> TaskFigures:
    """The figures of one model on one task."""
    draw = Draw(n_resamples, seed=_seed(found, seed))
    accuracy = draw.accuracy(found.counted)
    return TaskFigures(
        facts=found.facts,
        accuracy=accuracy,
        accuracy_norm=None if found.norm is None else draw.accuracy(found.norm),
        word_perplexity=found.word_perplexity,
        at_chance=accuracy.low <= found.facts.chance,
    )


def compare_tasks(
    teacher: Sequence[TaskAnswers],
    student: Sequence[TaskAnswers],
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Benchmark:
    """Compare the answers of two models, task by task.

    Raises:
        ValueError: not the same tasks or items, or one task twice.
    """
    names, others = ([one.facts.task for one in asked] for asked in (teacher, student))
    if names != others:
        raise ValueError(f"the teacher's tasks are {', '.join(names)}, the student's {', '.join(others)}")
    if len(set(names)) != len(names):
        raise ValueError(f"two tasks have one name ({', '.join(names)}); rename the file of one of them")
    results, draws = [], []
    for a, b in zip(teacher, student, strict=True):
        result, sums_R2 = _compare(a, b, n_resamples=n_resamples, seed=seed)
        results.append(result)
        draws.append(sums_R2 / result.facts.n_items)
    counted = [index for index, result in enumerate(results) if not result.at_chance]
    averages = [
        sum(getattr(results[i], one).value for i in counted) / len(counted) for one in ("teacher", "student") if counted
    ]
    retained = None
    if counted:
        mean_R2 = np.mean([draws[i] for i in counted], axis=0)
        retained = interval_of(averages[1] / averages[0], _ratios(mean_R2))
    return Benchmark(
        tasks=tuple(results),
        counted=tuple(results[i].facts.task for i in counted),
        teacher_average=averages[0] if counted else None,
        student_average=averages[1] if counted else None,
        retained=retained,
        kinds=_kinds([(results[i], draws[i]) for i in counted]),
        seed=seed,
        n_resamples=n_resamples,
    )


def _kinds(counted: Sequence[tuple[TaskResult, np.ndarray]]) -> tuple[KeptShares, ...]:
    """What was kept above chance, form by form, over the counted tasks; draws are (R, 2) accuracies."""
    kinds = []
    for form in dict.fromkeys(result.facts.form for result, _ in counted):
        members = [(result, draw_R2) for result, draw_R2 in counted if result.facts.form == form]
        above_R2 = np.mean([draw_R2 - result.facts.chance for result, draw_R2 in members], axis=0)
        teacher, student = (
            sum(getattr(result, who).value - result.facts.chance for result, _ in members) for who in ("teacher", "student")
        )
        share = interval_of(student / teacher, _ratios(above_R2))
        kinds.append(KeptShares(form=form, tasks=tuple(result.facts.task for result, _ in members), share=share))
    return tuple(kinds)


def _compare(teacher: TaskAnswers, student: TaskAnswers, *, n_resamples: int, seed: int) -> tuple[TaskResult, np.ndarray]:
    """The result of a task, and (R, 2) resampled sums of right answers."""
    draw = Draw(n_resamples, seed=_seed(teacher, seed))
    answers = draw.stability(teacher.counted, student.counted)
    pairs = matched(teacher.counted, student.counted)
    right_N2 = np.array([[a.is_right, b.is_right] for a, b in pairs], dtype=float)
    sums_R2 = resampled_sums(right_N2, n_resamples=n_resamples, seed=draw.seed)
    a, b = answers.teacher_accuracy, answers.student_accuracy
    weighed = (teacher.weighed, student.weighed)
    result = TaskResult(
        facts=teacher.facts,
        teacher=a,
        student=b,
        teacher_norm=None if teacher.norm is None else draw.accuracy(teacher.norm),
        student_norm=None if student.norm is None else draw.accuracy(student.norm),
        teacher_perplexity=teacher.word_perplexity,
        student_perplexity=student.word_perplexity,
        retained=interval_of(b.value / a.value, _ratios(sums_R2)) if a.value else None,
        at_chance=a.low <= teacher.facts.chance,
        answers=answers,
        stability=None if weighed[0] is None or weighed[1] is None else draw.stability(weighed[0], weighed[1]),
    )
    return result, sums_R2


@dataclass(frozen=True)
class Draw:
    """How a task is resampled: the same draws for all its figures."""

    n_resamples: int
    seed: int

    def stability(self, teacher: Answers, student: Answers) -> Stability:
        return stability(teacher, student, n_resamples=self.n_resamples, seed=self.seed)

    def accuracy(self, answers: Answers) -> Interval:
        by_key = sorted(answers.items, key=lambda one: (one.key, one.scores))
        right_N = np.array([one.is_right for one in by_key])
        return share_of(right_N, n_resamples=self.n_resamples, seed=self.seed)


def _seed(one: TaskAnswers, seed: int) -> int:
    """Tasks are drawn independently of each other."""
    return int(one.facts.data_hash, 16) % 2**32 + seed


def _ratios(sums_R2: np.ndarray) -> np.ndarray:
    """Student over teacher; not a number where the teacher has nothing right."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(sums_R2[:, 1], sums_R2[:, 0])
