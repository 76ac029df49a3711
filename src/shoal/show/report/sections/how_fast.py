"""How fast both models run, round by round, beside the most that removing layers can give on this machine."""

import statistics
from typing import Any, get_args

from shoal.evaluate.speed import Speed, SpeedPhase
from shoal.show.chart import Chart, Point, Rule, Series
from shoal.show.html import tag
from shoal.show.plan_tables import zeroed_said
from shoal.show.report.run_data import RunData, Section
from shoal.show.table import Column, Table, numbers
from shoal.words.numbers import in_bytes, ratio, short, tenths

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
    zeroed = zeroed_said(data.plan) if data.plan else ""
    if zeroed:
        note += f" {zeroed} These rates are of the stock checkpoint; MACs and cache above count what need not run."
    charts = [_ratios(found), *(_depths(found, phase) for phase in PHASES if found.depths)]
    tables = [_times(found)] if found.depths else []
    return Section("speed", "Speed", "evaluation.json", (tag("p", note), _medians(found), *charts, *tables, _rounds(found)))


def _medians(found: Speed) -> Table:
    both = (found.teacher, found.student)
    rows: list[tuple[Any, ...]] = []
    for phase in PHASES:
        medians = [statistics.median(one.of(phase)) for one in both]
        rows.append((phase, *medians, found.ratio(phase), found.bound(phase)))
    rows.append(("ms to the first token", *(short(1000 * found.first_token_seconds(one)) for one in both), None, None))
    if None not in [one.peak_bytes for one in both]:
        rows.append(("peak memory", *(in_bytes(one.peak_bytes or 0) for one in both), None, None))
    level = 100 * found.ratio("decode").level
    columns = (
        Column("tokens per second, medians"), *numbers("teacher", "student", form=tenths), *numbers("ratio", form=ratio),
        *numbers("bound", form=lambda bound: f"{bound:.2f}"),
    )  # fmt: skip
    return Table(f"Speed; the ratio is a median over rounds with its {short(level)} % interval", columns, tuple(rows))


def _ratios(found: Speed) -> Chart:
    series = []
    for style, phase in enumerate(PHASES):
        points = (Point(r, x, tip=f"{phase}, round {r}: x {x:.3f}") for r, x in enumerate(found.ratios(phase), start=1))
        series.append(Series(phase, tuple(points), style=style))
    bounds = tuple(Rule("y", found.bound(phase), f"bound of {phase}") for phase in PHASES)
    rules = (*bounds, Rule("y", 1.0, "as fast as the teacher"))
    return Chart("speed", "Student over teacher, tokens per second", "round", "ratio", tuple(series), rules=rules)


def _depths(found: Speed, phase: SpeedPhase) -> Chart:
    """Time of one forward by depth, with the line that the bound is from."""
    measured = _milliseconds(found, phase)
    points = [Point(layers, ms, tip=f"{name}, {layers} layers: {short(ms)}") for name, layers, ms in measured]
    series = [
        Series("teacher at several depths", tuple(points[:-1]), style=0, is_line=False),
        Series("student", (points[-1],), style=1, is_line=False),
    ]
    fit = found.layer_time(phase)
    if fit is not None:
        line = (Point(n, 1000 * fit.seconds(n)) for n in (0, found.teacher_layers))
        series.append(Series("t0 + L t1", tuple(line), style=5))
    return Chart(f"depth-{phase}", f"Time of one {phase} forward by depth", "layers", "ms", tuple(series))


def _milliseconds(found: Speed, phase: SpeedPhase) -> list[tuple[str, int, float]]:
    """Median time of one forward: the teacher cut to several depths, the teacher, the student."""
    n_tokens = found.batch_size * (found.prompt_length if phase == "prefill" else 1)
    measured = [("teacher cut", one.layers, one.rates) for one in found.depths]
    measured += [("teacher", found.teacher_layers, found.teacher), ("student", found.student_layers, found.student)]
    return [(name, layers, 1000 * n_tokens / statistics.median(rates.of(phase))) for name, layers, rates in measured]


def _times(found: Speed) -> Table:
    first, second = (_milliseconds(found, phase) for phase in PHASES)
    rows = [(name, str(layers), ms, other[2]) for (name, layers, ms), other in zip(first, second, strict=True)]
    fits = [found.layer_time(phase) for phase in PHASES]
    rows.append(("t0: without layers", "0", *(fit and 1000 * fit.around for fit in fits)))  # type: ignore[arg-type]
    rows.append(("t1: one layer", "1", *(fit and 1000 * fit.per_layer for fit in fits)))  # type: ignore[arg-type]
    columns = (Column("model"), *numbers("layers"), *numbers(*PHASES, form=short))
    return Table("Milliseconds of one forward", columns, tuple(rows))


def _rounds(found: Speed) -> Table:
    rows = []
    for phase in PHASES:
        both = zip(found.teacher.of(phase), found.student.of(phase), strict=True)
        rows += [(f"{phase}, round {r}", a, b, f"{b / a:.3f}") for r, (a, b) in enumerate(both, start=1)]
    columns = (Column("round"), *numbers("teacher", "student", form=tenths), *numbers("ratio"))
    return Table("Tokens per second, round by round", columns, tuple(rows), is_long=True)
