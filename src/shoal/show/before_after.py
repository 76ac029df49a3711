"""A student before and after its healing, as one table for the terminal, the page and the card."""

from shoal.evaluate.evaluation import Evaluation
from shoal.measure.oracle import Quality
from shoal.show.table import Column, Table, numbers
from shoal.train.heal.result import Drift
from shoal.words.numbers import number, percent

CAPTION = "Before and after, on the evaluation slice"


def before_after(before: Quality, evaluation: Evaluation) -> Table:
    """Teacher, student and healed student on the evaluation slice.

    Args:
        before: closeness of the student as it came, on the text of ``evaluation``, which is of the healed one.
    """
    after, teacher = evaluation.quality, evaluation.teacher.perplexity.value
    repaired = f"{percent(1 - after.kl / before.kl)} %" if before.kl else "–"
    perplexity = evaluation.student.perplexity.value
    rows = (
        ("KL to the teacher, nats per token", "0", number(before.kl), number(after.kl)),
        ("top-1 agreement with the teacher", "100 %", f"{percent(before.agreement)} %", f"{percent(after.agreement)} %"),
        ("damage repaired (share of the KL)", None, None, repaired),
        ("perplexity", number(teacher), None, number(perplexity)),
    )
    columns = (Column(""), *numbers("teacher", "before", "healed"))
    return Table(CAPTION, columns, rows)


def drift_table(drift: Drift) -> Table:
    """The student as it came and healed, where text alone trained it."""
    rows = (
        ("perplexity", number(drift.perplexity_before), number(drift.perplexity)),
        ("KL from the student as it came, nats per token", "0", number(drift.kl)),
        ("top-1 agreement with the student as it came", "100 %", f"{percent(drift.agreement)} %"),
    )
    return Table(CAPTION, (Column(""), *numbers("before", "healed")), rows)
