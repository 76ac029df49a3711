"""Shapley values of units: the mean growth of the loss when a unit goes, over all orders in which units can go.

Exact for up to 12 units by all subsets; else from random orders, each of which telescopes, so that the values add up to
loss(all off) - loss(none off) whatever is drawn. A leave-one-out score looks at one place of each order alone: the code
published for the "Shapley" scores of arXiv 2407.16286 draws sets without one unit by default, and then ranks exactly as
leave-one-out.
"""

from __future__ import annotations

import math
import random
from itertools import combinations

import numpy as np

from shoal.measure.set_function import SetFunction, UnitSet
from shoal.words.types import UnitTable

MOST_EXACT = 12
"""Units whose subsets are all measured: 4096 evaluations."""


def exact_shapley(function: SetFunction) -> UnitTable:
    """The Shapley value of every unit, from all 2^M subsets.

    Raises:
        ValueError: more than 12 units.
    """
    units = function.units
    n = len(units)
    if n > MOST_EXACT:
        raise ValueError(
            f"exact Shapley values of {n} units need {2**n} evaluations; at most {MOST_EXACT} units, or use orders"
        )
    sets = [frozenset(chosen) for size in range(n + 1) for chosen in combinations(units, size)]
    loss = dict(zip(sets, function.values(sets), strict=True))
    values = []
    for unit in units:
        without = [one for one in sets if unit not in one]
        weights = [math.factorial(len(one)) * math.factorial(n - 1 - len(one)) / math.factorial(n) for one in without]
        values.append(sum(w * (loss[one | {unit}] - loss[one]) for w, one in zip(weights, without, strict=True)))
    return _table(function, np.array(values), np.zeros(n), 0)


def permutation_shapley(function: SetFunction, *, n_orders: int = 50, seed: int = 0) -> UnitTable:
    """Estimates from random orders, with the standard error of their mean (NaN for one order).

    At most n_orders (M - 1) + 2 evaluations; sets that orders share are measured once, and the sets of one order together.
    Raises:
        ValueError: no order.
    """
    if n_orders < 1:
        raise ValueError(f"n_orders={n_orders} needs at least 1")
    units = function.units
    draw = random.Random(seed)
    orders = [draw.sample(range(len(units)), len(units)) for _ in range(n_orders)]
    growth = np.zeros((n_orders, len(units)))
    for row, order in enumerate(orders):
        sets: list[UnitSet] = [frozenset(units[i] for i in order[:n]) for n in range(len(units) + 1)]
        growth[row, order] = np.diff(function.values(sets))
    stderr = growth.std(axis=0, ddof=1) / math.sqrt(n_orders) if n_orders > 1 else np.full(len(units), np.nan)
    return _table(function, growth.mean(axis=0), stderr, n_orders)


def windowed_growth(function: SetFunction, *, most: int = 3) -> UnitTable:
    """The estimator of Investigating Layer Importance (arXiv 2409.14381): growth at the ends of windows that are off.

    The value of unit i is the mean, over all windows of up to ``most`` consecutive units that begin or end with i, of
    loss(window off) - loss(window without i off). With windows of one unit it is leave-one-out. It is called Shapley there, but
    it looks at nearly whole models alone, and its values do not add up to the loss of everything. On an additive function it is
    exact. It asks for 1 + sum over l = 1..most of (M - l + 1) sets.
    """
    units = function.units
    if not 1 <= most <= len(units):
        raise ValueError(f"windows of {most} units need 1..{len(units)}")
    windows = [units[i : i + n] for n in range(1, most + 1) for i in range(len(units) - n + 1)]
    sets = [frozenset(window) for window in windows]
    loss = dict(zip([frozenset(), *sets], function.values([frozenset(), *sets]), strict=True))
    growths: dict[int, list[float]] = {i: [] for i in range(len(units))}
    for window in windows:
        whole = frozenset(window)
        for unit in {window[0], window[-1]}:
            growths[units.index(unit)].append(loss[whole] - loss[whole - {unit}])
    return _table(
        function, np.array([np.mean(growths[i]) for i in range(len(units))]), np.full(len(units), np.nan), 0, "windowed"
    )


def _table(function: SetFunction, values: np.ndarray, stderr: np.ndarray, n: int, name: str = "shapley") -> UnitTable:
    return UnitTable(
        criterion=name,
        units=function.units,
        values=values,
        stderr=stderr,
        unit="growth of the loss",
        higher_is_more_redundant=False,
        n_samples=n,
    )
