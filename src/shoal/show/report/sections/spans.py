"""Which spans change the stream least: the heat map of the scan, and the best span of every length."""

from __future__ import annotations

import math

import numpy as np

from shoal.measure.scan import Scan
from shoal.show.best_spans import PAPERS, best_span
from shoal.show.heatmap import title_of
from shoal.show.html import Column, Html, details, table, tag
from shoal.show.report.heat import heat
from shoal.show.report.run_data import RunData, Section
from shoal.words.types import SpanTable, spans_of


def spans(data: RunData) -> Section | None:
    if data.scan is None:
        return None
    tables = _in_order(data.scan, data.facts.by)
    removed = spans_of(data.plan.removed_layers) if data.plan else ()
    source = data.scan.provenance
    text = (
        f"Every span of layers, compared at both ends on {source.n_tokens:,} tokens of {source.n_samples} samples of "
        f"{source.data}. Colours run from the least to the greatest change within a row: a row compares where to cut, "
        "not how much."
    )
    parts = (
        tag("p", text),
        heat(tables, removed),
        best_spans(data.scan, longest=data.scan.n_layers - 1),
        details("Every value of the map as a table", values(tables[0])),
    )
    return Section("spans", "Which spans change the stream least", "scan.json, scan.safetensors", parts)


def best_spans(scan: Scan, *, longest: int) -> Html:
    """One row per number of layers, one column per published score: the best span and its value."""
    tables = [scan.tables[name] for name in PAPERS if name in scan.tables]
    columns = [Column("n"), *(Column(f"{one.name}, {'max' if one.higher_is_more_redundant else 'min'}") for one in tables)]
    rows = [[str(n), *(_best(one, n) for one in tables)] for n in range(1, max(2, longest + 1))]
    return table(
        "Most redundant span of n layers (0-based, inclusive), value ± standard error over samples", columns, rows, is_long=True
    )


def values(one: SpanTable) -> Html:
    """The table itself: n down, first layer across."""
    n_layers = one.n_layers
    columns = [Column("n"), *(Column(f"l = {start}", is_number=True) for start in range(n_layers))]
    rows = []
    for n in range(1, n_layers + 1):
        found = [f"{value:.4g}" if math.isfinite(value) else "" for value in np.diagonal(one.values, offset=n)]
        rows.append([str(n), *found, *[""] * (n - 1)])
    return table(f"{title_of(one)}: n layers from layer l", columns, rows)


def _in_order(scan: Scan, by: str) -> list[SpanTable]:
    """The table in use first, then the published ones, then the rest; tables without any value are left out."""
    names = dict.fromkeys([by, *PAPERS, *scan.tables])
    found = [scan.tables[name] for name in names if name in scan.tables]
    return [one for one in found if not np.isnan(one.values).all()] or found


def _best(one: SpanTable, n: int) -> str:
    if np.isnan(np.diagonal(one.values, offset=n)).all():
        return ""
    span = best_span(one, n)
    error = float(one.stderr[span.start, span.stop])
    layers = f"{span.start}..{span.stop - 1}" if n > 1 else f"{span.start}"
    return f"{layers}: {one[span]:.4g}" + ("" if math.isnan(error) else f" ± {error:.1g}")
