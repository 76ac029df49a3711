"""The k layers of lowest score, each judged on its own: the n = 1 column of a table. ShortGPT (arXiv 2403.03853)."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from shoal.edits.plan import Candidate
from shoal.select.request import Evidence, Request, layer_costs
from shoal.words.types import Span

MOST_SETS = 20_000  # a constraint that refuses nearly every set would otherwise have all of them tried


def lowest_layers(evidence: Evidence, request: Request) -> Iterator[Candidate]:
    """Sets of ``request.n`` layers by rising sum of their single-layer costs; the first is the n lowest layers.

    The score is the sum of the layers' scores.
    Raises:
        ValueError: no such table.
    """
    table = evidence.table(request)
    costs = layer_costs(table)
    free = sorted((layer for layer in request.removable if layer in costs), key=lambda layer: (costs[layer], -layer))

    def cost(ranks: tuple[int, ...]) -> float:
        return sum(costs[free[rank]] for rank in ranks)

    if request.n > len(free):
        return
    first = tuple(range(request.n))
    # Every set is reached from a cheaper one by moving one member to the next rank, so a heap yields them in order.
    heap, seen = [(cost(first), first)], {first}
    while heap and len(seen) < MOST_SETS:
        _, ranks = heapq.heappop(heap)
        layers = tuple(sorted(free[rank] for rank in ranks))
        if evidence.reason_against(request, layers) is None:
            score = sum(table[Span(layer, layer + 1)] for layer in layers)
            yield request.candidate(layers, by=f"lowest {request.by}", score=score)
        for place in range(request.n):
            following = ranks[place + 1] if place + 1 < request.n else len(free)
            moved = (*ranks[:place], ranks[place] + 1, *ranks[place + 1 :])
            if ranks[place] + 1 < following and moved not in seen:
                seen.add(moved)
                heapq.heappush(heap, (cost(moved), moved))
