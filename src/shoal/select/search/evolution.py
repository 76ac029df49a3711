"""Evolution: sets of n units whose children swap a few of them, the best of parents and children live on.

Source: EvoPress (arXiv 2410.14649), its level switching with two levels, on and off, and its number of swaps (the smaller of
two draws). Its selection in several steps on ever more text is left out: every child is measured on the same text, and
remembered.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.measure.set_function import UnitSet
from shoal.select.search.search_contract import Aim, Ledger, filled
from shoal.words.types import Unit


@dataclass(frozen=True)
class Evolution:
    """Attributes:
    n_generations: how often children are made.
    n_children: children of one generation, measured together.
    n_survivors: sets that live on.
    most_swaps: most units that a child swaps.
    """

    n_generations: int = 50
    n_children: int = 16
    n_survivors: int = 2
    most_swaps: int = 3

    def __call__(self, ledger: Ledger, aim: Aim) -> None:
        """Start from sets drawn at random; stop after the generations. A set that is known is measured once."""
        draw = random.Random(aim.seed)
        first = [filled(frozenset(), _shuffled(ledger.units, draw), aim.goal) for _ in range(self.n_children)]
        survivors = ledger.best(list(dict.fromkeys(first)), self.n_survivors)
        for _ in range(self.n_generations):
            children = [self.child(draw.choice(survivors), ledger.units, aim, draw) for _ in range(self.n_children)]
            survivors = ledger.best(list(dict.fromkeys([*survivors, *children])), self.n_survivors)

    def n_evaluations(self, n_units: int, n: int) -> int:
        """Most sets that are asked for: those at the start and all children, or all sets that there are."""
        return min(math.comb(n_units, n), self.n_children * (1 + self.n_generations))

    def child(self, parent: UnitSet, units: Sequence[Unit], aim: Aim, draw: random.Random) -> UnitSet:
        """The parent with some units swapped for as many as meet the goal again."""
        off = [unit for unit in units if unit in parent]
        on = [unit for unit in units if unit not in parent]
        n = min(draw.randint(1, self.most_swaps), draw.randint(1, self.most_swaps), len(on), len(off))
        back, order = draw.sample(off, n), _shuffled(on, draw)
        child = filled(parent - frozenset(back), [*order, *back], aim.goal)
        while spare := [unit for unit in units if unit in child and aim.goal.can_spare(child, unit)]:
            child -= {draw.choice(spare)}
        return child


def _shuffled(units: Sequence[Unit], draw: random.Random) -> list[Unit]:
    return draw.sample(list(units), len(units))
