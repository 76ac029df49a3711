"""Answers to tasks: accuracy with intervals, what was kept, stability, and the items whose answer turned."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.evaluate.intervals import Interval
from shoal.evaluate.stability import Flip
from shoal.evaluate.tasks.benchmark import Benchmark, TaskResult
from shoal.evaluate.tasks.disagreement import NAMES, disagreement, kept_shares
from shoal.show.chart import Dots, Point, Rule, Series
from shoal.show.html import Column, Html, details, number_columns, table, tag
from shoal.show.report.run_data import RunData, Section
from shoal.show.task_table import task_notes

N_FLIPS = 5  # shown per task and way; all of them are in the file


def tasks(data: RunData) -> Section | None:
    found, file = data.tasks
    if found is None or not found.tasks:
        return None
    level = 100 * found.tasks[0].teacher.level
    intro = (
        f"In brackets the {level:g} % interval from {found.n_resamples:,} resamples of the items, teacher and student drawn "
        "together. A task where the teacher is at chance is marked * and left out of the average."
    )
    notes = task_notes(found)
    asked = data.evaluation if file == "evaluation.json" else data.answers
    shares = asked and kept_shares(found, teacher=asked.teacher.perplexity, student=asked.student.perplexity)
    said = disagreement(shares) if shares else None
    notes = [said, *notes] if said else notes
    parts: list[Html | Dots] = [
        tag("p", intro),
        _accuracy(found.tasks),
        _stability(found.tasks),
        _accuracies(found),
        _agreement(found.tasks),
        *([_kinds(found)] if len(found.kinds) > 1 else []),
        *([tag("ul", [tag("li", f"{note}.") for note in notes])] if notes else []),
        *(_flips(one) for one in found.tasks),
    ]
    return Section("tasks", "Answers: accuracy, stability, flips", file, tuple(parts))


def _accuracy(found: Sequence[TaskResult]) -> Dots:
    names = tuple(_name(one) for one in found)
    series = (
        _series("teacher", 0, found, [one.teacher for one in found]),
        _series("student", 1, found, [one.student for one in found]),
    )
    return Dots("accuracy", "Accuracy with intervals", "accuracy, %", names, series)


def _stability(found: Sequence[TaskResult]) -> Dots:
    names = tuple(_name(one) for one in found)
    series = (
        _series("stability", 2, found, [(one.stability or one.answers).stability for one in found]),
        _series("both right or both wrong", 3, found, [one.answers.correctness for one in found]),
    )
    return Dots("stability", "Does the student answer as the teacher does?", "%", names, series, (Rule("x", 100.0, ""),))


def _series(name: str, style: int, found: Sequence[TaskResult], intervals: Sequence[Interval]) -> Series:
    points = []
    for row, (one, i) in enumerate(zip(found, intervals, strict=True)):
        tip = f"{one.task}, {name}: {_percent(i)} %"
        points.append(Point(100 * i.value, row, low=100 * i.low, high=100 * i.high, tip=tip))
    return Series(name, tuple(points), style=style, is_line=False)


def _accuracies(found: Benchmark) -> Html:
    names = ("items", "teacher, %", "student, %", "kept, %", "lost / won", "sign test p")
    rows = []
    for one in found.tasks:
        answers = one.answers
        lost = f"{len(answers.right_to_wrong)} / {len(answers.wrong_to_right)}"
        cells = [_percent(interval) for interval in (one.teacher, one.student, one.retained)]
        rows.append([_name(one), f"{one.n_items:,}", *cells, lost, f"{answers.p_value:.2g}"])
    if found.retained is not None and found.teacher_average is not None and found.student_average is not None:
        means = [f"{100 * found.teacher_average:.1f}", f"{100 * found.student_average:.1f}", _percent(found.retained)]
        rows.append([f"average of {len(found.counted)}", "", *means, "", ""])
    return table("Accuracy: value and interval", [Column("task"), *number_columns(*names)], rows)


def _agreement(found: Sequence[TaskResult]) -> Html:
    """Stability with what its weights are made of, and the agreement that weighs all items alike."""
    names = ("stability, %", "of scores", "effective items", "both right or wrong, %", "same answer, %", "KL, nats")
    rows = []
    for one in found:
        answers, stable = one.answers, one.stability or one.answers
        kl = "" if answers.kl is None else f"{answers.kl.value:.3g}"
        shares = (_percent(answers.correctness), _percent(answers.answers))
        rows.append([_name(one), _percent(stable.stability), stable.variant, f"{stable.effective_items:.3g}", *shares, kl])
    return table("Agreement with the teacher", [Column("task"), *number_columns(*names)], rows)


def _kinds(found: Benchmark) -> Html:
    """What was kept above chance, form by form: a model may keep one and lose another."""
    rows = [[NAMES[one.form], _percent(one.share), ", ".join(one.tasks)] for one in found.kinds]
    return table("Kept above chance, by kind of task", [Column("kind"), *number_columns("kept, %"), Column("tasks")], rows)


def _flips(one: TaskResult) -> Html:
    answers = one.answers
    ways = (("right → wrong", answers.right_to_wrong), ("wrong → right", answers.wrong_to_right))
    rows = [[flip.text, way, *_options(flip)] for way, flips in ways for flip in flips[:N_FLIPS]]
    if not rows:
        return tag("p", f"{one.task}: no answer turned.", class_="note")
    n_all = len(answers.right_to_wrong) + len(answers.wrong_to_right)
    if one.form == "generation":
        caption, what = f"{one.task}: flips, and what each model answered", "answer"
    else:
        caption = (
            f"{one.task}: flips, the teacher's surest first; scores in nats, lower is better, the right option in brackets"
        )
        what = "scores"
    columns = [Column("item"), Column("flip"), Column(f"teacher's {what}"), Column(f"student's {what}")]
    return details(f"{one.task}: {len(rows)} of {n_all} answers that turned", table(caption, columns, rows))


def _options(flip: Flip) -> list[str]:
    """What each wrote, or its scores."""
    return [
        "  ".join(f"[{value:.3f}]" if index == flip.gold else f"{value:.3f}" for index, value in enumerate(scores))
        if said is None
        else repr(said)
        for scores, said in ((flip.teacher_scores, flip.teacher_said), (flip.student_scores, flip.student_said))
    ]


def _name(one: TaskResult) -> str:
    return f"{one.task} *" if one.at_chance else one.task


def _percent(found: Interval | None) -> str:
    return "" if found is None else f"{100 * found.value:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"
