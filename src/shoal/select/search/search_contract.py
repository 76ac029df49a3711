"""What a search is asked, how its measurements are kept, and what it answers.

A search asks a set function for losses, in batches. Whatever it does, the answer is the list of all complete sets that it
measured, the lowest loss first, and the curve of the best one against evaluations. A search that runs out of evaluations
answers with what it has, and one that builds its set unit by unit ends early enough to have one. Ties are the same everywhere:
of equal losses the deeper set goes first, compared unit by unit from the shallowest one. A loss that is not finite is taken in
as infinity, and is no point of the curve.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from shoal.measure.set_function import OutOfEvaluations, SetFunction, UnitSet, as_compared
from shoal.select.search.quotas import Quotas
from shoal.words.types import Unit


def anything_goes(units: UnitSet) -> bool:
    """The constraint of a family without constraints."""
    return True


@dataclass(frozen=True)
class Aim:
    """What to look for.

    Attributes:
        goal: when enough units are off.
        may_go: whether a set of units may be off together, by the family's own constraints. The answer may be slow (two models
            are described for it), so it is asked of the best sets alone, in their order, until enough of them may go.
        seed: of searches that draw.
    """

    goal: Quotas
    may_go: Callable[[UnitSet], bool] = anything_goes
    seed: int = 0


@dataclass(frozen=True)
class SearchAnswer:
    """What a search found.

    Attributes:
        sets: all complete sets that were measured, best first, each with its loss; some of them may be refused.
        curve: (evaluations, lowest loss of a complete set until then), one point for each improvement.
        n_evaluations: different sets that were asked for.
        is_cut_short: the limit of evaluations ended the search before it was done.
    """

    sets: tuple[tuple[UnitSet, float], ...]
    curve: tuple[tuple[int, float], ...]
    n_evaluations: int
    is_cut_short: bool = False


@dataclass
class Ledger:
    """A set function that keeps what a search asks, and ranks the complete sets among it."""

    function: SetFunction
    aim: Aim
    complete: dict[UnitSet, float] = field(default_factory=dict)
    curve: list[tuple[int, float]] = field(default_factory=list)
    is_cut_short: bool = False

    @property
    def units(self) -> tuple[Unit, ...]:
        return self.function.units

    @property
    def n_evaluations(self) -> int:
        return self.function.n_evaluations

    @property
    def n_left(self) -> int | None:
        return self.function.n_left

    def values(self, sets: Sequence[UnitSet]) -> list[float]:
        """As :meth:`~shoal.measure.set_function.SetFunction.values`; infinity where a loss is not finite."""
        try:
            found = [as_compared(loss) for loss in self.function.values(sets)]
        except OutOfEvaluations as end:
            self._note({one: as_compared(loss) for one, loss in end.known.items()})
            raise
        self._note(dict(zip(sets, found, strict=True)))
        return found

    def _note(self, losses: Mapping[UnitSet, float]) -> None:
        for one, value in losses.items():
            if self.is_complete(one):
                self.complete[one] = value
                if value < (self.curve[-1][1] if self.curve else math.inf):
                    self.curve.append((self.n_evaluations, value))

    def is_complete(self, units: UnitSet) -> bool:
        """Whether a set is an answer."""
        return self.aim.goal.is_met(units, self.units)

    def ranked(self, sets: Sequence[UnitSet]) -> list[UnitSet]:
        """Sets by rising loss; each is measured if it was not yet."""
        found = dict(zip(sets, self.values(sets), strict=True))
        return sorted(found, key=lambda one: (found[one], self.depth_key(one)))

    def need(self, first: Sequence[UnitSet]) -> None:
        """Refuse to begin what can have no answer.

        Raises:
            ValueError: there are fewer evaluations than these sets and one complete set take.
        """
        if not self.affords(first):
            n_least = len(first) + (not any(map(self.is_complete, first)))
            raise ValueError(f"{self.n_left} evaluations end before {self.aim.goal} is measured; allow at least {n_least}")

    def affords(self, sets: Sequence[UnitSet]) -> bool:
        """Whether these new sets can be measured and, where none of them is complete, a complete one after them."""
        return self.n_left is None or len(sets) + (not any(map(self.is_complete, sets))) <= self.n_left

    def end_with(
        self, kept: Sequence[UnitSet], losses: Mapping[UnitSet, float], candidates: Callable[[UnitSet], Sequence[Unit]]
    ) -> None:
        """Spend what is left of the evaluations, at most, on sets that complete those which are kept, the most promising first.

        Args:
            kept: sets that lack units, best first.
            losses: of the last round. A unit is as promising as the best of its sets that has it, so that the first set that is
                measured has the units which one shot would add.
            candidates: units that may follow a set; others complete it only where these do not.
        """
        best = {unit: min(loss for one, loss in losses.items() if unit in one) for unit in frozenset().union(*losses)}

        def completions(complete: Callable[[UnitSet, Sequence[Unit]], UnitSet]) -> Iterator[UnitSet]:
            for one in kept:
                allowed = set(candidates(one))
                order = sorted(
                    self.units, key=lambda unit: (unit not in allowed, best.get(unit, math.inf), -self.units.index(unit))
                )
                yield from (complete(one, [unit, *order]) for unit in order if unit in allowed)

        may_go = completions(lambda one, order: first_that_may_go(order, self.aim, off=one))
        plain = completions(
            lambda one, order: filled(one, order, self.aim.goal)
        )  # Where none may go, these say what was wanted.
        n = self.n_left or 0
        self.values(_different(filter(self.is_complete, may_go), n) or _different(plain, n))
        self.is_cut_short = True

    def best(self, sets: Sequence[UnitSet], n: int) -> list[UnitSet]:
        """The n best that may go; where none may, the n best: some families can lose certain numbers of layers only."""
        ranked = self.ranked(sets)
        return list(islice(filter(self.aim.may_go, ranked), n)) or ranked[:n]

    def depth_key(self, units: UnitSet) -> tuple[int, ...]:
        """Sorts deeper sets before shallower ones."""
        return tuple(sorted((-self.units.index(unit) for unit in units), reverse=True))

    def answer(self) -> SearchAnswer:
        order = sorted(self.complete, key=lambda one: (self.complete[one], self.depth_key(one)))
        sets = tuple((one, self.complete[one]) for one in order)
        return SearchAnswer(sets, tuple(self.curve), self.n_evaluations, self.is_cut_short)


def _different(sets: Iterable[UnitSet], n: int) -> list[UnitSet]:
    """The first ``n`` different sets of a sequence, which is read no further."""
    found: dict[UnitSet, None] = {}
    for one in sets:
        if len(found) == n:
            break
        found[one] = None
    return list(found)


def first_that_may_go(order: Sequence[Unit], aim: Aim, *, off: UnitSet = frozenset()) -> UnitSet:
    """A set with the first units of an order until it meets the goal; where that may not go, with each that may go then."""
    first = filled(off, order, aim.goal)
    if aim.may_go(first):
        return first
    for unit in order:
        if unit in aim.goal.candidates(off, order) and aim.may_go(off | {unit}):
            off |= {unit}
    return off


def filled(off: UnitSet, order: Sequence[Unit], goal: Quotas) -> UnitSet:
    """A set with the first units of an order that may follow, one after the other, until it meets the goal."""
    while candidates := goal.candidates(off, order):
        off |= {candidates[0]}
    return off


class Search(Protocol):
    """A way to look for the best set: asks the ledger for losses until it is done."""

    def __call__(self, ledger: Ledger, aim: Aim) -> None: ...


def run_search(search: Search, function: SetFunction, aim: Aim) -> SearchAnswer:
    """Run a search to its end, or until the evaluations are spent.

    Raises:
        ValueError: the units cannot meet the goal, or the evaluations end before a complete set is measured.
    """
    aim.goal.refuse_impossible(function.units)
    ledger = Ledger(function, aim)
    try:
        search(ledger, aim)
    except OutOfEvaluations:
        ledger.is_cut_short = True
    if ledger.is_cut_short and not ledger.complete:
        raise ValueError(f"{ledger.n_evaluations} evaluations end before {aim.goal} is measured; allow more")
    return ledger.answer()
