"""The figures of an evaluation and of a comparison as tables: the same value for the terminal, the page and the card."""

from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

from shoal.evaluate.comparison import Compared, Comparison
from shoal.evaluate.draft import best_draft
from shoal.evaluate.evaluation import Evaluation, Measured
from shoal.evaluate.generate import Generation
from shoal.evaluate.positions import ByPosition, Positions
from shoal.evaluate.speed import Speed, SpeedPhase, median_iqr
from shoal.evaluate.tasks.disagreement import disagreement, kept_shares
from shoal.evaluate.whole import WholeText
from shoal.show.table import Column, Table, numbers
from shoal.words.numbers import change, count, in_bytes, number, percent, percents, ratio, times, whole, with_error

FigureRow = tuple[str, ...]

PHASES: tuple[SpeedPhase, ...] = ("prefill", "decode")


def figures(found: Evaluation) -> Table:
    """Teacher and student side by side: every figure of the evaluation."""
    caption = f"Teacher and student on {found.provenance.text_said}, {found.quality.n_tokens:,} tokens"
    columns = (Column(""), *numbers("teacher", "student", "change"))
    return Table(caption, columns, tuple(_figures(found)), notes=() if found.speed is None else (speed_note(found.speed),))


def figures_note(found: Evaluation) -> str:
    """What the figures of quality rest on."""
    return (
        f"Perplexity: {found.student.perplexity.how}. KL and agreement: {found.quality.n_tokens:,} tokens of "
        f"{found.quality.n_samples} samples; ± is the standard error over samples."
    )


def speed_note(found: Speed) -> str:
    """What the figures of speed rest on."""
    rounds = len(found.teacher.decode)
    return (
        f"Speed: medians ± interquartile range of {rounds} rounds in turns; prompts of {found.prompt_length} tokens, "
        f"{found.new_tokens} new ones, batch {found.batch_size}, {found.dtype}, {found.device}, CPU threads: "
        f"{found.n_threads}. The bound is what removing layers can give there, from the teacher's own time per layer."
    )


def _figures(found: Evaluation) -> list[FigureRow]:
    ours, theirs, quality = found.teacher, found.student, found.quality
    a, b = ours.cost, theirs.cost
    rows = [
        _size("layers", a.layers, b.layers, form=str),
        _size("parameters", a.parameters, b.parameters, form=count),
        _size("weights", a.weight_bytes, b.weight_bytes, form=in_bytes),
    ]
    if a.file_bytes and b.file_bytes:
        rows.append(_size("weight files", a.file_bytes, b.file_bytes, form=in_bytes))
    if a.macs_per_token is not None and b.macs_per_token is not None:
        rows.append(_size(f"MACs per token at {a.context} tokens", a.macs_per_token, b.macs_per_token, form=count))
    before, after = ours.perplexity.value, theirs.perplexity.value
    rows += [
        _size("KV cache per token", a.kv_bytes_per_token, b.kv_bytes_per_token, form=in_bytes),
        ("perplexity", number(before), number(after), f"x {number(after / before)}"),
        *_as_papers(found.whole),
        ("KL to the teacher, nats per token", "0", with_error(quality.kl, quality.kl_stderr), ""),
        ("top-1 agreement with the teacher", "100 %", f"{percent(quality.agreement)} %", ""),
    ]
    if found.by_position is not None:
        rows.append(("speculative acceptance", "100 %", f"{percent(found.by_position.acceptance)} %", ""))
    draft = best_draft(quality.agreement, b.parameters / a.parameters)
    drafted = f"{draft.n_drafted} token{'' if draft.n_drafted == 1 else 's'} a time"
    rows.append(("as a greedy draft of the teacher, computed", "", drafted, times(draft.speed)))
    if found.plain is not None:
        rows.append(("the same without repair: KL", "0", number(found.plain.kl), ""))
        rows.append(("the same without repair: agreement", "100 %", f"{percent(found.plain.agreement)} %", ""))
    return rows + (_speed(found.speed) if found.speed else [])


def _as_papers(both: tuple[WholeText, WholeText] | None) -> list[FigureRow]:
    if both is None:
        return []
    before, after = (one.blocks.value for one in both)
    return [(f"perplexity as papers state it: {both[0].how}", number(before), number(after), f"x {number(after / before)}")]


def _size(label: str, before: float, after: float, *, form: Callable[[Any], str]) -> FigureRow:
    return label, form(before), form(after), change(after, before)


def _speed(speed: Speed) -> list[FigureRow]:
    rows = []
    for phase in PHASES:
        both = [with_error(*median_iqr(one.of(phase))) for one in (speed.teacher, speed.student)]
        rows.append((f"{phase}, tokens/s", *both, f"x {ratio(speed.ratio(phase))}"))
        rows.append((f"bound of {phase}", "", "", times(speed.bound(phase))))
    first = [1000 * speed.first_token_seconds(one) for one in (speed.teacher, speed.student)]
    rows.append(_size("time to first token, ms", *first, form=number))
    if speed.teacher.peak_bytes and speed.student.peak_bytes:
        peaks = (speed.teacher.peak_bytes, speed.student.peak_bytes)
        rows.append(_size("peak memory of prefill and one step", *peaks, form=in_bytes))
    return rows


def positions(found: ByPosition) -> Table:
    """KL, acceptance and agreement by position, in octaves."""
    columns = (
        Column("position"), *numbers("tokens", form=whole), *numbers("KL"),
        *numbers("speculative acceptance, %", "top-1 agreement, %", form=percent),
    )  # fmt: skip
    rows = tuple((octave(one), one.n_tokens, one.kl, one.acceptance, one.agreement) for one in found.octaves)
    return Table("Student against teacher by position", columns, rows)


def octave(one: Positions) -> str:
    """``4..7``."""
    return str(one.start) if one.stop == one.start + 1 else f"{one.start}..{one.stop - 1}"


def figures_alone(measured: Measured) -> Table:
    """The figures of one model."""
    cost, found = measured.model.cost, measured.model.perplexity
    rows = [("layers", str(cost.layers)), ("parameters", count(cost.parameters)), ("weights", in_bytes(cost.weight_bytes))]
    if cost.macs_per_token is not None:
        rows.append((f"MACs per token at {cost.context} tokens", count(cost.macs_per_token)))
    rows.append(("KV cache per token", in_bytes(cost.kv_bytes_per_token)))
    rows.append((f"perplexity: {found.how}", number(found.value)))
    if measured.whole is not None:
        rows.append((f"perplexity as papers state it: {measured.whole.how}", number(measured.whole.blocks.value)))
    return Table(f"{measured.model.name} on {measured.provenance.text_said}", (Column(""), *numbers("value")), tuple(rows))


def generations(found: Sequence[Generation]) -> Table:
    """Prompts and both continuations, side by side."""
    columns = (Column("prompt"), Column("teacher"), Column("student"), *numbers("equal tokens"))
    rows = tuple((one.prompt, one.teacher, one.student, f"{one.n_agreed} of {one.n_tokens}") for one in found)
    chats = "Greedy answers through the chat template" if any(one.is_chat for one in found) else "Greedy generations"
    return Table(chats, columns, rows, breaks=tuple(range(1, len(rows))))


# -- any number of models ------------------------------------------------------------------------------------------------


def comparison(found: Comparison) -> Table:
    """All figures of all models, one column per model; against the first one where that is what they are."""
    names = labels([one.figures.name for one in found.models])
    title = f"{len(names)} models on {found.provenance.text_said}, {found.n_bytes:,} bytes"
    return Table(title, (Column(""), *numbers(*names)), tuple(_compared(found)), notes=tuple(_notes(found, names)))


def labels(names: Sequence[str]) -> list[str]:
    """Short names: the last part of a path, or as it was given where that is not enough; equal ones are numbered."""
    brief = [PurePath(name).name or name for name in names]
    chosen = [one if brief.count(one) == 1 else name for one, name in zip(brief, names, strict=True)]
    return [one if chosen.count(one) == 1 else f"{one} ({chosen[: n + 1].count(one)})" for n, one in enumerate(chosen)]


def _compared(found: Comparison) -> list[FigureRow]:
    def row(label: str, read: Callable[[Compared], str], *, first: str | None = None) -> FigureRow:
        cells = [read(one) for one in found.models]
        return (label, *cells) if first is None else (label, first, *cells[1:])

    rows = [
        row("layers", lambda one: str(one.figures.cost.layers)),
        row("parameters", lambda one: count(one.figures.cost.parameters)),
        row("weights", lambda one: in_bytes(one.figures.cost.weight_bytes)),
        row("KV cache per token", lambda one: in_bytes(one.figures.cost.kv_bytes_per_token)),
        row("perplexity per token", lambda one: number(one.figures.perplexity.value)),
        row("bits per byte", lambda one: f"{one.bits_per_byte:.4f}"),
        row("KL to the first, nats per token", lambda one: number(one.quality.kl) if one.quality else "", first="0"),
        row(
            "speculative acceptance, %", lambda one: percent(one.by_position.acceptance) if one.by_position else "", first="100"
        ),
        row("top-1 agreement, %", lambda one: percent(one.quality.agreement) if one.quality else "", first="100"),
    ]
    for index, task in enumerate(found.models[0].tasks):
        against = [one.against_first.tasks[index] for one in found.models[1:] if one.against_first is not None]
        accuracies = [percents(one.tasks[index].accuracy) for one in found.models]
        rows.append((f"{task.name}, {task.facts.metric}, %", *accuracies))
        stable = [percents(one.agreement.stability) for one in against]
        rows.append((f"  stability against the first, {against[0].agreement.variant}, %", "100", *stable))
    kept = [one.against_first.retained if one.against_first else None for one in found.models[1:]]
    if any(kept):
        rows.append(("retained, average of tasks, %", "100", *(percents(one) if one else "" for one in kept)))
    return rows


def _notes(found: Comparison, names: Sequence[str]) -> list[str]:
    """What the table cannot say: other vocabularies, tasks at chance, contexts cut, measures that disagree."""
    first, both = found.models[0], list(zip(names, found.models, strict=True))
    notes = [
        f"{name}: no KL, acceptance and agreement, because {one.why_not}; its perplexity is per token of its own, so compare "
        "bits per byte"
        for name, one in both
        if one.why_not
    ]
    for task in first.tasks:
        if task.at_chance:
            notes.append(f"{task.facts.task}: {names[0]} is at chance ({percent(task.facts.chance)} %); not in the averages")
    for name, one in both:
        notes += [f"{task.facts.task}, {name}: {task.facts.cut_said}" for task in one.tasks if task.facts.n_truncated]
    for name, one in both[1:]:
        same = {} if one.why_not else {"teacher": first.figures.perplexity, "student": one.figures.perplexity}
        warning = disagreement(kept_shares(one.against_first, **same)) if one.against_first else None
        notes += [f"{name}: {warning}"] if warning else []
    return notes
