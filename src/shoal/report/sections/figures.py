"""Teacher and student side by side: every figure of the evaluation."""

from __future__ import annotations

from shoal.evaluate import rows
from shoal.report.data import RunData, Section
from shoal.report.html import Column, number_columns, table, tag


def figures(data: RunData) -> Section | None:
    found = data.evaluation
    if found is None:
        return None
    lines = [[one.label, one.teacher, one.student, one.change] for one in rows(found)]
    ours, source = found.student.perplexity, found.provenance
    note = (
        f"On {source.data}, {source.n_samples:,} samples of {source.length} tokens that nothing was chosen on. Perplexity: window "
        f"{ours.window}, stride {ours.stride}, {ours.n_tokens:,} scored tokens. KL and agreement: {found.quality.n_tokens:,} tokens of "
        f"{found.quality.n_samples} samples; ± is the standard error over samples."
    )
    shown = table("Teacher and student", [Column(""), *number_columns("teacher", "student", "change")], lines)
    return Section("figures", "What was lost, what was won", "evaluation.json", (tag("p", note), shown))
