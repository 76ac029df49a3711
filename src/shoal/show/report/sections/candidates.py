"""What was compared before the choice, and why the winner won."""

from __future__ import annotations

import math

from shoal.edits.plan import Candidate
from shoal.select.guard import verdict
from shoal.show.chart import Dots, Point, Series
from shoal.show.html import Column, number_columns, table, tag
from shoal.show.report.run_data import RunData, Section
from shoal.words.structure import runs_said

PLAIN = "Candidates as plain cuts, before any repair, best first"
REPAIRED = "Candidates, each repaired on a part of the text, best first"


def candidates(data: RunData) -> Section | None:
    plan = data.plan
    if plan is None or not (plan.candidates or plan.method):
        return None
    parts = []
    measured = [one for one in plan.candidates if one.kl is not None]
    if plan.method:  # of a guarded choice it holds the verdict
        parts.append(tag("p", f"{plan.method[:1].upper()}{plan.method[1:]}."))
    elif measured:
        parts.append(tag("p", f"Chosen: {verdict(plan.candidates, n_layers=plan.n_layers)}."))
    repaired = any(one.kl_plain is not None for one in plan.candidates)
    rows = []
    for one in plan.candidates:
        plain = [] if not repaired else ["" if one.kl_plain is None else f"{one.kl_plain:.4g}"]
        perplexity = "" if one.perplexity is None else f"{one.perplexity:.4g}"
        rows.append([runs_said(one.layers) or "none", _kl(one), *plain, perplexity, _by(one)])
    names = ("KL, nats per token", *(["KL before repair"] if repaired else []), "perplexity")
    columns = [Column("layers out"), *number_columns(*names), Column("proposed by (score)")]
    shown = [table(REPAIRED if repaired else PLAIN, columns, rows)] if rows else []
    chart = [_chart(measured)] if len(measured) > 1 else []
    note = "Measured on the selection text, which no figure of the result is taken from."
    return Section("candidates", "Why these layers", "plan.json", (*parts, *chart, *shown, tag("p", note, class_="note")))


def _chart(measured: list[Candidate]) -> Dots:
    points = []
    for row, one in enumerate(measured):
        kl, error = one.kl if one.kl is not None else math.nan, one.kl_stderr or 0.0
        points.append(Point(kl, row, low=kl - error, high=kl + error, tip=f"without {runs_said(one.layers)}: KL {_kl(one)}"))
    names = tuple(f"{'▸ ' if row == 0 else ''}{runs_said(one.layers)}" for row, one in enumerate(measured))
    title = "KL of the candidates (± standard error); ▸ is the choice"
    series = (Series("KL", tuple(points), is_line=False),)
    return Dots("candidates", title, "KL to the teacher, nats per token", names, series)


def _kl(one: Candidate) -> str:
    if one.kl is None:
        return "not measured"
    return f"{one.kl:.4g}" + ("" if one.kl_stderr is None else f" ± {one.kl_stderr:.2g}")


def _by(one: Candidate) -> str:
    return "; ".join(f"{name} ({one.scores[name]:.4g})" if name in one.scores else name for name in one.proposed_by)
