"""How fast both models run, round by round, beside the most that removing layers can give on this machine."""

from __future__ import annotations

import statistics
from typing import get_args

from shoal.evaluate.intervals import Interval
from shoal.evaluate.speed import Rates, Speed, SpeedPhase
from shoal.show.chart import Chart, Point, Rule, Series
from shoal.show.html import Column, Html, number_columns, table, tag
from shoal.show.report.run_data import RunData, Section

PHASES: tuple[SpeedPhase, ...] = get_args(SpeedPhase)


def speed(data: RunData) -> Section | None:
    found = data.evaluation.speed if data.evaluation else None
    if found is None:
        return None
    note = (
        f"Teacher and student in turns: batch {found.batch_size}, prompts of {found.prompt_length} tokens, {found.new_tokens} "
        f"new ones, {found.dtype} on {found.device}, CPU threads: {found.n_threads}. The bound is what removing layers can "
        "give: (t0 + L t1) / (t0 + L' t1), with the time of a layer, t1, and of the rest, t0, fitted to the teacher at several "
        "depths; the student takes no part. A ratio far from it, or a wide interval, says that other work ran on the machine."
    )
    charts = [_ratios(found), *(_depths(found, phase) for phase in PHASES if found.depths)]
    tables = [_times(found)] if found.depths else []
    return Section("speed", "Speed", "evaluation.json", (tag("p", note), _medians(found), *charts, *tables, _rounds(found)))


def _medians(found: Speed) -> Html:
    columns = [Column("tokens per second, medians"), *number_columns("teacher", "student", "ratio", "bound")]
    rows = []
    for phase in PHASES:
        medians = [f"{statistics.median(_rates(one, phase)):,.1f}" for one in (found.teacher, found.student)]
        rows.append([phase, *medians, _interval(found.ratio(phase)), f"{found.bound(phase):.3f}"])
    times = [found.first_token_seconds(one) for one in (found.teacher, found.student)]
    rows.append(["ms to the first token", *(f"{1000 * one:.3g}" for one in times), "", ""])
    peaks = [one.peak_bytes for one in (found.teacher, found.student)]
    if None not in peaks:
        rows.append(["peak memory, MB", *(f"{(one or 0) / 1e6:,.1f}" for one in peaks), "", ""])
    level = 100 * found.ratio("decode").level
    return table(f"Speed; the ratio is a median over rounds with its {level:.3g} % interval", columns, rows)


def _ratios(found: Speed) -> Chart:
    series = []
    for style, phase in enumerate(PHASES):
        ratios = found.prefill_ratios if phase == "prefill" else found.decode_ratios
        points = (Point(r, x, tip=f"{phase}, round {r}: x {x:.3f}") for r, x in enumerate(ratios, start=1))
        series.append(Series(phase, tuple(points), style=style))
    bounds = tuple(Rule("y", found.bound(phase), f"bound of {phase}") for phase in PHASES)
    rules = (*bounds, Rule("y", 1.0, "as fast as the teacher"))
    return Chart("speed", "Student over teacher, tokens per second", "round", "ratio", tuple(series), rules=rules)


def _depths(found: Speed, phase: SpeedPhase) -> Chart:
    """Time of one forward by depth, with the line that the bound is from."""
    points = [Point(layers, ms, tip=f"{name}, {layers} layers: {ms:.3g}") for name, layers, ms in _milliseconds(found, phase)]
    series = [
        Series("teacher at several depths", tuple(points[:-1]), style=0, is_line=False),
        Series("student", (points[-1],), style=1, is_line=False),
    ]
    fit = found.layer_time(phase)
    if fit is not None:
        line = (Point(n, 1000 * fit.seconds(n)) for n in (0, found.teacher_layers))
        series.append(Series("t0 + L t1", tuple(line), style=5))
    title = f"Time of one {phase} forward by depth"
    return Chart(f"depth-{phase}", title, "layers", "ms", tuple(series))


def _milliseconds(found: Speed, phase: SpeedPhase) -> list[tuple[str, int, float]]:
    """Median time of one forward: the teacher cut to several depths, the teacher, the student."""
    n_tokens = found.batch_size * (found.prompt_length if phase == "prefill" else 1)
    cut = [("teacher cut", one.layers, one.prefill if phase == "prefill" else one.decode) for one in found.depths]
    whole = ("teacher", found.teacher_layers, _rates(found.teacher, phase))
    student = ("student", found.student_layers, _rates(found.student, phase))
    return [(name, layers, 1000 * n_tokens / statistics.median(rates)) for name, layers, rates in (*cut, whole, student)]


def _times(found: Speed) -> Html:
    both = zip(*(_milliseconds(found, phase) for phase in PHASES), strict=True)
    rows = [[name, str(layers), *(f"{one[2]:.3g}" for one in pair)] for pair in both for name, layers, _ in pair[:1]]
    fits = [found.layer_time(phase) for phase in PHASES]
    rows.append(["t0: without layers", "0", *("" if one is None else f"{1000 * one.around:.3g}" for one in fits)])
    rows.append(["t1: one layer", "1", *("" if one is None else f"{1000 * one.per_layer:.3g}" for one in fits)])
    return table("Milliseconds of one forward", [Column("model"), *number_columns("layers", *PHASES)], rows)


def _rounds(found: Speed) -> Html:
    rows = []
    for phase in PHASES:
        both = zip(_rates(found.teacher, phase), _rates(found.student, phase), strict=True)
        rows += [[f"{phase}, round {r}", f"{a:,.1f}", f"{b:,.1f}", f"{b / a:.3f}"] for r, (a, b) in enumerate(both, start=1)]
    columns = [Column("round"), *number_columns("teacher", "student", "ratio")]
    return table("Tokens per second, round by round", columns, rows, is_long=True)


def _rates(one: Rates, phase: SpeedPhase) -> tuple[float, ...]:
    return one.prefill if phase == "prefill" else one.decode


def _interval(found: Interval) -> str:
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
