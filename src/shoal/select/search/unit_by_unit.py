"""A set that grows by one unit a round: what greedy search, beam search and greedy with a repair inside share."""

from collections.abc import Callable, Sequence

from shoal.measure.set_function import UnitSet
from shoal.select.search.search_contract import Ledger
from shoal.words.types import Unit


def grow(
    ledger: Ledger,
    candidates: Callable[[UnitSet], Sequence[Unit]],
    *,
    width: int = 1,
    after_round: Callable[[Sequence[UnitSet]], None] = lambda kept: None,
) -> None:
    """Grow the best sets by one unit until none of them needs more.

    Where the evaluations do not reach for a round, the last round says which units complete the kept sets: with as many as one
    shot takes, the answer is that of one shot.

    Args:
        candidates: units that may follow a set.
        width: sets that are kept from round to round.
        after_round: told the kept sets after each round.
    Raises:
        ValueError: there are fewer evaluations than a first round and a complete set take.
    """
    kept, losses = [frozenset[Unit]()], dict[UnitSet, float]()
    while grown := list(dict.fromkeys(one | {unit} for one in kept for unit in candidates(one))):
        if not losses:
            ledger.need(grown)
        elif not ledger.affords(grown):
            return ledger.end_with(kept, losses, candidates)
        kept = ledger.best(grown, width)
        losses = dict(zip(grown, ledger.values(grown), strict=True))
        after_round(kept)
