"""How fast both models run, round by round, beside the most that removing layers can give."""

from __future__ import annotations

from shoal.evaluate.speed import median_iqr
from shoal.report.chart import Chart, Point, Rule, Series
from shoal.report.data import RunData, Section
from shoal.report.html import Column, number_columns, table, tag


def speed(data: RunData) -> Section | None:
    found = data.evaluation.speed if data.evaluation else None
    if found is None:
        return None
    series = tuple(
        Series(verb, tuple(Point(r, x, tip=f"{verb}, round {r}: x {x:.3f}") for r, x in enumerate(ratios, start=1)), style=k)
        for k, (verb, ratios) in enumerate((("prefill", found.prefill_ratios), ("decode", found.decode_ratios)))
    )
    most = found.teacher_layers / found.student_layers
    rules = (Rule("y", most, f"L/L' = {most:.2f}"), Rule("y", 1.0, "as fast as the teacher"))
    chart = Chart("speed", "Student over teacher, tokens per second", "round", "ratio", series, rules=rules)
    rows = []
    for verb, ratios in (("prefill", found.prefill_ratios), ("decode", found.decode_ratios)):
        for r, ratio in enumerate(ratios):
            ours, theirs = getattr(found.teacher, verb)[r], getattr(found.student, verb)[r]
            rows.append([f"{verb}, round {r + 1}", f"{ours:,.1f}", f"{theirs:,.1f}", f"{ratio:.3f}"])
    shown = table("Tokens per second", [Column("round"), *number_columns("teacher", "student", "ratio")], rows, is_long=True)
    medians = "; ".join(
        f"{verb} x {median_iqr(ratios)[0]:.2f} (interquartile range {median_iqr(ratios)[1]:.2f})"
        for verb, ratios in (("prefill", found.prefill_ratios), ("decode", found.decode_ratios))
    )
    note = (
        f"Teacher and student in turns: batch {found.batch_size}, prompts of {found.prompt_length} tokens, {found.new_tokens} "
        f"new ones, {found.dtype} on {found.device}, CPU threads: {found.n_threads}. Medians: {medians}. L/L' is the ratio if "
        "nothing but layers cost time; a ratio above it, or a wide range, says that other work ran on the machine."
    )
    return Section("speed", "Speed", "evaluation.json", (tag("p", note), chart, shown))
