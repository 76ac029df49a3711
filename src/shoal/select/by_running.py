"""Selectors that choose layers by what the model loses without them: a search (select/search) on the set function of the
evidence."""

from collections.abc import Callable, Iterator

from shoal.edits.plan import Candidate
from shoal.measure.set_function import UnitSet
from shoal.select.request import Evidence, Propose, Request
from shoal.select.search.search_contract import Aim, Search, run_search
from shoal.words.progress import counted


def by_running(search: Search, n_evaluations: Callable[[int, int], int]) -> Propose:
    """The selector that proposes the complete sets which a search measured, those of the lowest loss first.

    Its candidates come only when the search has ended. It proposes nothing where nothing can go.

    Args:
        n_evaluations: most sets that the search runs, from the number of units that may go and of those to go.
    """

    def propose(evidence: Evidence, request: Request) -> Iterator[Candidate]:
        """Raises ValueError: there is no model or no text to run, or the evaluations end before a set is complete."""
        function = evidence.value
        if function is None:
            raise ValueError(f"--select {request.selector} runs the model on text; it needs both")

        def may_go(units: UnitSet) -> bool:
            return evidence.reason_against_units(request, units) is None

        if request.quotas is None and not 1 <= request.n <= len(function.units):
            return
        expected = n_evaluations(len(function.units), request.n)
        with counted(lambda: function.n_evaluations, expected):
            answer = run_search(search, function, Aim(request.goal, may_go, evidence.seed))
        for units, loss in answer.sets:
            if may_go(units):
                yield request.candidate_without(units, by=request.selector, score=loss)

    return propose
