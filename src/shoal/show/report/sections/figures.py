"""Teacher and student side by side: every figure of the evaluation."""

from __future__ import annotations

from shoal.evaluate.evaluation import Evaluation
from shoal.show.chart import Dots, Point, Series
from shoal.show.figures import rows
from shoal.show.html import Column, Html, number_columns, table, tag
from shoal.show.report.run_data import RunData, Section


def figures(data: RunData) -> Section | None:
    found = data.evaluation
    if found is None:
        return None
    lines = [[one.label, one.teacher, one.student, one.change] for one in rows(found)]
    ours, source = found.student.perplexity, found.provenance
    note = (
        f"On {source.data}, {source.n_samples:,} samples of {source.length} tokens that nothing was chosen on. Perplexity: "
        f"{ours.how}. KL and agreement: "
        f"{found.quality.n_tokens:,} tokens of {found.quality.n_samples} samples; ± is the standard error over samples."
    )
    shown = table("Teacher and student", [Column(""), *number_columns("teacher", "student", "change")], lines)
    return Section("figures", "What was lost, what was won", "evaluation.json", (tag("p", note), shown, *_positions(found)))


def _positions(found: Evaluation) -> tuple[Dots | Html, ...]:
    """KL, acceptance and agreement by position: does the loss grow with the context?"""
    if found.by_position is None or len(found.by_position.octaves) < 2:
        return ()
    octaves = found.by_position.octaves
    names = [str(one.start) if one.stop == one.start + 1 else f"{one.start}..{one.stop - 1}" for one in octaves]
    points = tuple(
        Point(o.kl, row, tip=f"position {name}: KL {o.kl:.4g}")
        for row, (o, name) in enumerate(zip(octaves, names, strict=True))
    )
    chart = Dots(
        "positions", "KL by position in the sample", "KL, nats per token", tuple(names), (Series("KL", points, is_line=False),)
    )
    rows = [
        [name, f"{o.n_tokens:,}", f"{o.kl:.4g}", f"{100 * o.acceptance:.1f} %", f"{100 * o.agreement:.1f} %"]
        for o, name in zip(octaves, names, strict=True)
    ]
    columns = [Column("position"), *number_columns("tokens", "KL", "speculative acceptance", "top-1 agreement")]
    return chart, table("Student against teacher by position", columns, rows)
