"""Greedy and beam search: switch off one unit after the other, each time the one whose loss is lowest with those before.

Source: SLEB (arXiv 2402.09025: layers, cross-entropy), FinerCut (arXiv 2405.18218: sublayers, Jensen-Shannon or angle of the
logits, and the front of the model no candidate until the rest is thin). On an additive function greedy is optimal; where two
units are each free but not together it sees that, and a choice by single scores does not. For M units and n rounds greedy asks
for n M - n (n - 1) / 2 sets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from shoal.measure.set_function import UnitSet
from shoal.select.search.search_contract import Aim, Ledger
from shoal.words.types import Unit


@dataclass(frozen=True)
class Greedy:
    """One unit a round, or the ``width`` best sets of each round together (beam search).

    Attributes:
        width: sets that are kept from round to round; 1 is greedy.
        front: share of the units, from the front of the model, that may not go until so large a share of all is off (FinerCut
            uses 0.4 as an option); 0: all may go at once.
    """

    width: int = 1
    front: float = 0.0

    def __post_init__(self) -> None:
        if self.width < 1 or not 0 <= self.front < 1:
            raise ValueError(f"width={self.width} needs at least 1, front={self.front} a share from 0 to below 1")

    def __call__(self, ledger: Ledger, aim: Aim) -> None:
        """Grow the kept sets by one unit until none of them needs more."""
        kept: list[UnitSet] = [frozenset()]
        while grown := dict.fromkeys(one | {unit} for one in kept for unit in self.candidates(ledger, one)):
            kept = ledger.best(list(grown), self.width)

    def n_evaluations(self, n_units: int, n: int) -> int:
        """Most sets that are asked for, without a front that is left out; exactly so many for a width of 1."""
        return n_units + sum(self.width * (n_units - i) for i in range(1, n))

    def candidates(self, ledger: Ledger, off: UnitSet) -> list[Unit]:
        """Units that may go next."""
        units = ledger.units
        n_front = math.floor(self.front * len(units)) if len(off) < self.front * len(units) else 0
        return ledger.aim.goal.candidates(off, units[n_front:])
