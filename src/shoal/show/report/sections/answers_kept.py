"""Answers to tasks: accuracy with intervals, what was kept, stability, and the items whose answer turned."""

from collections.abc import Sequence
from dataclasses import replace

from shoal.evaluate.intervals import Interval
from shoal.evaluate.tasks.benchmark import TaskResult
from shoal.evaluate.tasks.disagreement import disagreement, kept_shares
from shoal.show import task_tables
from shoal.show.chart import Chart, Point, Rule, Series
from shoal.show.html import Html, bullets, details, table, tag
from shoal.show.report.run_data import RunData, Section
from shoal.words.numbers import percents

N_FLIPS = 5  # The page shows these of each task and way; the file has all of them.


def tasks(data: RunData) -> Section | None:
    found, file = data.tasks
    if found is None or not found.tasks:
        return None
    level = 100 * found.tasks[0].teacher.level
    intro = (
        f"In brackets the {level:g} % interval from {found.n_resamples:,} resamples of the items, teacher and student drawn "
        "together. A task where the teacher is at chance is marked * and left out of the average."
    )
    notes = task_tables.task_notes(found)
    asked = data.evaluation if file == "evaluation.json" else data.answers
    shares = asked and kept_shares(found, teacher=asked.teacher.perplexity, student=asked.student.perplexity)
    warning = disagreement(shares) if shares else None
    charts = (_accuracy(found.tasks), _stability(found.tasks))
    tables = [task_tables.accuracy(found), task_tables.agreement(found)]
    if len(found.kinds) > 1:
        tables.append(task_tables.kinds(found))
    lines = bullets([f"{note}." for note in ([warning, *notes] if warning else notes)])
    parts = (tag("p", intro), *charts, *tables, lines, *(_flips(one) for one in found.tasks))
    return Section("tasks", "Answers: accuracy, stability, flips", file, tuple(part for part in parts if part is not None))


def _accuracy(found: Sequence[TaskResult]) -> Chart:
    series = (
        _series("teacher", 0, found, [one.teacher for one in found]),
        _series("student", 1, found, [one.student for one in found]),
    )
    return Chart("accuracy", "Accuracy with intervals", "accuracy, %", "", series, rows=tuple(one.name for one in found))


def _stability(found: Sequence[TaskResult]) -> Chart:
    series = (
        _series("stability", 2, found, [one.agreement.stability for one in found]),
        _series("both right or both wrong", 3, found, [one.answers.correctness for one in found]),
    )
    title, names = "Does the student answer as the teacher does?", tuple(one.name for one in found)
    return Chart("stability", title, "%", "", series, rules=(Rule("x", 100.0, ""),), rows=names)


def _series(name: str, style: int, found: Sequence[TaskResult], intervals: Sequence[Interval]) -> Series:
    points = []
    for row, (one, i) in enumerate(zip(found, intervals, strict=True)):
        tip = f"{one.facts.task}, {name}: {percents(i)} %"
        points.append(Point(100 * i.value, row, low=100 * i.low, high=100 * i.high, tip=tip))
    return Series(name, tuple(points), style=style, is_line=False)


def _flips(one: TaskResult) -> Html:
    name, turned = one.facts.task, (one.answers.right_to_wrong, one.answers.wrong_to_right)
    if not any(turned):
        return tag("p", f"{name}: no answer turned.", class_="note")
    found = task_tables.flips([one.answers], n=N_FLIPS)
    found = replace(found, caption=f"{name}: {found.caption[:1].lower()}{found.caption[1:]}")
    return details(f"{name}: {len(found.rows)} of {sum(map(len, turned))} answers that turned", table(found))
