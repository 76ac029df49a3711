"""Selection from end to end: budget -> number of layers -> proposals -> guard. Orchestration only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from shoal.edits.plan import Candidate, PartChoice
from shoal.measure.oracle import Oracle
from shoal.select.budget import Budget, ResolvedBudget, realised, resolve
from shoal.select.guard import Repair, guard, verdict
from shoal.select.model_size import NOTHING, ModelSize, PutBack
from shoal.select.request import PATCHED, Picked, Refuse, Selector, Tables, Wanted, most_layers, nothing_refused
from shoal.select.rounds import Rescan, in_rounds
from shoal.select.shortlist import Proposer, other_proposers, propose
from shoal.select.table import selector_named
from shoal.words.structure import runs_said
from shoal.words.types import Span, SpanTable

PatchTable = Callable[[Sequence[Span]], SpanTable]
"""Spans, the most promising first, to the errors after their best patch; it may leave out the last ones."""


@dataclass(frozen=True)
class Choosing:
    """How to choose; the part of a recipe that selection reads.

    Attributes:
        selector, by, max_spans: the selector, the table it reads, and the most spans of ``disjoint``.
        protected: layers that stay.
        n_rounds: 1 is one-shot.
        n_candidates: how many the guard compares; 1: the selector's own choice stands.
        put_back: what will take the removed layers' place.
    """

    selector: str = "span"
    by: str = "cosine/rest"
    max_spans: int = 3
    protected: frozenset[int] = frozenset()
    n_rounds: int = 1
    n_candidates: int = 4
    put_back: PutBack = NOTHING


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        layers: absent from the student before any replacement is trained.
        cut: the budget on this model.
        candidates: what was compared, best first; the first one holds ``layers``.
        method: how it was chosen, for people.
        spread: what the selector alone would have chosen on disjoint parts of the calibration text, most frequent first.
    """

    layers: tuple[int, ...]
    cut: ResolvedBudget
    candidates: tuple[Candidate, ...]
    method: str
    spread: tuple[PartChoice, ...] = ()


def choose(
    budget: Budget,
    size: ModelSize,
    *,
    tables: Tables,
    how: Choosing,
    oracle: Oracle | None = None,
    rescan: Rescan | None = None,
    patch_table: PatchTable | None = None,
    repair: Repair | None = None,
    refuse: Refuse = nothing_refused,
) -> Choice:
    """Choose the layers that go.

    Args:
        tables: scores of the model by name; may be empty for a selector that reads none.
        oracle: measures on the ``selection`` text; needed where more than one candidate is compared.
        rescan: scores of a student; needed for more than one round.
        patch_table: measures the error after the best patch, of all spans that may go; one more proposer for the guard.
        repair: makes the repaired student of a candidate; the guard compares those.
        refuse: what the model's family cannot lose.
    Raises:
        ValueError: an impossible budget, an unknown name, nothing that can go, or a missing oracle or rescan.
    """
    if how.n_candidates > 1 and oracle is None:
        raise ValueError(f"comparing {how.n_candidates} candidates needs text to measure on; give some, or set guard: 1")
    short = shortlist(budget, size, tables=tables, how=how, rescan=rescan, patch_table=patch_table, refuse=refuse)
    candidates = short.candidates
    if oracle is not None and len(candidates) > 1:
        candidates = guard(candidates, oracle, repair=repair)
    layers = candidates[0].layers
    decided = f"guard of {len(candidates)} by KL; " if len(candidates) > 1 else ""
    spread = () if how.n_rounds > 1 else spread_of(selector_named(how.selector), short.tables, short.wanted)
    said = f"{verdict(candidates, n_layers=size.n_layers)}; {realised(size, layers, how.put_back)}; asked {short.cut.asked}"
    return Choice(layers=layers, cut=short.cut, candidates=candidates, method=decided + said, spread=spread)


@dataclass(frozen=True)
class Shortlist:
    """What the guard would compare: the budget on this model, candidates that are not yet measured, and what they come from."""

    cut: ResolvedBudget
    candidates: tuple[Candidate, ...]
    wanted: Wanted
    tables: Tables


def shortlist(
    budget: Budget,
    size: ModelSize,
    *,
    tables: Tables,
    how: Choosing,
    rescan: Rescan | None = None,
    patch_table: PatchTable | None = None,
    refuse: Refuse = nothing_refused,
) -> Shortlist:
    """:func:`choose` up to the guard; a sweep measures the candidates of all its cuts in one pass."""
    selector = selector_named(how.selector)
    wanted = wanted_by(how, size, refuse=refuse)
    counted_by = wanted if how.by in tables or how.by != PATCHED else replace(wanted, by="cosine/rest")  # not measured yet
    cut = cut_for(budget, size, tables=tables, selector=selector, wanted=counted_by)
    wanted = replace(wanted, n=cut.n)
    if patch_table is not None and cut.n:
        tables = {**tables, **patched(patch_table, tables, wanted)}
    name = how.selector if how.selector == "deepest" else f"{how.selector} {how.by}"
    proposers = [Proposer(name, picks_or_reason(selector, name, tables=tables, wanted=wanted))]
    if how.n_rounds > 1:
        if rescan is None:
            raise ValueError(f"rounds={how.n_rounds} measures the student anew after each cut; this needs the model and text")
        picked = in_rounds(selector, tables, wanted, n_rounds=how.n_rounds, rescan=rescan)
        proposers.insert(0, Proposer(f"{name} in {how.n_rounds} rounds", iter([picked])))  # the one-shot choice competes too
    if how.n_candidates > 1:
        proposers += [one for one in other_proposers(tables, wanted) if one.name != name]
    return Shortlist(cut, propose(proposers, how.n_candidates), wanted, tables)


def patched(patch_table: PatchTable, tables: Tables, wanted: Wanted) -> Tables:
    """The table of patch errors of the spans that may go, those the wanted score likes best first; empty where none may."""
    spans = [Span(start, start + wanted.n) for start in range(wanted.n_layers - wanted.n + 1)]
    spans = [span for span in spans if wanted.reason_against(tuple(span.layers)) is None]
    known = tables.get(wanted.by)
    if known is not None and not any(math.isnan(known[span]) for span in spans):
        spans.sort(key=lambda span: (known.cost(span), -span.start))
    if not spans:
        return {}
    table = patch_table(spans)
    return {table.name: table}


def spread_of(selector: Selector, tables: Tables, wanted: Wanted) -> tuple[PartChoice, ...]:
    """The selector's choice on each part of the calibration text by itself; empty where the parts were not kept."""
    table = tables.get(wanted.by)
    if table is None or table.parts is None:
        return ()
    chosen: Counter[tuple[int, ...]] = Counter()
    for part in table.parts:
        picked = next(selector.pick({**tables, wanted.by: replace(table, values=part, parts=None)}, wanted), None)
        if picked is not None:
            chosen[picked.layers] += 1
    ranked = sorted(chosen.items(), key=lambda one: (-one[1], one[0]))
    return tuple(PartChoice(layers=layers, n_parts=n) for layers, n in ranked)


def check_reach(budget: Budget, size: ModelSize, *, how: Choosing) -> None:
    """Raises ValueError for a budget out of reach, where that shows before anything is scored: all layers have one size."""
    wanted = wanted_by(how, size, refuse=nothing_refused)
    if len({size.layers[layer] for layer in wanted.removable}) < 2:
        cut_for(budget, size, tables={}, selector=selector_named(how.selector), wanted=wanted)


def wanted_by(how: Choosing, size: ModelSize, *, refuse: Refuse) -> Wanted:
    """What the selectors are asked for, the number of layers still open."""
    return Wanted(
        n_layers=size.n_layers,
        n=0,
        protected=how.protected,
        by=how.by,
        max_spans=how.max_spans,
        put_back=how.put_back,
        refuse=refuse,
    )


def picks_or_reason(selector: Selector, name: str, *, tables: Tables, wanted: Wanted) -> Iterator[Picked]:
    """What the selector picks.

    Raises:
        ValueError: nothing; says why its own first choice was refused.
    """
    picks = selector.pick(tables, wanted)
    best = next(picks, None)
    if best is not None:
        return chain([best], picks)
    unrefused = next(selector.pick(tables, replace(wanted, refuse=nothing_refused)), None)
    reason = None if unrefused is None else wanted.reason_against(unrefused.layers)
    why = f"its first choice, {runs_said(unrefused.layers)}: {reason}" if unrefused and reason else "too many are protected"
    raise ValueError(f"{name!r} finds no {wanted.n} layers that can go ({why}); remove fewer or protect fewer")


def cut_for(budget: Budget, size: ModelSize, *, tables: Tables, selector: Selector, wanted: Wanted) -> ResolvedBudget:
    """The number of layers a budget means for this selector. Where layers differ in size, by the layers it would pick."""
    removable = wanted.removable
    n_most = most_layers(selector, wanted)
    same_size = len({size.layers[layer] for layer in removable}) < 2

    def layers_of(n: int) -> tuple[int, ...]:
        picked = next(selector.pick(tables, replace(wanted, n=n)), None)
        # a number of layers that the family refuses is no reason to refuse the budget: count the deepest free ones
        return picked.layers if picked is not None else removable[len(removable) - n :]

    return resolve(
        budget,
        size,
        put_back=wanted.put_back,
        removable=removable,
        n_most=n_most,
        layers_of=None if same_size else layers_of,
    )
