"""Iterative selection: cut a few layers, measure the student anew, cut again.

Scores of the later rounds come from the student's own stream, so they see what earlier cuts did to it. All indices are the
teacher's: in a scan of the student a removed layer is the identity, and a span stands for the layers of it that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from shoal.engine.passes import run_pass
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.engine.workers import ALONE, Workers
from shoal.measure.gram import GramObserver
from shoal.select.request import Picked, Selector, Tables, Wanted
from shoal.words.types import Batch, SpanTable, Unit

Rescan = Callable[[Student], Tables]


def in_rounds(selector: Selector, tables: Tables, wanted: Wanted, *, n_rounds: int, rescan: Rescan) -> Picked:
    """Remove ``wanted.n`` layers in ``n_rounds`` steps of nearly equal size, larger ones first.

    Args:
        tables: scores of the whole model, for the first round.
        rescan: scores of a student, in the teacher's indices (tables of the teacher's depth).
    Raises:
        ValueError: more rounds than layers, or a round that finds nothing to remove.
    """
    if not 1 <= n_rounds <= wanted.n:
        raise ValueError(f"rounds={n_rounds} needs 1..{wanted.n}: every round removes at least one of {wanted.n} layers")
    remaining = list(range(wanted.n_layers))
    for n_now in shares(wanted.n, n_rounds):
        gone = sorted(set(range(wanted.n_layers)) - set(remaining))
        if gone:
            tables = rescan(Student(removed=frozenset(Unit("layer", layer) for layer in gone)))
        here = replace(wanted.among(remaining), n=n_now)
        picked = next(selector.pick({name: compact(table, remaining) for name, table in tables.items()}, here), None)
        if picked is None:
            raise ValueError(f"after {len(gone)} layers no {n_now} more can be removed; protect fewer layers or remove fewer")
        out = {remaining[layer] for layer in picked.layers}
        remaining = [layer for layer in remaining if layer not in out]
    return Picked(tuple(sorted(set(range(wanted.n_layers)) - set(remaining))))


def rescanner(view: DecoderView, batches: Sequence[Batch], *, workers: Workers = ALONE) -> Rescan:
    """Scans students of a view on fixed batches, shared by the workers, with every pairwise criterion."""

    def rescan(student: Student) -> Tables:
        gram = GramObserver(view.n_layers)
        run_pass(view, batches, observers=[gram], observed=student, workers=workers)
        return {table.name: table for table in gram.tables()}

    return rescan


def shares(n: int, n_rounds: int) -> list[int]:
    """``n`` split into ``n_rounds`` whole parts that differ by at most one, larger ones first."""
    least, more = divmod(n, n_rounds)
    return [least + 1] * more + [least] * (n_rounds - more)


def compact(table: SpanTable, remaining: Sequence[int]) -> SpanTable:
    """The table of a model that consists of the ``remaining`` layers only, numbered anew from 0."""
    boundaries = [*remaining, table.n_layers]
    grid = np.ix_(boundaries, boundaries)
    return replace(table, values=table.values[grid], stderr=table.stderr[grid], parts=None)
