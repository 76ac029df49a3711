"""Answers to tasks: accuracy with intervals, what was kept, stability, and the items whose answer turned."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.evaluate import Flip, Interval, Stability, task_notes
from shoal.evaluate.benchmark import Benchmark, TaskResult
from shoal.report.chart import Dots, Point, Rule, Series
from shoal.report.data import RunData, Section
from shoal.report.html import Column, Html, details, number_columns, table, tag

N_FLIPS = 5  # shown per task and way; all of them are in the file


def tasks(data: RunData) -> Section | None:
    found = data.evaluation.tasks if data.evaluation else None
    if found is None or not found.tasks:
        return None
    level = 100 * found.tasks[0].teacher.level
    intro = (
        f"± is a {level:g} % interval from {found.n_resamples:,} resamples of the items; teacher and student are drawn together. "
        "A task where the teacher is at chance is marked * and left out of the average."
    )
    notes = task_notes(found)
    parts = [
        tag("p", intro),
        _accuracy(found.tasks),
        _stability(found.tasks),
        _table(found),
        *([tag("ul", [tag("li", note) for note in notes])] if notes else []),
        *(_flips(one) for one in found.tasks),
    ]
    return Section("tasks", "Answers: accuracy, stability, flips", "evaluation.json", tuple(parts))


def _accuracy(found: Sequence[TaskResult]) -> Dots:
    series = tuple(
        Series(who, tuple(_point(getattr(one, who), row, f"{one.task}, {who}") for row, one in enumerate(found)), style=k, is_line=False)
        for k, who in enumerate(("teacher", "student"))
    )  # fmt: skip
    return Dots("accuracy", "Accuracy with intervals", "accuracy, %", tuple(_name(one) for one in found), series)


def _stability(found: Sequence[TaskResult]) -> Dots:
    kinds = (
        ("stability", [(one.stability or one.answers).stability for one in found]),
        ("both right or both wrong", [one.answers.correctness for one in found]),
    )
    series = tuple(
        Series(name, tuple(_point(i, row, f"{one.task}, {name}") for row, (one, i) in enumerate(zip(found, intervals, strict=True))),
               style=k + 2, is_line=False)
        for k, (name, intervals) in enumerate(kinds)
    )  # fmt: skip
    rules = (Rule("x", 100.0, ""),)
    return Dots("stability", "Does the student answer as the teacher does?", "%", tuple(_name(o) for o in found), series, rules)


def _table(found: Benchmark) -> Html:
    names = ("items", "teacher, %", "student, %", "kept, %", "stability, %", "KL over options", "lost / won", "sign test p")
    rows = []
    for one in found.tasks:
        answers, stable = one.answers, (one.stability or one.answers).stability
        lost = f"{len(answers.right_to_wrong)} / {len(answers.wrong_to_right)}"
        cells = [_percent(one.teacher), _percent(one.student), _percent(one.retained), _percent(stable)]
        kl = "" if answers.kl is None else f"{answers.kl.value:.3g}"
        rows.append([_name(one), f"{one.n_items:,}", *cells, kl, lost, f"{answers.p_value:.2g}"])
    if found.retained is not None and found.teacher_average is not None and found.student_average is not None:
        means = [f"{100 * found.teacher_average:.1f}", f"{100 * found.student_average:.1f}", _percent(found.retained)]
        rows.append([f"average of {len(found.counted)}", "", *means, "", "", "", ""])
    return table("Tasks: value and interval", [Column("task"), *number_columns(*names)], rows)


def _flips(one: TaskResult) -> Html | None:
    answers = one.answers
    ways = (("right → wrong", answers.right_to_wrong), ("wrong → right", answers.wrong_to_right))
    rows = [[flip.text, way, *_options(flip, answers)] for way, flips in ways for flip in flips[:N_FLIPS]]
    if not rows:
        return tag("p", f"{one.task}: no answer turned.", class_="note")
    n_all = len(answers.right_to_wrong) + len(answers.wrong_to_right)
    caption = f"{one.task}: flips, the teacher's surest first; scores in nats, lower is better, the right option in brackets"
    columns = [Column("item"), Column("flip"), Column("teacher's scores"), Column("student's scores")]
    return details(f"{one.task}: {len(rows)} of {n_all} answers that turned", table(caption, columns, rows))


def _options(flip: Flip, answers: Stability) -> list[str]:
    return [
        "  ".join(f"[{value:.3f}]" if index == flip.gold else f"{value:.3f}" for index, value in enumerate(scores))
        for scores in (flip.teacher_scores, flip.student_scores)
    ]


def _name(one: TaskResult) -> str:
    return f"{one.task} *" if one.at_chance else one.task


def _point(found: Interval, row: int, what: str) -> Point:
    return Point(100 * found.value, row, low=100 * found.low, high=100 * found.high, tip=f"{what}: {_percent(found)} %")


def _percent(found: Interval | None) -> str:
    return "" if found is None else f"{100 * found.value:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"
