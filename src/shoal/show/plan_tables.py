"""What a plan rests on, as tables: the best spans of a scan, the candidates that were compared, the refitted layers."""

from collections.abc import Sequence

import numpy as np

from shoal.edits.plan import Candidate, Plan
from shoal.fit.fit_result import FitResult, explained, what
from shoal.measure.scan import Scan
from shoal.select.verdict import kl_said, verdict
from shoal.show.table import Column, Table, numbers
from shoal.words.numbers import in_bytes, number, tenths, with_error
from shoal.words.structure import units_off, units_said
from shoal.words.types import Span, SpanTable

PAPERS = ("cosine/every", "angular/last", "cosine/rest", "angular/rest", "relative_magnitude/rest")
"""The published pairs (LLM-Streamline, UIDL) and the same without sinks."""


def best_span(table: SpanTable, n: int) -> Span:
    """The most redundant span of ``n`` layers; the deepest of equals, as the selectors have it.

    Raises:
        ValueError: no span of that length, or no value for any.
    """
    if not 1 <= n <= table.n_layers:
        raise ValueError(f"n={n} needs 1..{table.n_layers} for this {table.n_layers}-layer model")
    values = np.diagonal(table.values, offset=n)[
        ::-1
    ]  # The deepest span comes first, because arg-max and arg-min take the first of equals.
    if np.isnan(values).all():
        raise ValueError(f"table {table.name!r} has no value for spans of {n} layers: no sample had such tokens")
    place = int(np.nanargmax(values) if table.higher_is_more_redundant else np.nanargmin(values))
    start = len(values) - 1 - place
    return Span(start, start + n)


def best_spans(scan: Scan, *, names: Sequence[str] = PAPERS, lengths: Sequence[int] | None = None) -> Table:
    """One row per number of layers n, one column per score: the best span and its value.

    Args:
        names: tables to show; those the scan does not have are left out.
        lengths: numbers of layers; every one but all layers if not given.
    """
    tables = [scan.tables[name] for name in names if name in scan.tables]
    columns = [f"{one.name} {one.unit}, {'max' if one.higher_is_more_redundant else 'min'}" for one in tables]
    lengths = range(1, max(2, scan.n_layers)) if lengths is None else lengths
    return Table(
        f"Most redundant span of n layers ({scan.n_layers} layers, {scan.provenance.n_samples} samples)",
        (Column("n"), *numbers(*columns)),
        tuple((str(n), *(_best(one, n) for one in tables)) for n in lengths),
        notes=("start..last (0-based, inclusive)  value ± standard error over samples",),
        is_long=True,
    )


def telling_lengths(longest: int, *, most: int = 10) -> list[int]:
    """At most ``most`` numbers of layers up to ``longest``, evenly spread, the smallest and the largest among them."""
    return sorted({round(1 + (longest - 1) * k / (most - 1)) for k in range(most)})


def _best(table: SpanTable, n: int) -> str | None:
    if np.isnan(np.diagonal(table.values, offset=n)).all():
        return None
    span = best_span(table, n)
    layers = f"{span.start}..{span.stop - 1}" if n > 1 else f"{span.start}"
    return f"{layers}: {with_error(table[span], float(table.stderr[span.start, span.stop]))}"


def candidates(found: Sequence[Candidate], *, n_layers: int) -> Table:
    """What was compared before the choice, best first; the note says who won, by how much, and against whom."""
    repaired = any(one.kl_plain is not None for one in found)
    of_repair = ("KL before repair", "repaired on tokens") if repaired else ()
    columns = (
        Column("layers out"), *numbers("KL, nats per token", *of_repair, "perplexity"),
        Column("proposed by (score)"),
    )  # fmt: skip
    rows = []
    for one in found:
        by = "; ".join(f"{name} ({number(one.scores[name])})" if name in one.scores else name for name in one.proposed_by)
        before = (one.kl_plain, one.repaired_on) if repaired else ()
        rows.append((str(one), kl_said(one), *before, one.perplexity, by))
    on_less = len({one.repaired_on for one in found}) > 1
    on_what = "each repaired" + (", those behind on less text" if on_less else "")
    what_was_compared = on_what if repaired else "as plain cuts, before any repair"
    note = (f"Chosen: {verdict(found, n_layers=n_layers)}.",) if found else ()
    return Table(f"Candidates, {what_was_compared}, best first", columns, tuple(rows), notes=note, strong=0)


SHARE_WORDS = {
    "layers": "layers",
    "sublayers": "sublayers",
    "parameters": "parameters",
    "kv": "KV cache",
    "macs": "multiply-accumulates",
    "latency": "measured time",
    "bytes": "weights",
    "active": "active parameters",
}


def removed_said(plan: Plan) -> str:
    """What of everything a plan removes, side by side; empty where it was not counted."""
    removed = dict(plan.removed)
    if plan.before.active in (None, plan.before.parameters):
        removed.pop("active", None)  # Without experts a token meets all of the parameters.
    return ", ".join(f"{share:.1%} of {SHARE_WORDS.get(name, name)}" for name, share in removed.items())


def sizes_said(plan: Plan) -> str:
    """Parameters, bytes of weights and, of a mixture of experts, active parameters, before and after."""
    before, after = plan.before, plan.after
    said = [f"{before.parameters:,} -> {after.parameters:,} parameters"]
    if before.active is not None and after.active is not None and before.active != before.parameters:
        said.append(f"{before.active:,} -> {after.active:,} active")
    if before.bytes is not None and after.bytes is not None:
        said.append(f"{in_bytes(before.bytes)} -> {in_bytes(after.bytes)} of weights")
    return ", ".join(said)


def zeroed_said(plan: Plan) -> str:
    """What becomes of sublayers that are off in a stock checkpoint; empty where a plan has none."""
    off = sorted(units_off(plan.structure))
    if not off:
        return ""
    return (
        f"A stock checkpoint keeps {units_said(off)} with an output map of zeros: transformers still stores and runs them, "
        "with their part of the cache. `shoal export blocks` writes formats that leave them out."
    )


def repair(found: FitResult) -> Table:
    """The refitted layers, front to back, and what each gained on samples that no fit has seen."""
    columns = (
        Column("layer"), Column("fitted to boundary"), Column("refitted"),
        *numbers("R² of the change, folds left out", "ridge"),
        *numbers("held-out error before", "after"), *numbers("seconds", form=tenths),
    )  # fmt: skip
    rows = []
    for one in found.layers:
        kept = ", ".join([what(fit) for fit in one.standing]) or ("nothing: no gain" if one.maps else "nothing")
        solves = (", ".join(map(explained, one.maps)), ", ".join(f"{fit.ridge:.0e}" for fit in one.maps))
        rows.append((str(one.layer), str(one.target), kept, *solves, one.error_before, one.error_after, one.seconds))
    return Table("Refitted layers, front to back", columns, tuple(rows), notes=found.skipped, is_long=True)
