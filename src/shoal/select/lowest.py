"""The units of lowest score, each judged on its own: the n = 1 column of a table of spans, or a table of units.

Source: ShortGPT (arXiv 2403.03853) for layers and block influence; with other scores it is the one-shot choice that most papers
compare with.
"""

import heapq
from collections.abc import Iterator, Sequence

from shoal.edits.plan import Candidate
from shoal.select.request import Evidence, Request
from shoal.select.search.search_contract import Aim, first_that_may_go
from shoal.words.types import Unit

MOST_SETS = 20_000  # A constraint that refuses nearly every set would otherwise have all of them tried.


def lowest_units(evidence: Evidence, request: Request) -> Iterator[Candidate]:
    """Sets of units by rising sum of their own costs; the first is that of the lowest units.

    The score is the sum of the units' scores. Where units differ in what the budget is of, the lowest that meet it are the only
    proposal.
    Raises:
        ValueError: no such table.
    """
    costs = evidence.costs(request)
    place = {unit: i for i, unit in enumerate(request.free_units)}
    free = sorted(costs, key=lambda unit: (costs[unit], -place[unit]))
    by = f"lowest {request.by}"
    sign = -1 if _is_higher_better(evidence, request) else 1

    def proposal(units: frozenset[Unit]) -> Candidate:
        return request.candidate_without(units, by=by, score=sign * sum(costs[unit] for unit in sorted(units)))

    if request.quotas is not None:
        aim = Aim(request.quotas, lambda units: evidence.reason_against_units(request, units) is None)
        chosen = first_that_may_go(free, aim)
        if chosen and aim.goal.is_met(chosen, free):
            yield proposal(chosen)
        return
    for ranks in _by_rising_cost([costs[unit] for unit in free], request.n):
        units = frozenset(free[rank] for rank in ranks)
        if evidence.reason_against_units(request, units) is None:
            yield proposal(units)


def _by_rising_cost(costs: Sequence[float], n: int) -> Iterator[tuple[int, ...]]:
    """Sets of n places by rising sum of their costs, which rise from place to place."""

    def cost(ranks: tuple[int, ...]) -> float:
        return sum(costs[rank] for rank in ranks)

    if n > len(costs):
        return
    first = tuple(range(n))
    # Every set is reached from a cheaper one by moving one member to the next rank, so a heap yields them in order.
    heap, seen = [(cost(first), first)], {first}
    while heap and len(seen) < MOST_SETS:
        _, ranks = heapq.heappop(heap)
        yield ranks
        for place in range(n):
            following = ranks[place + 1] if place + 1 < n else len(costs)
            moved = (*ranks[:place], ranks[place] + 1, *ranks[place + 1 :])
            if ranks[place] + 1 < following and moved not in seen:
                seen.add(moved)
                heapq.heappush(heap, (cost(moved), moved))


def _is_higher_better(evidence: Evidence, request: Request) -> bool:
    table = evidence.unit_tables.get(request.by) or evidence.tables[request.by]
    return table.higher_is_more_redundant
