"""The best set of up to k separate spans with n layers in all, exact by dynamic programming over boundaries.

The cost of a set is the sum of its spans' costs, where 0 means that a span changes nothing. Assumption: changes of separate
spans add up. At least one kept layer lies between two spans; otherwise they would be one span, which has its own cost.
"""

import math
from collections.abc import Iterator

import numpy as np

from shoal.edits.plan import Candidate
from shoal.select.request import Evidence, Request, change_costs

# Partial solution, ordered as solutions are: cost, spans used, then the layers negated (deeper first).
_Partial = tuple[float, int, tuple[int, ...]]
DEPTHS = (1, 8, 32)  # So many of the best are worked out at once; more only when the first ones are refused or used up.


def disjoint_spans(evidence: Evidence, request: Request) -> Iterator[Candidate]:
    """Sets of 1 .. ``request.max_spans`` spans, ``request.n`` layers in all, by rising sum of costs; at most 32 of them.

    Ties: fewer spans, then deeper layers. The score is the sum of the costs (for the cosine, of 1 - cos).
    Raises:
        ValueError: no such table, or its scores cannot be summed (see ``change_costs``).
    """
    costs = change_costs(evidence.table(request))
    free = frozenset(request.removable)
    n_seen = 0
    for depth in DEPTHS:
        found = _best(costs, request.n, free=free, max_spans=request.max_spans, depth=depth)
        for cost, _, negated in found[n_seen:]:
            layers = tuple(-layer for layer in negated)
            if evidence.reason_against(request, layers) is None:
                yield request.candidate(layers, by=f"disjoint {request.by}", score=cost)
        n_seen = len(found)
        if n_seen < depth:
            return


def _best(costs: np.ndarray, n: int, *, free: frozenset[int], max_spans: int, depth: int) -> list[_Partial]:
    """The ``depth`` best sets. ``reach[l][m]``: best partial solutions over layers below l that hold m layers and in which
    layer l-1 is kept; position L+1 stands behind an imaginary kept layer L."""
    n_layers = len(costs) - 1
    reach: list[dict[tuple[int, int], list[_Partial]]] = [{} for _ in range(n_layers + 2)]
    reach[0][0, 0] = [(0.0, 0, ())]
    for start in range(n_layers + 1):
        for (used, n_spans), partials in reach[start].items():
            best = sorted(partials)[:depth]
            reach[start + 1].setdefault((used, n_spans), []).extend(best)
            if n_spans == max_spans:
                continue
            for stop in range(start + 1, min(n_layers, start + n - used) + 1):
                if stop - 1 not in free:
                    break
                cost = float(costs[start, stop])
                if math.isnan(cost):
                    continue
                layers = tuple(-layer for layer in range(start, stop))
                grown = [(before + cost, n_spans + 1, taken + layers) for before, _, taken in best]
                reach[stop + 1].setdefault((used + stop - start, n_spans + 1), []).extend(grown)
    done = [partial for (used, _), partials in reach[-1].items() if used == n for partial in partials]
    return sorted(done)[:depth]
