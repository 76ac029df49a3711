"""Which spans change the stream least: the heat map of the scan, and the best span of every length."""

import numpy as np

from shoal.measure.scan import Scan
from shoal.show.heat import Heat, title_of
from shoal.show.html import details, table, tag
from shoal.show.plan_tables import PAPERS, best_spans
from shoal.show.report.run_data import RunData, Section
from shoal.show.table import Column, Table, numbers
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
    every_value = details("Every value of the map as a table", table(values(tables[0])))
    parts = (tag("p", text), Heat(tuple(tables), tuple(removed)), best_spans(data.scan), every_value)
    return Section("spans", "Which spans change the stream least", "scan.json, scan.safetensors", parts)


def values(one: SpanTable) -> Table:
    """The table itself: n down, first layer across."""
    rows = []
    for n in range(1, one.n_layers + 1):
        found = [float(value) if np.isfinite(value) else None for value in np.diagonal(one.values, offset=n)]
        rows.append([str(n), *found, *[None] * (n - 1)])
    columns = (Column("n"), *numbers(*(f"l = {start}" for start in range(one.n_layers))))
    return Table(f"{title_of(one)}: n layers from layer l", columns, tuple(rows))


def _in_order(scan: Scan, by: str) -> list[SpanTable]:
    """The table in use first, then the published ones, then the rest; tables without any value are left out."""
    names = dict.fromkeys([by, *PAPERS, *scan.tables])
    found = [scan.tables[name] for name in names if name in scan.tables]
    return [one for one in found if not np.isnan(one.values).all()] or found
