"""What was compared before the choice, and why the winner won."""

import math
from collections.abc import Sequence
from dataclasses import replace

from shoal.edits.plan import Candidate
from shoal.select.verdict import kl_said, spread_said
from shoal.show import plan_tables
from shoal.show.chart import Chart, Point, Series
from shoal.show.html import tag
from shoal.show.report.run_data import RunData, Section


def candidates(data: RunData) -> Section | None:
    plan = data.plan
    if plan is None or not (plan.candidates or plan.method):
        return None
    compared = plan_tables.candidates(plan.candidates, n_layers=plan.n_layers)
    parts = []
    if plan.method:  # The method of a guarded choice holds the verdict, which is the note of the table.
        parts.append(tag("p", f"{plan.method[:1].upper()}{plan.method[1:]}."))
        compared = replace(compared, notes=())
    if plan.removed:
        parts.append(tag("p", f"It removes {plan_tables.removed_said(plan)}."))
    if zeroed := plan_tables.zeroed_said(plan):
        parts.append(tag("p", zeroed))
    if plan.spread:
        parts.append(tag("p", f"Choice {spread_said(plan.spread)}."))
    measured = [one for one in plan.candidates if one.kl is not None]
    chart = [_chart(measured)] if len(measured) > 1 else []
    shown = [compared] if plan.candidates else []
    note = "Measured on the selection text, which no figure of the result is taken from."
    notes = [tag("p", note, class_="note")] if measured else []
    return Section("candidates", "Why these layers", "plan.json", (*parts, *chart, *shown, *notes))


def _chart(measured: Sequence[Candidate]) -> Chart:
    points = []
    for row, one in enumerate(measured):
        kl, error = one.kl if one.kl is not None else math.nan, one.kl_stderr or 0.0
        tip = f"without {one}: KL {kl_said(one)}"
        points.append(Point(kl, row, low=kl - error, high=kl + error, tip=tip))
    names = tuple(f"{'▸ ' if row == 0 else ''}{one}" for row, one in enumerate(measured))
    title = "KL of the candidates (± standard error); ▸ is the choice"
    series = (Series("KL", tuple(points), is_line=False),)
    return Chart("candidates", title, "KL to the teacher, nats per token", "", series, rows=names)
