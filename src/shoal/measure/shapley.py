"""Shapley values of units: the mean growth of the loss when a unit goes, over all orders in which units can go.

Exact for up to 12 units by all subsets; else from random orders, each of which telescopes, so that the values add up to
loss(all off) - loss(none off) whatever is drawn. A leave-one-out score looks at one place of each order alone: the code
published for the "Shapley" scores of arXiv 2407.16286 draws sets without one unit by default, and then ranks exactly as
leave-one-out.
"""

import math
import random
from itertools import combinations

import numpy as np

from shoal.measure.set_function import SetFunction, UnitSet
from shoal.words.types import UnitTable

MOST_EXACT = 12
"""Units whose subsets are all measured: 4096 evaluations."""


def shapley_values(function: SetFunction, *, n_orders: int = 50, seed: int = 0) -> UnitTable:
    """Exact values of up to 12 units, else estimates from random orders."""
    if len(function.units) <= MOST_EXACT:
        return exact_shapley(function)
    return permutation_shapley(function, n_orders=n_orders, seed=seed)


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


def _table(function: SetFunction, values: np.ndarray, stderr: np.ndarray, n: int) -> UnitTable:
    return UnitTable(
        criterion="shapley",
        units=function.units,
        values=values,
        stderr=stderr,
        unit="growth of the loss",
        higher_is_more_redundant=False,
        n_samples=n,
    )
