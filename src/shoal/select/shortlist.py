"""From a budget to the candidates that may be compared: how much goes, then proposals. Orchestration only."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain

from shoal.edits.plan import Candidate, PartChoice
from shoal.measure.set_function import as_compared
from shoal.select.amounts import Amounts
from shoal.select.budget import MEASURED, Budget, ResolvedBudget, resolve
from shoal.select.model_size import ModelSize
from shoal.select.proposals import Proposer, found_by_search, other_proposers, propose
from shoal.select.request import Evidence, LateTable, Request, Selector, Tables, most_layers, nothing_refused
from shoal.select.rounds import Rescan, in_rounds
from shoal.select.table import SELECTORS
from shoal.select.unit_quotas import quotas_for
from shoal.words.types import Span


@dataclass(frozen=True)
class Shortlist:
    """What may be compared.

    Attributes:
        budget: on this model.
        candidates: different ones, the asked selector's first; not yet measured.
        request: with its number of layers.
        evidence: what they were chosen by.
    """

    budget: ResolvedBudget
    candidates: tuple[Candidate, ...]
    request: Request
    evidence: Evidence


def shortlist(
    budget: Budget,
    size: ModelSize,
    request: Request,
    evidence: Evidence,
    *,
    rescan: Rescan | None = None,
) -> Shortlist:
    """From a budget to the candidates that a tournament compares.

    Args:
        request: its ``n`` or its quotas are open; the budget says them.
        rescan: scores of a student; needed for more than one round.
    Raises:
        ValueError: an impossible budget, an unknown name, nothing that can go, or a missing rescan.
    """
    selector = SELECTORS.named(request.selector)
    if request.units != "layers":
        return _shortlist_of_units(budget, size, request, evidence, selector)
    not_measured = evidence.is_late(request.by) and request.by not in evidence.tables
    counted_by = replace(request, by="cosine/rest") if not_measured else request
    resolved = cut_for(budget, size, evidence=evidence, request=counted_by)
    request = replace(request, n=resolved.n)
    if evidence.late is not None and resolved.n:
        evidence = replace(evidence, tables={**evidence.tables, **measured_late(evidence.late, evidence, request)})
    name = f"{request.selector} {request.by}" if "tables" in selector.reads else request.selector
    proposers = [Proposer(name, candidates_or_reason(selector, name, evidence=evidence, request=request))]
    if request.n_rounds > 1:
        if rescan is None:
            raise ValueError(
                f"rounds={request.n_rounds} measures the student anew after each cut; this needs the model and text"
            )
        found = in_rounds(selector, evidence, request, rescan=rescan)
        # The choice in one round competes, too, where there is a place.
        proposers.insert(0, Proposer(f"{name} in {request.n_rounds} rounds", iter([found])))
    if request.n_candidates > 1:
        proposers += [one for one in other_proposers(evidence, request) if one.name != name]
    return Shortlist(resolved, propose(proposers, request.n_candidates), request, evidence)


def _shortlist_of_units(budget: Budget, size: ModelSize, request: Request, evidence: Evidence, selector: Selector) -> Shortlist:
    """Sublayers: the asked selector and the search propose, because the house's other criteria look at spans of layers."""
    goal = quotas_for(budget, size, request, evidence.amounts)
    goal.refuse_impossible(request.free_units)
    request = replace(request, n=goal.most(request.free_units), quotas=goal)
    resolved = ResolvedBudget(n_net=request.n, n=request.n, n_layers=request.n_layers, asked=budget.text)
    name = f"{request.selector} {request.by}" if "tables" in selector.reads else request.selector
    proposers = [Proposer(name, candidates_or_reason(selector, name, evidence=evidence, request=request))]
    proposers += found_by_search(evidence, request)
    return Shortlist(resolved, propose(proposers, request.n_candidates), request, evidence)


def measured_late(late: LateTable, evidence: Evidence, request: Request) -> Tables:
    """The late table of the spans that may go, those that the wanted score likes best first; empty where none may."""
    spans = [Span(start, start + request.n) for start in range(request.n_layers - request.n + 1)]
    spans = [span for span in spans if evidence.reason_against(request, span.layers) is None]
    known = evidence.tables.get(request.by)
    if known is not None and not any(math.isnan(known[span]) for span in spans):
        spans.sort(key=lambda span: (known.cost(span), -span.start))
    if not spans:
        return {}
    return {late.name: late.measure(spans)}


def spread_of(short: Shortlist) -> tuple[PartChoice, ...]:
    """The selector's own choice on each part of the calibration text by itself, most frequent first.

    Empty where the parts were not kept, or the text is read anew after each round.
    """
    request, evidence = short.request, short.evidence
    table = evidence.tables.get(request.by)
    selector = SELECTORS.named(request.selector)
    if table is None or table.parts is None or request.n_rounds > 1 or "values" in selector.reads:
        return ()
    chosen: Counter[tuple[int, ...]] = Counter()
    for part in table.parts:
        tables = {**evidence.tables, request.by: replace(table, values=part, parts=None)}
        found = next(selector.propose(replace(evidence, tables=tables), request), None)
        if found is not None:
            chosen[found.layers] += 1
    ranked = sorted(chosen.items(), key=lambda one: (-one[1], one[0]))
    return tuple(PartChoice(layers=layers, n_parts=n) for layers, n in ranked)


def check_reach(budget: Budget, size: ModelSize, request: Request, *, amounts: Mapping[str, Amounts] | None = None) -> None:
    """Raises ValueError for a budget out of reach, where that shows before anything is scored: all layers have one size.

    Args:
        amounts: of what budgets other than layers and parameters are shares of; without them such budgets are not looked at.
    """
    known = amounts or {}
    if any(one.resource not in known for one in budget.all if one.kind in MEASURED):
        return
    if request.units != "layers":
        quotas_for(budget, size, request, known).refuse_impossible(request.free_units)
    elif len({size.layers[layer] for layer in request.removable}) < 2:
        cut_for(budget, size, evidence=Evidence(amounts=known), request=request)


def candidates_or_reason(selector: Selector, name: str, *, evidence: Evidence, request: Request) -> Iterator[Candidate]:
    """What the selector proposes.

    Raises:
        ValueError: nothing; says why its own first choice was refused.
    """
    candidates = selector.propose(evidence, request)
    best = next(candidates, None)
    if best is not None:
        return chain([best], candidates)
    is_of_spans = "tables" in selector.reads and request.by not in evidence.unit_tables
    table = evidence.tables.get(request.by) if is_of_spans else None
    if table is not None and not any(value == value for row in table.values for value in row):
        raise ValueError(f"no value of the score {request.by!r} is a number; scan again, or select by another score")
    unrefused = _unrefused(selector, evidence, request)
    reason = None if unrefused is None else evidence.reason_against_units(request, unrefused.units)
    why = f"its first choice, {unrefused}: {reason}" if unrefused is not None and reason else "too many are protected"
    what = "layers" if request.units == "layers" else "sublayers"
    raise ValueError(f"{name!r} finds no {request.n} {what} that can go ({why}); remove fewer or protect fewer")


def _unrefused(selector: Selector, evidence: Evidence, request: Request) -> Candidate | None:
    """The first choice where nothing is refused; of a search the best set among those that it ran."""
    if evidence.value is None or "values" not in selector.reads:
        return next(selector.propose(replace(evidence, refuse=nothing_refused), request), None)
    function = evidence.value
    complete = {units: loss for units, loss in function.asked.items() if request.goal.is_met(units, function.units)}
    if not complete:
        return None
    best = min(complete, key=lambda units: as_compared(complete[units]))
    return request.candidate_without(best, by=request.selector, score=complete[best])


def cut_for(budget: Budget, size: ModelSize, *, evidence: Evidence, request: Request) -> ResolvedBudget:
    """The number of layers a budget means for the asked selector. Where layers differ in size, by the layers it would pick."""
    selector, removable = SELECTORS.named(request.selector), request.removable
    same_size = len({size.layers[layer] for layer in removable}) < 2
    counts_alike = same_size or "values" in selector.reads  # A search for each number of layers would cost too much.

    def layers_of(n: int) -> tuple[int, ...]:
        found = next(selector.propose(evidence, replace(request, n=n)), None)
        # A number of layers that the family refuses is no reason to refuse the budget: count the deepest free ones.
        return found.layers if found is not None else removable[len(removable) - n :]

    return resolve(
        budget,
        size,
        put_back=request.put_back,
        removable=removable,
        n_most=most_layers(selector, request),
        layers_of=None if counts_alike else layers_of,
        amounts=evidence.amounts,
    )
