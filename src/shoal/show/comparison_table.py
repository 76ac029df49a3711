"""A comparison for people: one column per model, one row per figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from shoal.evaluate.comparison import Compared, Comparison
from shoal.evaluate.intervals import Interval
from shoal.evaluate.stability import Stability
from shoal.evaluate.tasks.benchmark import Benchmark
from shoal.evaluate.tasks.disagreement import disagreement, kept_shares
from shoal.words.numbers import count, in_bytes, number

if TYPE_CHECKING:
    from rich.table import Table


def comparison_table(found: Comparison) -> Table:
    """All figures of all models; against the first one where that is what they are."""
    from rich.table import Table

    title = f"{len(found.models)} models on {found.provenance.data}, {found.n_bytes:,} bytes"
    shown = Table("", *labels([one.figures.name for one in found.models]), title=title)
    for column in shown.columns[1:]:
        column.justify = "right"
    for label, cells in _rows(found):
        shown.add_row(label, *cells)
    return shown


def comparison_notes(found: Comparison) -> list[str]:
    """What the table cannot say: other vocabularies, tasks at chance, contexts cut, measures that disagree."""
    names = labels([one.figures.name for one in found.models])
    notes = [
        f"{name}: no KL, acceptance and agreement, because {one.why_not}; its perplexity is per token of its own, so compare "
        "bits per byte"
        for name, one in zip(names, found.models, strict=True)
        if one.why_not
    ]
    for task in found.models[0].tasks:
        if task.at_chance:
            notes.append(f"{task.task}: {names[0]} is at chance ({100 * task.chance:.1f} %); not in the averages")
    for name, one in zip(names, found.models, strict=True):
        notes += [
            f"{task.task}, {name}: {task.n_truncated} of {task.n_items} contexts cut from the left to fit the window"
            for task in one.tasks
            if task.n_truncated
        ]
    first = found.models[0].figures.perplexity
    for name, one in zip(names[1:], found.models[1:], strict=True):
        if one.against_first is not None:
            same = {} if one.why_not else {"teacher": first, "student": one.figures.perplexity}
            warning = disagreement(kept_shares(one.against_first, **same))
            notes += [f"{name}: {warning}"] if warning else []
    return notes


def labels(names: Sequence[str]) -> list[str]:
    """Short names: the last part of a path, or as it was given where that is not enough; equal ones are numbered."""
    short = [PurePath(name).name or name for name in names]
    chosen = [one if short.count(one) == 1 else name for one, name in zip(short, names, strict=True)]
    return [one if chosen.count(one) == 1 else f"{one} ({chosen[: n + 1].count(one)})" for n, one in enumerate(chosen)]


def _rows(found: Comparison) -> list[tuple[str, list[str]]]:
    def every(read: Callable[[Compared], str]) -> list[str]:
        return [read(one) for one in found.models]

    qualities, positions = ([getattr(one, name) for one in found.models[1:]] for name in ("quality", "by_position"))
    rows = [
        ("layers", every(lambda one: str(one.figures.cost.layers))),
        ("parameters", every(lambda one: count(one.figures.cost.parameters))),
        ("weights", every(lambda one: in_bytes(one.figures.cost.weight_bytes))),
        ("KV cache per token", every(lambda one: in_bytes(one.figures.cost.kv_bytes_per_token))),
        ("perplexity per token", every(lambda one: number(one.figures.perplexity.value))),
        ("bits per byte", every(lambda one: f"{one.bits_per_byte:.4f}")),
        ("KL to the first, nats per token", ["0", *(number(q.kl) if q else "" for q in qualities)]),
        ("speculative acceptance", ["100.0 %", *(_per_cent(p.acceptance) if p else "" for p in positions)]),
        ("top-1 agreement", ["100.0 %", *(_per_cent(q.agreement) if q else "" for q in qualities)]),
    ]
    for index, task in enumerate(found.models[0].tasks):
        mark = " *" if task.at_chance else ""
        rows.append((f"{task.task}{mark}, {task.metric}, %", [_interval(one.tasks[index].accuracy) for one in found.models]))
        stable = [_stable(one.against_first, index) for one in found.models[1:] if one.against_first is not None]
        label = f"  stability against the first, {stable[0].variant}, %"
        rows.append((label, ["100.0", *(_interval(one.stability) for one in stable)]))
    if any(one.against_first is not None and one.against_first.counted for one in found.models):
        rows.append(("retained, average of tasks, %", ["100.0", *(_retained(one) for one in found.models[1:])]))
    return rows


def _stable(against_first: Benchmark, index: int) -> Stability:
    task = against_first.tasks[index]
    return task.stability or task.answers


def _retained(one: Compared) -> str:
    return "" if one.against_first is None or one.against_first.retained is None else _interval(one.against_first.retained)


def _interval(found: Interval) -> str:
    return f"{100 * found.value:.1f} ({100 * found.low:.1f}..{100 * found.high:.1f})"


def _per_cent(share: float) -> str:
    return f"{100 * share:.1f} %"
