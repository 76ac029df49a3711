"""Tasks as tables: accuracy, agreement with the teacher, flips with their option scores, and what the tables cannot say."""

from collections.abc import Iterable, Mapping, Sequence

from shoal.evaluate.stability import Flip, Stability
from shoal.evaluate.tasks.benchmark import Benchmark, TaskFigures
from shoal.evaluate.tasks.disagreement import NAMES
from shoal.show.table import Column, Table, numbers
from shoal.words.numbers import number, percent, percents, short, whole

N_SHOWN = 3
FEW_ITEMS = 0.1  # Below this share of effective items, stability rests on too few of them.
SCORES = "scores in nats, lower is better, the right option in brackets"


def accuracy(found: Benchmark) -> Table:
    """Accuracy of both with intervals, share kept, flips and their sign test; the average below."""
    level = f"{100 * found.tasks[0].teacher.level:g} % intervals" if found.tasks else ""
    columns = (
        Column("task"), *numbers("items", form=whole), *numbers("teacher, %", "student, %", "kept, %", form=percents),
        *numbers("lost / won"), *numbers("sign test p", form=lambda p: f"{p:.2g}"),
    )  # fmt: skip
    rows = [
        (one.name, one.facts.n_items, one.teacher, one.student, one.retained, _flips(one.answers), one.answers.p_value)
        for one in found.tasks
    ]
    if found.retained is not None and found.teacher_average is not None and found.student_average is not None:
        means = (percent(found.teacher_average), percent(found.student_average))
        rows.append((f"average of {len(found.counted)}", None, *means, found.retained, None, None))  # type: ignore[arg-type]
    breaks = (len(found.tasks),) if len(rows) > len(found.tasks) else ()
    return Table(f"Tasks, accuracy in % ({level})", columns, tuple(rows), breaks=breaks)


def agreement(found: Benchmark) -> Table:
    """How far the student answers as the teacher does: stability with what its weights rest on, and what weighs all alike."""
    shares = numbers("both right or wrong, %", "same answer, %", form=percents)
    columns = (
        Column("task"), *numbers("stability, %", form=percents), Column("of scores"), *numbers("effective items", form=short),
        *shares, *numbers("KL, nats", form=lambda found: short(found.value)),
    )  # fmt: skip
    rows = []
    for one in found.tasks:
        stable, answers = one.agreement, one.answers
        weighed = (stable.stability, stable.variant, stable.effective_items)
        rows.append((one.name, *weighed, answers.correctness, answers.answers, answers.kl))
    return Table("Agreement with the teacher", columns, tuple(rows))


def kinds(found: Benchmark) -> Table:
    """What was kept above chance, form by form: a model may keep one and lose another."""
    columns = (Column("kind"), *numbers("kept, %", form=percents), Column("tasks"))
    rows = tuple((NAMES[one.form], one.share, ", ".join(one.tasks)) for one in found.kinds)
    return Table("Kept above chance, by kind of task", columns, rows)


def accuracy_alone(found: Sequence[TaskFigures]) -> Table:
    """One model alone: accuracy with intervals, and what guessing would give."""
    level = f"{100 * found[0].accuracy.level:g} % intervals" if found else ""
    columns = (
        Column("task"), *numbers("accuracy", form=percents), *numbers("guessing", form=percent),
        *numbers("acc_norm", form=percents), *numbers("perplexity per word"), *numbers("items", "cut", form=whole),
        Column("by"),
    )  # fmt: skip
    rows = tuple(
        (
            one.name, one.accuracy, one.facts.chance, one.accuracy_norm, one.word_perplexity, one.facts.n_items,
            one.facts.n_truncated, f"{one.facts.metric}, {one.facts.engine}",
        )
        for one in found
    )  # fmt: skip
    return Table(f"Tasks, accuracy in % ({level})", columns, rows)


def task_notes(found: Benchmark) -> list[str]:
    """What the table cannot say: tasks left out, contexts cut, accuracies per character, perplexity per word."""
    notes = []
    if found.tasks and not found.counted:
        notes.append("No average: the teacher is at chance on every task, so none says what was lost")
    for one in found.tasks:
        name, facts = one.facts.task, one.facts
        if one.at_chance:
            chance = f"{percent(facts.chance)} %"
            notes.append(f"{name}: the teacher is at chance ({chance}) on {facts.n_items} items; not in the average")
        if facts.n_truncated:
            notes.append(f"{name}: {facts.cut_said}")
        if one.teacher_norm is not None and one.student_norm is not None:
            notes.append(f"{name}: acc_norm {percents(one.teacher_norm)} -> {percents(one.student_norm)}")
        if one.teacher_perplexity is not None and one.student_perplexity is not None:
            both = f"{number(one.teacher_perplexity)} -> {number(one.student_perplexity)}"
            notes.append(f"{name}: perplexity per word {both}")
    return notes + stability_notes([one.agreement for one in found.tasks])


def stability_notes(results: Sequence[Stability]) -> list[str]:
    """Tasks whose stability rests on a few items."""
    return [
        f"{one.task}: the weights are those of {short(one.effective_items)} of {one.n_items} items, so stability says little "
        f"here ({one.variant} scores spread widely); read the agreement of correctness instead"
        for one in results
        if one.effective_items < FEW_ITEMS * one.n_items
    ]


def flips(results: Sequence[Stability], *, n: int = N_SHOWN) -> Table:
    """The first flips of every task each way, the teacher's surest first: what each wrote, or the scores of the options."""
    rows = [(flip.text, one.task, way, *said) for one in results for flip, way, *said in _turned(one, n)]
    about = f"the teacher's surest first; {SCORES}"
    if all(one.variant == "exact_match" for one in results):
        about = "and what each model answered"
    columns = (Column("item"), Column("task"), Column("flip"), Column("teacher's"), Column("student's"))
    return Table(f"Flips, {about}", columns, tuple(rows))


def _turned(one: Stability, n: int) -> Iterable[tuple[Flip, str, str, str]]:
    for found, way in ((one.right_to_wrong, "right → wrong"), (one.wrong_to_right, "wrong → right")):
        for flip in found[:n]:
            ours = _said(flip.teacher_said, flip.teacher_scores, flip.gold)
            yield flip, way, ours, _said(flip.student_said, flip.student_scores, flip.gold)


def _said(text: str | None, scores: Sequence[float], gold: int) -> str:
    """What a model wrote, or its scores with the right option in brackets."""
    if text is not None:
        return repr(text[:80])
    return "  ".join(f"[{value:.3f}]" if index == gold else f"{value:.3f}" for index, value in enumerate(scores))


def stabilities(results: Sequence[Stability], official: Mapping[str, float]) -> Table:
    """Stability of answers from files; ``official``: the released script's number per task, where it exists."""
    columns = (
        Column("task"), Column("scores"), *numbers("items (effective)"), *numbers("stability, %", form=percents),
        *numbers("correctness", "same answer", form=lambda found: percent(found.value)),
        *numbers("KL, nats", form=lambda found: short(found.value)),
        *numbers("teacher", "student", form=lambda found: percent(found.value)), *numbers("lost / won"),
        *(numbers("official", form=percent) if official else ()),
    )  # fmt: skip
    rows = []
    for one in results:
        items = f"{one.n_items} ({short(one.effective_items)})"
        shares = (one.stability, one.correctness, one.answers, one.kl, one.teacher_accuracy, one.student_accuracy)
        more = (official.get(one.task),) if official else ()
        rows.append((one.task, one.variant, items, *shares, _flips(one), *more))
    return Table("Stability, agreement and accuracy, %", columns, tuple(rows), notes=tuple(stability_notes(results)))


def _flips(one: Stability) -> str:
    return f"{len(one.right_to_wrong)} / {len(one.wrong_to_right)}"
