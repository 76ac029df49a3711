"""What a selector is asked, what it may look at, and what it answers.

Selectors propose candidates from best to worst, lazily, so that the tournament can take runners-up. Ties are the same
everywhere: of equal costs the set of deeper layers goes first (compared layer by layer from the shallowest one).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from shoal.edits.drop import drops_of
from shoal.edits.plan import Candidate, structure_of
from shoal.edits.table import Edit
from shoal.select.amounts import Amounts
from shoal.select.merging.merge_config import MergeConfig
from shoal.select.model_size import NOTHING, PutBack
from shoal.select.search.quotas import Quotas, count
from shoal.words.records import nearest
from shoal.words.structure import Structure
from shoal.words.types import Span, SpanTable, Unit, UnitChoice, UnitTable, model_units

if TYPE_CHECKING:
    from shoal.measure.set_function import SetFunction
    from shoal.select.merging.row_trial import RowTrial

Tables = Mapping[str, SpanTable]
UnitTables = Mapping[str, UnitTable]
Refuse = Callable[[Structure], str | None]
"""Given what a student would be: why this family cannot be that, or None where it can."""

# Scores that are highest where a span changes nothing, with that value; what is missing from it can be summed over spans.
NO_CHANGE = {"cosine": 1.0, "cka": 1.0}


def nothing_refused(structure: Structure) -> str | None:
    """The ``Refuse`` of a family without constraints."""
    return None


@dataclass(frozen=True)
class LateTable:
    """A table that is measured once the number of layers is known, and of nothing but the spans that may go.

    Attributes:
        name: ``criterion/tokens``.
        measure: contiguous spans of that length, the most promising first, to the table; it may leave out the last ones.
    """

    name: str
    measure: Callable[[Sequence[Span]], SpanTable]


@dataclass(frozen=True)
class Evidence:
    """What selectors may look at. A table entry says which of it a selector ``reads``.

    Attributes:
        tables: scores of spans by name, ``criterion/tokens``.
        refuse: the family's own constraints.
        value: what a student loses without a set of units, by running it; None where there is no text to run on.
        seed: of selectors that draw.
        late: a table that can be measured; None: there is none.
        unit_tables: scores of single units by name.
        amounts: what budgets may be shares of, by the kind of the budget.
        merges: runs students of merged layers; None where there is no text to run on.
    """

    tables: Tables = field(default_factory=dict)
    refuse: Refuse = nothing_refused
    value: SetFunction | None = None
    seed: int = 0
    late: LateTable | None = None
    unit_tables: UnitTables = field(default_factory=dict)
    amounts: Mapping[str, Amounts] = field(default_factory=dict)
    merges: RowTrial | None = None

    def is_late(self, name: str) -> bool:
        """Whether a table is the one that is measured late, so that it scores exactly the layers that go."""
        return self.late is not None and self.late.name == name

    def table(self, request: Request) -> SpanTable:
        """The table that a request is to be answered by.

        Raises:
            ValueError: no such table, or it belongs to another depth.
        """
        if request.by not in self.tables:
            raise ValueError(f"no score {request.by!r} in the scan; {nearest(request.by, self.tables)}")
        table = self.tables[request.by]
        if table.n_layers != request.n_layers:
            raise ValueError(
                f"score {request.by!r} covers {table.n_layers} layers, the model has {request.n_layers}; scan this model"
            )
        return table

    def reason_against(self, request: Request, layers: Iterable[int]) -> str | None:
        """Why these layers cannot go, or None."""
        return self.reason_against_units(request, (Unit("layer", layer) for layer in layers))

    def reason_against_units(self, request: Request, units: Iterable[Unit]) -> str | None:
        """Why these units cannot go together, or None."""
        units = frozenset(units)
        stay = sorted({unit.index for unit in units} - set(request.removable))
        if stay:
            return f"layer {stay[0]} is protected"
        try:
            edits = request.edits_without(units)
        except ValueError as reason:
            return str(reason)
        structure = structure_of(edits, request.n_layers)
        if not structure:
            return "nothing would be left"
        return self.refuse(structure)

    def costs(self, request: Request) -> dict[Unit, float]:
        """What every single unit that may go and was scored costs by the score of a request; lower goes first.

        Raises:
            ValueError: no such score, or one of whole layers where sublayers are chosen.
        """
        if request.by in self.unit_tables:
            table = self.unit_tables[request.by]
            costs = {unit: table.cost(unit) for unit in request.free_units if unit in table.units}
        elif request.units != "layers":
            known = ", ".join(self.unit_tables) or "none was measured"
            raise ValueError(f"--by {request.by} scores whole layers; --units {request.units} needs a score of units ({known})")
        else:
            of_layers = layer_costs(self.table(request))
            costs = {unit: of_layers[unit.index] for unit in request.free_units if unit.index in of_layers}
        return {unit: cost for unit, cost in costs.items() if not np.isnan(cost)}


@dataclass(frozen=True)
class Request:
    """What to look for, and how.

    Attributes:
        n_layers: layers of the model.
        n: layers, or other units, to remove; 0 until the budget has been resolved on the model.
        selector: its name in ``SELECTORS``.
        by: name of the table, ``criterion/tokens``.
        protected: layers that stay.
        max_spans: most separate spans, for the selector that looks for several.
        n_rounds: 1 is one-shot.
        n_candidates: how many the tournament compares; 1: the selector's own choice stands.
        put_back: what will take the place of the layers that go.
        units: what goes: whole layers, or sublayers of one or both kinds.
        quotas: when enough is off, where units differ in what the budget is of; None: ``n`` units are.
        merge: how layers are merged, for selectors that do.
    """

    n_layers: int
    n: int = 0
    selector: str = "span"
    by: str = "cosine/rest"
    protected: frozenset[int] = frozenset()
    max_spans: int = 3
    n_rounds: int = 1
    n_candidates: int = 4
    put_back: PutBack = NOTHING
    units: UnitChoice = "layers"
    quotas: Quotas | None = None
    merge: MergeConfig = MergeConfig()

    @property
    def goal(self) -> Quotas:
        """When enough units are off."""
        return count(self.n) if self.quotas is None else self.quotas

    @property
    def free_units(self) -> tuple[Unit, ...]:
        """Units that may go, in the order of the model."""
        return model_units(self.n_layers, self.units, protected=set(range(self.n_layers)) - set(self.removable))

    @property
    def removable(self) -> tuple[int, ...]:
        """Layers that may go. The first ones may not where a replacement starts as a copy of them or is attached."""
        return tuple(layer for layer in range(self.put_back.n_before, self.n_layers) if layer not in self.protected)

    def edits(self, layers: Iterable[int]) -> tuple[Edit, ...]:
        """The edits whose student lacks exactly these layers before anything in it is trained.

        Raises:
            ValueError: a replacement that has no layer before it.
        """
        return self.put_back.edits(sorted(set(layers)))

    def edits_without(self, units: Iterable[Unit]) -> tuple[Edit, ...]:
        """As :meth:`edits` for units of any kind; sublayers go without anything in their place."""
        units = frozenset(units)
        if all(unit.kind == "layer" for unit in units):
            return self.edits(unit.index for unit in units)
        return drops_of(units)

    def candidate(self, layers: Iterable[int], *, by: str, score: float | None = None) -> Candidate:
        """One answer: layers that go, who proposes them, and the score they were chosen by (None: nothing was measured)."""
        return self.candidate_without((Unit("layer", layer) for layer in layers), by=by, score=score)

    def candidate_without(self, units: Iterable[Unit], *, by: str, score: float | None = None) -> Candidate:
        """As :meth:`candidate` for units of any kind."""
        return Candidate(edits=self.edits_without(units), proposed_by=(by,), scores={} if score is None else {by: score})

    def among(self, remaining: Sequence[int]) -> Request:
        """The same request in a model of which only ``remaining`` layers are left, numbered anew from 0."""
        protected = frozenset(i for i, layer in enumerate(remaining) if layer in self.protected)
        return replace(self, n_layers=len(remaining), protected=protected)


Propose = Callable[[Evidence, Request], Iterator[Candidate]]
Reads = Literal["tables", "values", "gradients", "weights"]


@dataclass(frozen=True)
class Selector:
    """An entry of the table of selectors.

    Attributes:
        propose: yields candidates, best first, lazily.
        about: one line for people.
        is_contiguous: whether one span is all it can give; ``limits_spans``: whether it keeps to the recipe's ``max_spans``.
        takes_units: whether it can choose sublayers, too; the others look for spans of layers.
        refits: what stays is refitted while it searches.
        reads: what of the evidence it looks at; a selector that reads nothing needs no scan, and no opened model. One that
            reads weights proposes layers made of others, which it has run itself.
        paper: where it is from, for help and card.
        n_evaluations: most sets that it runs, from the number of layers that may go and of those to go; of a selector that
            merges about the rows that it tries. None: it runs none.
        options: keys of a recipe that only some selectors of its kind read, those that this one does.
    """

    propose: Propose
    about: str
    is_contiguous: bool = False
    takes_units: bool = False
    refits: bool = False
    reads: frozenset[Reads] = frozenset({"tables"})
    paper: str = ""
    n_evaluations: Callable[[int, int], int] | None = None
    limits_spans: bool = False
    options: tuple[str, ...] = ()

    def most_spans(self, n: int, max_spans: int) -> int:
        """Spans that ``n`` layers of its candidates may make at most."""
        return 1 if self.is_contiguous else min(n, max_spans) if self.limits_spans else n


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


def most_layers(selector: Selector, request: Request) -> int:
    """Most layers the selector could remove, the family's own constraints aside. At least one layer always stays."""
    free = set(request.removable)
    if not selector.is_contiguous:
        return min(len(free), request.n_layers - 1)
    longest = run = 0
    for layer in range(request.n_layers):
        run = run + 1 if layer in free else 0
        longest = max(longest, run)
    return min(longest, request.n_layers - 1)
