"""Greedy with a repair inside: after each unit that goes what stays is refitted, and the next is chosen in that student.

Greedy asks which unit the plain cut can best spare next. Once the cut is repaired that may be another one, because a repair
makes up for a part of what went. Prune&Comp (arXiv 2507.18212) measures anew after each compensated layer. It asks for as many
sets as greedy, and for a refit between two rounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from shoal.measure.set_function import UnitSet
from shoal.select.search.search_contract import Aim, Ledger
from shoal.select.search.unit_by_unit import grow
from shoal.words.types import Unit


@runtime_checkable
class Settles(Protocol):
    """A set function that can be told which units are gone for good."""

    def settle(self, off: UnitSet) -> None:
        """From now on losses are those of a student that lacks these units and is repaired for that."""
        ...


@dataclass(frozen=True)
class GreedyRefit:
    """One unit a round, on a set function that settles."""

    def __call__(self, ledger: Ledger, aim: Aim) -> None:
        """Raises ValueError: the set function cannot settle, or the evaluations are too few for any answer."""
        function = ledger.function
        if not isinstance(function, Settles):
            raise ValueError("greedy-refit refits what stays after every round; it needs a model and text to refit on")

        def candidates(off: UnitSet) -> list[Unit]:
            return aim.goal.candidates(off, ledger.units)

        def settle(kept: Sequence[UnitSet]) -> None:
            if candidates(kept[0]):
                function.settle(kept[0])

        grow(ledger, candidates, after_round=settle)

    def n_evaluations(self, n_units: int, n: int) -> int:
        """Sets that are asked for where units are alike: as many as greedy."""
        return sum(n_units - i for i in range(n))
