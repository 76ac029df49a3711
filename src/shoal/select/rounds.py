"""Iterative selection: cut a few layers, measure the student anew, cut again.

Scores of the later rounds come from the student's own stream, so they see what earlier cuts did to it. All indices are the
teacher's: in a scan of the student a removed layer is the identity, and a span stands for the layers of it that are left.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from shoal.edits.plan import Candidate
from shoal.engine.passes import run_pass
from shoal.engine.student import Student, student_without
from shoal.engine.view import DecoderView
from shoal.engine.workers import ALONE, Workers
from shoal.measure.gram import GramObserver
from shoal.select.request import Evidence, Refuse, Request, Selector, Tables
from shoal.words.progress import each_batch
from shoal.words.structure import Structure
from shoal.words.types import Batch, SpanTable

Rescan = Callable[[Student], Tables]


def in_rounds(selector: Selector, evidence: Evidence, request: Request, *, rescan: Rescan) -> Candidate:
    """Remove ``request.n`` layers in ``request.n_rounds`` steps of nearly equal size, larger ones first.

    Args:
        evidence: scores of the whole model, for the first round.
        rescan: scores of a student, in the teacher's indices (tables of the teacher's depth).
    Raises:
        ValueError: more rounds than layers, or a round that finds nothing to remove.
    """
    n, n_rounds = request.n, request.n_rounds
    if not 1 <= n_rounds <= n:
        raise ValueError(f"rounds={n_rounds} needs 1..{n}: every round removes at least one of {n} layers")
    remaining = list(range(request.n_layers))
    tables = evidence.tables
    for n_now in shares(n, n_rounds):
        gone = sorted(set(range(request.n_layers)) - set(remaining))
        if gone:
            tables = rescan(student_without(gone))
        here = replace(
            evidence,
            tables={name: compact(table, remaining) for name, table in tables.items()},
            refuse=_refuse_among(evidence.refuse, remaining),
        )
        found = next(selector.propose(here, replace(request.among(remaining), n=n_now)), None)
        if found is None:
            raise ValueError(f"after {len(gone)} layers no {n_now} more can be removed; protect fewer layers or remove fewer")
        out = {remaining[layer] for layer in found.layers}
        remaining = [layer for layer in remaining if layer not in out]
    return request.candidate(set(range(request.n_layers)) - set(remaining), by=f"{request.selector} in {n_rounds} rounds")


def _refuse_among(refuse: Refuse, remaining: Sequence[int]) -> Refuse:
    """A family's constraints in a model of which only ``remaining`` layers are left, numbered anew from 0."""

    def refuse_there(structure: Structure) -> str | None:
        return refuse(tuple(replace(slot, like=remaining[slot.like]) for slot in structure))

    return refuse_there


def rescanner(view: DecoderView, batches: Sequence[Batch], *, workers: Workers = ALONE) -> Rescan:
    """Scans students of a view on fixed batches, shared by the workers, with every pairwise criterion."""

    def rescan(student: Student) -> Tables:
        gram = GramObserver(view.n_layers)
        after = each_batch("scan what is left", len(batches))
        run_pass(view, batches, observers=[gram], observed=student, workers=workers, after_batch=after)
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
