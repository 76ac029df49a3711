"""Surrogate: a quadratic function of what is off is fitted to the sets measured so far, and its best sets are measured next.

The loss of a set S is written as a sum of a_i over its units and of c_ij over its pairs. Both are fitted by ridge regression to
all sets measured so far: every unit alone, random sets that meet the quotas, and what the rounds add. The quadratic is made
small under the quotas by swaps from several starts, and the sets that it likes best and that are new are measured next, so that
where it is wrong it is told so. On a function of units and pairs it finds the optimum once it has seen enough sets; on others
it is a guess that is measured before it is believed. It answers a question that greedy cannot: two units may be dear apart and
cheap together. No paper's method is meant.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from shoal.measure.set_function import UnitSet
from shoal.select.search.quotas import Quotas
from shoal.select.search.search_contract import Aim, Ledger, filled, first_that_may_go
from shoal.words.types import Unit

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the pairs, as a share of the mean square of their columns; chosen by the error on sets that were left out."""


@dataclass(frozen=True)
class Surrogate:
    """It asks for no more sets than greedy does, unless that is fewer than a set for each round.

    Attributes:
        n_rounds: how often the quadratic is fitted anew.
        n_starts: from how many sets it is made small each time.
    """

    n_rounds: int = 6
    n_starts: int = 8

    def __call__(self, ledger: Ledger, aim: Aim) -> None:
        """Measure units alone and random sets, then fit, solve and measure in rounds.

        Raises:
            ValueError: there are fewer evaluations than all units alone and a complete set take.
        """
        draw, units = random.Random(aim.seed), ledger.units
        known: dict[UnitSet, float] = {}

        def measure(sets: Sequence[UnitSet]) -> None:
            new = [one for one in dict.fromkeys(sets) if one not in known]
            known.update(zip(new, ledger.values(new), strict=True))

        alone = [frozenset({unit}) for unit in units]
        ledger.need([frozenset(), *alone])
        measure([frozenset(), *alone])
        order = sorted(units, key=lambda unit: (known[frozenset({unit})], -units.index(unit)))
        n_left = self.n_evaluations(len(units), aim.goal.most(units)) - len(known)
        per_round = n_left // (self.n_rounds + 1)
        first = [first_that_may_go(order, aim)]
        first += [filled(frozenset(), leaning(order, draw), aim.goal) for _ in range(per_round - 1)]
        measure(first)
        for _ in range(self.n_rounds):
            if all(math.isinf(loss) for one, loss in known.items() if one):
                return
            fitted = Quadratic.fit(known, units)
            starts = sorted(ledger.complete, key=lambda one: (ledger.complete[one], ledger.depth_key(one)))
            starts = starts[: self.n_starts // 2]
            starts += [filled(frozenset(), leaning(order, draw), aim.goal) for _ in range(self.n_starts - len(starts))]
            found = {end: fitted(end) for start in starts for end in fitted.descend(start, units, aim.goal)}
            ranked = sorted(found, key=lambda one: (found[one], ledger.depth_key(one)))
            chosen = [one for one in ranked if one not in known and aim.may_go(one)][:per_round]
            if not chosen:
                return
            measure(chosen)

    def n_evaluations(self, n_units: int, n: int) -> int:
        """Most sets that are asked for: those of greedy, but at least every unit alone and one set a round."""
        greedy = n_units + sum(n_units - i for i in range(1, n))
        return max(n_units + 1 + self.n_rounds + 1, greedy)


def leaning(order: Sequence[Unit], draw: random.Random) -> list[Unit]:
    """A random order in which units that come first in ``order`` tend to come first."""
    place = {unit: i for i, unit in enumerate(order)}
    return sorted(order, key=lambda unit: draw.random() * len(order) + place[unit])


@dataclass(frozen=True)
class Quadratic:
    """The loss of a set as a sum over its units and its pairs.

    Attributes:
        offset: of the empty set.
        single: by unit; ``pair``: by two units, both ways.
    """

    offset: float
    single: Mapping[Unit, float]
    pair: Mapping[Unit, Mapping[Unit, float]]

    @staticmethod
    def fit(known: Mapping[UnitSet, float], units: Sequence[Unit]) -> Quadratic:
        """From measured sets; the one without any unit is met exactly.

        Sets whose loss is infinite are left out; a unit that is in no other set has an infinite loss. The ridge of the pairs is
        the one whose error is least on the complete sets when each fifth of them is left out.
        """
        offset = known[frozenset()]
        pairs = list(combinations(range(len(units)), 2))
        sets = [one for one in known if one and math.isfinite(known[one])]
        there = np.array([[unit in one for unit in units] for one in sets], dtype=float)
        rows = np.hstack([there, np.stack([there[:, i] * there[:, j] for i, j in pairs], axis=1)]) if pairs else there
        losses = np.array([known[one] - offset for one in sets])
        ridge = min(RIDGES, key=lambda ridge: _error(rows, losses, len(units), ridge))
        found = _solved(rows, losses, len(units), ridge)
        found[: len(units)][~there.any(axis=0)] = math.inf
        pair: dict[Unit, dict[Unit, float]] = {unit: {} for unit in units}
        for (i, j), value in zip(pairs, found[len(units) :], strict=True):
            pair[units[i]][units[j]] = pair[units[j]][units[i]] = float(value)
        return Quadratic(offset, dict(zip(units, map(float, found[: len(units)]), strict=True)), pair)

    def __call__(self, off: UnitSet) -> float:
        ordered = sorted(off)
        singles = sum(self.single[unit] for unit in ordered)
        return self.offset + singles + sum(self.pair[a][b] for a, b in combinations(ordered, 2))

    def descend(self, start: UnitSet, units: Sequence[Unit], goal: Quotas) -> list[UnitSet]:
        """The sets on the way down from a start, each the best swap of one unit for as many as meet the goal again."""
        way = [start]
        while len(way) <= len(units):
            here = way[-1]
            swaps = {
                filled(here - {out}, [unit, *_others(units, here, unit), out], goal)
                for out in sorted(here)
                for unit in units
                if unit not in here
            } - {here}
            best = min(swaps, key=lambda one: (self(one), sorted(one)), default=here)
            if self(best) >= self(here):
                break
            way.append(best)
        return way


def _others(units: Sequence[Unit], here: UnitSet, first: Unit) -> list[Unit]:
    return [unit for unit in units if unit not in here and unit != first]


def _solved(rows: np.ndarray, losses: np.ndarray, n_units: int, ridge: float) -> np.ndarray:
    """Ridge regression; single units, which were all measured alone, are held back much less than pairs."""
    scale = max(1e-12, float(np.mean(np.square(rows))))
    penalty = np.full(rows.shape[1], ridge * scale * len(rows))
    penalty[:n_units] *= 1e-3
    weighted = rows / penalty
    # The system of the sets: there are far fewer of them than pairs.
    return weighted.T @ np.linalg.solve(rows @ weighted.T + np.eye(len(rows)), losses)


def _error(rows: np.ndarray, losses: np.ndarray, n_units: int, ridge: float) -> float:
    """Mean squared error on sets of several units, a fifth of them left out at a time."""
    several = np.flatnonzero(rows[:, :n_units].sum(1) > 1)
    error = 0.0
    for fold in range(min(5, len(several))):
        out = several[fold::5]
        kept = np.setdiff1d(np.arange(len(rows)), out)
        error += float(np.square(rows[out] @ _solved(rows[kept], losses[kept], n_units, ridge) - losses[out]).sum())
    return error
