"""Tasks for people: one line per task and one for the average, and the flips with their option scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from shoal.evaluate.intervals import Interval
from shoal.evaluate.stability import Stability
from shoal.evaluate.tasks.benchmark import Benchmark, TaskFigures, TaskResult

if TYPE_CHECKING:
    from rich.table import Table

N_SHOWN = 3
FEW_ITEMS = 0.1  # share of the items below which the weights of stability rest on too few


def task_table(found: Benchmark) -> Table:
    """Accuracy of both with intervals, share kept, flips and their sign test."""
    from rich.table import Table

    level = f"{100 * found.tasks[0].teacher.level:g} %" if found.tasks else ""
    shown = Table(
        "task", "items", "teacher", "student", "retained", "lost / won", "p",
        title=f"Tasks, accuracy in % ({level} intervals)",
    )  # fmt: skip
    for column in shown.columns[1:]:
        column.justify = "right"
    for one in found.tasks:
        shown.add_row(*_cells(one))
    if found.retained is not None:
        average = f"average of {len(found.counted)}"
        shown.add_section()
        shown.add_row(average, "", _per_cent(found.teacher_average), _per_cent(found.student_average), _share(found.retained))
    return shown


def agreement_table(found: Benchmark) -> Table:
    """How far the student answers as the teacher does: stability with its variant, the rest by the accuracy's answers."""
    from rich.table import Table

    shown = Table(
        "task", "stability", "of scores", "effective items", "both right or wrong", "same answer", "KL",
        title="Agreement with the teacher, %; KL between the options, nats",
    )  # fmt: skip
    for column in shown.columns[1:]:
        column.justify = "right"
    for one in found.tasks:
        stable, answers = one.stability or one.answers, one.answers
        shown.add_row(
            one.task, _share(stable.stability), stable.variant, f"{stable.effective_items:.3g}", _share(answers.correctness),
            _share(answers.answers), _number(answers.kl),
        )  # fmt: skip
    return shown


def accuracy_table(found: Sequence[TaskFigures]) -> Table:
    """One model alone: accuracy with intervals, and what guessing would give."""
    from rich.table import Table

    level = f"{100 * found[0].accuracy.level:g} %" if found else ""
    shown = Table(
        "task",
        "accuracy",
        "guessing",
        "acc_norm",
        "per word",
        "items",
        "cut",
        "by",
        title=f"Tasks, accuracy in % ({level} intervals)",
    )
    for column in shown.columns[1:-1]:
        column.justify = "right"
    for one in found:
        perplexity = "" if one.word_perplexity is None else f"{one.word_perplexity:.4g}"
        shown.add_row(
            f"{one.task} *" if one.at_chance else one.task, _share(one.accuracy), f"{100 * one.chance:.1f}",
            _share(one.accuracy_norm), perplexity, str(one.n_items), str(one.n_truncated), f"{one.metric}, {one.engine}",
        )  # fmt: skip
    return shown


def task_notes(found: Benchmark) -> list[str]:
    """What the table cannot say: tasks left out, contexts cut, accuracies per character, perplexity per word."""
    notes = []
    if found.tasks and not found.counted:
        notes.append("No average: the teacher is at chance on every task, so none says what was lost")
    for one in found.tasks:
        if one.at_chance:
            notes.append(
                f"{one.task}: the teacher is at chance ({100 * one.chance:.1f} %) on {one.n_items} items; not in the average"
            )
        if one.engine == "lm-eval" and one.form == "choice":
            notes.append(f"{one.task}: stability by option_nll; lm-eval keeps no likelihood of the context")
        if one.n_truncated:
            notes.append(f"{one.task}: {one.n_truncated} of {one.n_items} contexts cut from the left to fit the window")
        if one.teacher_norm is not None and one.student_norm is not None:
            notes.append(f"{one.task}: acc_norm {_share(one.teacher_norm)} -> {_share(one.student_norm)}")
        if one.teacher_perplexity is not None and one.student_perplexity is not None:
            notes.append(f"{one.task}: perplexity per word {one.teacher_perplexity:.4g} -> {one.student_perplexity:.4g}")
    return notes + stability_notes([one.stability or one.answers for one in found.tasks])


def flip_table(results: Sequence[Stability], *, n: int = N_SHOWN) -> Table:
    """The first flips of every task each way, the teacher's surest first: what each wrote, or scores in nats, lower is better,
    gold in brackets."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(
        "task",
        "item",
        "flip",
        "teacher's scores",
        "student's scores",
        title="Flips (scores in nats, lower is better; the right option in brackets)",
    )
    for one in results:
        for flips, way in ((one.right_to_wrong, "right to wrong"), (one.wrong_to_right, "wrong to right")):
            for flip in flips[:n]:
                scores = [
                    _scores(values, flip.gold) if said is None else repr(said[:40])
                    for values, said in (
                        (flip.teacher_scores, flip.teacher_said),
                        (flip.student_scores, flip.student_said),
                    )
                ]
                shown.add_row(one.task, Text(flip.text), way, *(Text(cell) for cell in scores))  # Text: items are not markup
    return shown


def stability_table(results: Sequence[Stability], official: Mapping[str, float]) -> Table:
    """Stability of answers from files; ``official``: the released script's number per task, where it exists."""
    from rich.table import Table

    shown = Table(
        "task", "scores", "items (effective)", "stability", "correctness", "answers", "KL", "teacher", "student",
        "lost / won", title="Stability, agreement and accuracy, %",
    )  # fmt: skip
    if official:
        shown.add_column("official")
    for column in shown.columns[2:]:
        column.justify = "right"
    shown.columns[3].min_width = len("(100.0..100.0)")  # an interval is not cut short
    for one in results:
        cells = [
            one.task, one.variant, f"{one.n_items} ({one.effective_items:.3g})", _share(one.stability),
            _per_cent(one.correctness.value), _per_cent(one.answers.value if one.answers else None), _number(one.kl),
            _per_cent(one.teacher_accuracy.value), _per_cent(one.student_accuracy.value), _flips(one),
        ]  # fmt: skip
        shown.add_row(*cells, *([_per_cent(official.get(one.task))] if official else []))
    return shown


def stability_notes(results: Sequence[Stability]) -> list[str]:
    """Tasks whose stability rests on a few items."""
    return [
        f"{one.task}: the weights are those of {one.effective_items:.3g} of {one.n_items} items, so stability says little here "
        f"({one.variant} scores spread widely); read the agreement of correctness instead"
        for one in results
        if one.effective_items < FEW_ITEMS * one.n_items
    ]


def _cells(one: TaskResult) -> list[str]:
    return [
        f"{one.task} *" if one.at_chance else one.task,
        str(one.n_items),
        _share(one.teacher),
        _share(one.student),
        _share(one.retained),
        _flips(one.answers),
        f"{one.answers.p_value:.2g}",
    ]


def _flips(one: Stability) -> str:
    return f"{len(one.right_to_wrong)} / {len(one.wrong_to_right)}"


def _share(found: Interval | None) -> str:
    return "" if found is None else f"{100 * found.value:.1f} ({100 * found.low:.1f}..{100 * found.high:.1f})"


def _per_cent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _number(found: Interval | None) -> str:
    return "" if found is None else f"{found.value:.3g}"


def _scores(values: Sequence[float], gold: int) -> str:
    return "  ".join(f"[{value:.3f}]" if index == gold else f"{value:.3f}" for index, value in enumerate(values))
