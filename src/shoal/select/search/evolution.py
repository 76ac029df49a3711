"""Evolution: sets of n units whose children swap a few of them, the best of parents and children live on.

Source: EvoPress (arXiv 2410.14649), its level switching with two levels, on and off, and its number of swaps (the smaller of
two draws). Its selection in several steps on ever more text is left out: every child is measured on the same text, and
remembered.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from shoal.measure.set_function import UnitSet
from shoal.select.search.base import Aim, Ledger
from shoal.words.types import Unit

MOST_TRIES = 100
"""Draws of a set that the family does not refuse, before a child is given up."""


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
        first = [self._drawn(ledger, aim, draw) for _ in range(self.n_children)]
        survivors = ledger.ranked([one for one in dict.fromkeys(first) if one is not None])[: self.n_survivors]
        if not survivors:
            return
        for _ in range(self.n_generations):
            children = [self._child(draw.choice(survivors), ledger, aim, draw) for _ in range(self.n_children)]
            survivors = ledger.ranked(list(dict.fromkeys([*survivors, *children])))[: self.n_survivors]

    def _drawn(self, ledger: Ledger, aim: Aim, draw: random.Random) -> UnitSet | None:
        for _ in range(MOST_TRIES):
            found = frozenset(draw.sample(ledger.units, aim.n))
            if aim.may_go(found):
                return found
        return None

    def _child(self, parent: UnitSet, ledger: Ledger, aim: Aim, draw: random.Random) -> UnitSet:
        """The parent with some units swapped; the parent itself where every draw is refused."""
        off = [unit for unit in ledger.units if unit in parent]
        on = [unit for unit in ledger.units if unit not in parent]
        for _ in range(MOST_TRIES):
            n = min(draw.randint(1, self.most_swaps), draw.randint(1, self.most_swaps), len(on), len(off))
            back: list[Unit] = draw.sample(off, n)
            child = (parent - frozenset(back)) | frozenset(draw.sample(on, n))
            if aim.may_go(child):
                return child
        return parent
