"""The table of selectors. A new one is a file and a line here."""

from __future__ import annotations

from shoal.select.deepest import deepest_layers
from shoal.select.disjoint import disjoint_spans
from shoal.select.lowest import lowest_layers
from shoal.select.request import Selector
from shoal.select.span import span_by
from shoal.words.records import nearest

SELECTORS: dict[str, Selector] = {
    "span": Selector(span_by, "best contiguous span by one score", is_contiguous=True, paper="LLM-Streamline, UIDL"),
    "lowest": Selector(lowest_layers, "the layers of lowest score, each on its own", paper="ShortGPT"),
    "deepest": Selector(
        deepest_layers,
        "the deepest layers but the last, nothing is measured",
        is_contiguous=True,
        reads=frozenset(),
        paper="UIDL's simple rule",
    ),
    "disjoint": Selector(disjoint_spans, "best set of up to k separate spans, by the sum of their scores"),
}


def selector_named(name: str) -> Selector:
    """Raises ValueError: no such selector."""
    if name not in SELECTORS:
        raise ValueError(f"no selector {name!r}; {nearest(name, SELECTORS)}")
    return SELECTORS[name]
