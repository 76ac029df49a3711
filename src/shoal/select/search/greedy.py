"""Greedy and beam search: switch off one unit after the other, each time the one whose loss is lowest with those before.

Source: SLEB (arXiv 2402.09025: layers, cross-entropy), FinerCut (arXiv 2405.18218: sublayers, Jensen-Shannon or angle of the
logits, and the front of the model no candidate until the rest is thin). On an additive function greedy is optimal; where two
units are each free but not together it sees that, and a choice by single scores does not. For M units and n rounds greedy asks
for n M - n (n - 1) / 2 sets; with F units of the front left alone all the while for n (M - F) - n (n - 1) / 2.
"""

import math
from dataclasses import dataclass

from shoal.measure.set_function import UnitSet
from shoal.select.search.search_contract import Aim, Ledger
from shoal.select.search.unit_by_unit import grow
from shoal.words.types import Unit


@dataclass(frozen=True)
class Greedy:
    """One unit a round, or the ``width`` best sets of each round together (beam search).

    Attributes:
        width: sets that are kept from round to round; 1 is greedy.
        front: share of the units, from the front of the model and rounded up, that may not go until so large a share of all is
            off, or nothing else can go (FinerCut uses 0.4 as an option); 0: all may go at once.
    """

    width: int = 1
    front: float = 0.0

    def __post_init__(self) -> None:
        if self.width < 1 or not 0 <= self.front < 1:
            raise ValueError(f"width={self.width} needs at least 1, front={self.front} a share from 0 to below 1")

    def __call__(self, ledger: Ledger, aim: Aim) -> None:
        """Grow the kept sets by one unit until none needs more. Raises ValueError: too few evaluations for any answer."""
        grow(ledger, lambda off: self.candidates(ledger, off), width=self.width)

    def n_evaluations(self, n_units: int, n: int) -> int:
        """Most sets that are asked for where units are alike; exactly so many for a width of 1."""
        per_set = []
        for n_off in range(n):
            n_behind = n_units - self.n_closed(n_units, n_off) - n_off
            per_set.append(n_behind if n_behind > 0 else n_units - n_off)
        return per_set[0] + self.width * sum(per_set[1:])

    def candidates(self, ledger: Ledger, off: UnitSet) -> list[Unit]:
        """Units that may go next."""
        units, goal = ledger.units, ledger.aim.goal
        behind = goal.candidates(off, units[self.n_closed(len(units), len(off)) :])
        return behind or goal.candidates(off, units)

    def n_closed(self, n_units: int, n_off: int) -> int:
        """Units of the front that may not go yet."""
        # 0.4 of 35 units are 14, whatever the product of these floats says
        n_front = math.ceil(round(self.front * n_units, 9))
        return n_front if n_off < n_front else 0
