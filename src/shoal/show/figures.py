"""An evaluation for people: every figure as a line of text, for the terminal and for the model card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.evaluate.evaluation import Evaluation, Measured
from shoal.evaluate.generate import Generation
from shoal.evaluate.positions import ByPosition
from shoal.evaluate.speed import Speed, SpeedPhase, median_iqr
from shoal.words.numbers import count, in_bytes, number

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class FigureRow:
    """One line, ready to print; ``change`` is student against teacher."""

    label: str
    teacher: str
    student: str
    change: str = ""


def rows(evaluation: Evaluation) -> list[FigureRow]:
    """Every figure as a line of text."""
    ours, theirs, quality = evaluation.teacher, evaluation.student, evaluation.quality
    a, b = ours.cost, theirs.cost
    lines = [
        FigureRow("layers", str(a.layers), str(b.layers), _share(b.layers, a.layers)),
        FigureRow("parameters", count(a.parameters), count(b.parameters), _share(b.parameters, a.parameters)),
        FigureRow("weights", in_bytes(a.weight_bytes), in_bytes(b.weight_bytes), _share(b.weight_bytes, a.weight_bytes)),
    ]
    if a.file_bytes and b.file_bytes:
        lines.append(
            FigureRow("weight files", in_bytes(a.file_bytes), in_bytes(b.file_bytes), _share(b.file_bytes, a.file_bytes))
        )
    if a.macs_per_token is not None and b.macs_per_token is not None:
        change = _share(b.macs_per_token, a.macs_per_token)
        lines.append(
            FigureRow(f"MACs per token at {a.context} tokens", count(a.macs_per_token), count(b.macs_per_token), change)
        )
    kv = (a.kv_bytes_per_token, b.kv_bytes_per_token)
    ppl = (ours.perplexity.value, theirs.perplexity.value)
    stderr = "" if math.isnan(quality.kl_stderr) else f" ± {quality.kl_stderr:.2g}"
    lines += [
        FigureRow("KV cache per token", in_bytes(kv[0]), in_bytes(kv[1]), _share(kv[1], kv[0])),
        FigureRow("perplexity", number(ppl[0]), number(ppl[1]), f"x {number(ppl[1] / ppl[0])}"),
        FigureRow("KL to the teacher, nats per token", "0", f"{number(quality.kl)}{stderr}"),
        FigureRow("top-1 agreement with the teacher", "100 %", f"{100 * quality.agreement:.1f} %"),
    ]
    if evaluation.by_position is not None:
        share = f"{100 * evaluation.by_position.acceptance:.1f} %"
        lines.append(FigureRow("speculative acceptance, sum of min(p, q)", "100 %", share))
    if evaluation.plain is not None:
        lines.append(FigureRow("the same without repair: KL", "0", number(evaluation.plain.kl)))
        lines.append(FigureRow("the same without repair: agreement", "100 %", f"{100 * evaluation.plain.agreement:.1f} %"))
    return lines + (_speed_rows(evaluation.speed) if evaluation.speed else [])


def _speed_rows(speed: Speed) -> list[FigureRow]:
    work = f"batch {speed.batch_size}, {speed.dtype}, {speed.device}"
    lines = []
    for verb, n in (("prefill", speed.prompt_length), ("decode", speed.new_tokens)):
        phase: SpeedPhase = "prefill" if verb == "prefill" else "decode"
        ours, theirs = (_spread(getattr(one, verb)) for one in (speed.teacher, speed.student))
        ratio = speed.ratio(phase)
        label = f"{verb} tokens/s, median ± IQR ({n} tokens, {work})"
        change = f"x {ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f}), bound {speed.bound(phase):.2f}"
        lines.append(FigureRow(label, ours, theirs, change))
    first = [1000 * speed.first_token_seconds(one) for one in (speed.teacher, speed.student)]
    lines.append(FigureRow("time to first token, ms", number(first[0]), number(first[1]), _share(first[1], first[0])))
    if speed.teacher.peak_bytes and speed.student.peak_bytes:
        a, b = speed.teacher.peak_bytes, speed.student.peak_bytes
        lines.append(FigureRow("peak memory of prefill and one step", in_bytes(a), in_bytes(b), _share(b, a)))
    return lines


def table(evaluation: Evaluation) -> Table:
    """The figures as a table for the terminal."""
    from rich.table import Table

    title = f"Teacher and student on {evaluation.provenance.data}, {evaluation.quality.n_tokens:,} tokens"
    found = Table("", "teacher", "student", "change", title=title)
    for column in found.columns[1:]:
        column.justify = "right"
    for row in rows(evaluation):
        found.add_row(row.label, row.teacher, row.student, row.change)
    return found


def position_table(found: ByPosition) -> Table:
    """KL, acceptance and agreement by position."""
    from rich.table import Table

    shown = Table("position", "tokens", "KL", "acceptance", "top-1 agreement", title="Student against teacher by position")
    for column in shown.columns[1:]:
        column.justify = "right"
    for one in found.octaves:
        place = str(one.start) if one.stop == one.start + 1 else f"{one.start}..{one.stop - 1}"
        shares = (f"{100 * share:.1f} %" for share in (one.acceptance, one.agreement))
        shown.add_row(place, f"{one.n_tokens:,}", number(one.kl), *shares)
    return shown


def figures_table(measured: Measured) -> Table:
    """The figures of one model for the terminal."""
    from rich.table import Table

    cost, found = measured.model.cost, measured.model.perplexity
    lines = [("layers", str(cost.layers)), ("parameters", count(cost.parameters)), ("weights", in_bytes(cost.weight_bytes))]
    if cost.macs_per_token is not None:
        lines.append((f"MACs per token at {cost.context} tokens", count(cost.macs_per_token)))
    lines += [
        ("KV cache per token", in_bytes(cost.kv_bytes_per_token)),
        (f"perplexity: {found.how}", number(found.value)),
    ]
    shown = Table("", "value", title=f"{measured.model.name} on {measured.provenance.data}")
    shown.columns[1].justify = "right"
    for label, value in lines:
        shown.add_row(label, value)
    return shown


def generation_table(generated: Sequence[Generation]) -> Table:
    """Prompts and both continuations, side by side."""
    from rich.table import Table
    from rich.text import Text

    found = Table("prompt", "teacher", "student", "equal tokens", title="Greedy generations", show_lines=True)
    for one in generated:  # Text: what a model writes is not markup
        found.add_row(Text(one.prompt), Text(one.teacher), Text(one.student), f"{one.n_agreed} of {one.n_tokens}")
    return found


def _share(student: float, teacher: float) -> str:
    return "" if not teacher else f"{100 * (student / teacher - 1):+.1f} %"


def _spread(values: Sequence[float]) -> str:
    """Median and interquartile range."""
    median, iqr = median_iqr(values)
    return f"{number(median)} ± {number(iqr)}"
