"""What a selector is asked, and what it answers.

Selectors yield choices from best to worst, lazily, so that the guard can take runners-up. Ties are the same everywhere: of
equal costs the set of deeper layers goes first (compared layer by layer from the shallowest one).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from shoal.select.model_size import NOTHING, PutBack
from shoal.words.records import nearest
from shoal.words.types import Span, SpanTable

Tables = Mapping[str, SpanTable]
Refuse = Callable[[Sequence[int]], str | None]
"""Given the layers that would be kept: why this family cannot lose the others, or None when it can."""

PATCHED = "patch_error/rest"
"""Error after the best patch of the stream; measured of contiguous spans of the wanted length only (fit/span_error.py)."""

# Scores that are highest where a span changes nothing, with that value; what is missing from it can be summed over spans.
NO_CHANGE = {"cosine": 1.0, "cka": 1.0}


def nothing_refused(kept: Sequence[int]) -> str | None:
    """The ``Refuse`` of a family without constraints."""
    return None


@dataclass(frozen=True)
class Picked:
    """Layers to remove (sorted) and the score they were picked by; None where nothing was measured."""

    layers: tuple[int, ...]
    score: float | None = None


@dataclass(frozen=True)
class Wanted:
    """What to look for.

    Attributes:
        n_layers: layers of the model.
        n: layers to remove.
        protected: layers that stay.
        by: name of the table, ``criterion/tokens``.
        max_spans: most separate spans, for the selector that looks for several.
        put_back: the replacement that will take the place of what is removed.
        refuse: the family's own constraints.
    """

    n_layers: int
    n: int
    protected: frozenset[int] = frozenset()
    by: str = "cosine/rest"
    max_spans: int = 3
    put_back: PutBack = NOTHING
    refuse: Refuse = nothing_refused

    @property
    def removable(self) -> tuple[int, ...]:
        """Layers that may go. The first ones may not where a replacement starts as a copy of them or is attached."""
        return tuple(layer for layer in range(self.put_back.n_before, self.n_layers) if layer not in self.protected)

    def reason_against(self, layers: Sequence[int]) -> str | None:
        """Why these layers cannot go, or None."""
        stay = sorted(set(layers) - set(self.removable))
        if stay:
            return f"layer {stay[0]} is protected"
        try:
            self.put_back.replaced(layers)
        except ValueError as reason:
            return str(reason)
        gone = set(layers)
        kept = [layer for layer in range(self.n_layers) if layer not in gone]
        return self.refuse(kept) if kept else "nothing would be left"

    def table(self, tables: Tables) -> SpanTable:
        """Raises ValueError: no such table, or it belongs to another depth."""
        if self.by not in tables:
            raise ValueError(f"no score {self.by!r} in the scan; {nearest(self.by, tables)}")
        table = tables[self.by]
        if table.n_layers != self.n_layers:
            raise ValueError(
                f"score {self.by!r} covers {table.n_layers} layers, the model has {self.n_layers}; scan this model"
            )
        return table

    def among(self, remaining: Sequence[int]) -> Wanted:
        """The same wish in a model of which only ``remaining`` layers are left, numbered anew from 0."""

        def refuse(kept: Sequence[int]) -> str | None:
            return self.refuse([remaining[layer] for layer in kept])

        protected = frozenset(i for i, layer in enumerate(remaining) if layer in self.protected)
        return replace(self, n_layers=len(remaining), protected=protected, refuse=refuse)


Pick = Callable[[Tables, Wanted], Iterator[Picked]]


@dataclass(frozen=True)
class Selector:
    """An entry of the table of selectors: how it picks, whether one span is all it can give, and what it does."""

    pick: Pick
    is_contiguous: bool
    about: str


def layer_costs(table: SpanTable) -> dict[int, float]:
    """Cost of every single layer that was scored: the n = 1 column, lower goes first."""
    costs = {layer: table.cost(Span(layer, layer + 1)) for layer in range(table.n_layers)}
    return {layer: cost for layer, cost in costs.items() if not np.isnan(cost)}


def change_costs(table: SpanTable) -> np.ndarray:
    """(L+1, L+1) costs that are 0 where a span changes nothing, so that they can be summed over any number of spans.

    Raises:
        ValueError: the score has no value that means "no change" (a dot product).
    """
    if not table.higher_is_more_redundant:
        return table.values
    if table.criterion not in NO_CHANGE:
        raise ValueError(
            f"costs of several spans cannot be summed by {table.name!r}: no value of it means 'no change'; "
            "choose cosine, angular, block_influence or relative_magnitude"
        )
    return NO_CHANGE[table.criterion] - table.values


def most_layers(selector: Selector, wanted: Wanted) -> int:
    """Most layers the selector could remove, the family's own constraints aside. At least one layer always stays."""
    free = set(wanted.removable)
    if not selector.is_contiguous:
        return min(len(free), wanted.n_layers - 1)
    longest = run = 0
    for layer in range(wanted.n_layers):
        run = run + 1 if layer in free else 0
        longest = max(longest, run)
    return min(longest, wanted.n_layers - 1)
