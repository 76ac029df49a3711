"""Shapley values, windows and leave-one-out of pure set functions: axioms, closed forms, numbers of sets."""

import itertools
import math
import statistics

import numpy as np
import pytest
from test_search import PRICES, additive, function, pairs

from shoal.measure.shapley import exact_shapley, permutation_shapley
from shoal.measure.windowed import windowed_growth


def naive_shapley(loss, n):
    found = [0.0] * n
    for order in itertools.permutations(range(n)):
        for place, i in enumerate(order):
            found[i] += (loss(set(order[: place + 1])) - loss(set(order[:place]))) / math.factorial(n)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_exact_values_are_the_mean_over_all_orders(seed):
    loss = pairs(seed, 6)
    v = function(loss, 6)
    assert exact_shapley(v).values == pytest.approx(naive_shapley(loss, 6))
    assert v.n_evaluations == 2**6


def test_the_axioms_hold():
    """Unit 1 does nothing; units 2 and 5 are twins; values add up; and values of a sum are sums of values."""

    def loss(off):
        return 2.0 * (0 in off) * (3 in off) + len({2, 5} & off) ** 2 + 0.5 * (4 in off)

    other = pairs(0, 6)
    values = exact_shapley(function(loss, 6)).values
    assert values[1] == pytest.approx(0.0, abs=1e-12)
    assert values[2] == pytest.approx(values[5]) and values[0] == pytest.approx(values[3])
    assert values.sum() == pytest.approx(loss(set(range(6))) - loss(set()))
    both = exact_shapley(function(lambda off: loss(off) + other(off), 6)).values
    assert both == pytest.approx(values + exact_shapley(function(other, 6)).values)


@pytest.mark.parametrize("n_orders", [1, 7])
def test_every_order_telescopes(n_orders):
    loss = pairs(5, 9)
    table = permutation_shapley(function(loss, 9), n_orders=n_orders, seed=1)
    assert table.values.sum() == pytest.approx(loss(set(range(9))) - loss(set()), abs=1e-9)
    assert np.isnan(table.stderr).all() == (n_orders == 1)


def test_estimates_approach_the_exact_values_as_their_intervals_say():
    loss = pairs(6, 8)
    exact = exact_shapley(function(loss, 8)).values
    apart = []
    for seed in range(30):
        table = permutation_shapley(function(loss, 8), n_orders=20, seed=seed)
        apart += list((table.values - exact) / table.stderr)
    # The 0.935 comes from t with 19 degrees of freedom.
    assert statistics.fmean(abs(z) < 1.96 for z in apart) == pytest.approx(0.94, abs=0.04)
    few, many = (abs(permutation_shapley(function(loss, 8), n_orders=n, seed=0).values - exact).mean() for n in (10, 1000))
    assert many < few / 4  # 1 / sqrt(100) on average


def test_orders_ask_for_no_more_sets_than_there_are():
    v = function(pairs(0, 10), 10)
    permutation_shapley(v, n_orders=30)
    assert v.n_evaluations <= 30 * 9 + 2


def test_more_than_twelve_units_are_refused_and_no_order_too():
    with pytest.raises(ValueError, match="8192 evaluations; at most 12"):
        exact_shapley(function(len, 13))
    with pytest.raises(ValueError, match="at least 1"):
        permutation_shapley(function(len, 3), n_orders=0)


def test_present_less_absent_over_sets_that_lack_one_unit_ranks_as_leave_one_out():
    """What the code of arXiv 2407.16286 draws by default, and calls Shapley values."""
    loss, n = pairs(4, 9), 9
    alone = [loss({i}) for i in range(n)]
    present_less_absent = [statistics.fmean(alone[:i] + alone[i + 1 :]) - alone[i] for i in range(n)]
    assert sorted(range(n), key=alone.__getitem__) == sorted(range(n), key=lambda i: -present_less_absent[i])
    exact = exact_shapley(function(loss, n)).values
    assert sorted(range(n), key=alone.__getitem__) != sorted(range(n), key=exact.__getitem__)


def test_windows_of_one_unit_are_leave_one_out_and_an_additive_function_is_exact():
    loss = pairs(2, 8)
    alone = windowed_growth(function(loss, 8), most=1)
    assert alone.values == pytest.approx([loss({i}) - loss(set()) for i in range(8)])
    assert windowed_growth(function(additive, 8), most=4).values == pytest.approx(PRICES)


def test_windows_do_not_add_up_to_the_loss_of_everything():
    """The estimator is published as a Shapley value; it is none."""
    loss = pairs(2, 8)
    assert windowed_growth(function(loss, 8)).values.sum() != pytest.approx(loss(set(range(8))), rel=0.05)
    assert exact_shapley(function(loss, 8)).values.sum() == pytest.approx(loss(set(range(8))))


@pytest.mark.parametrize("n_units, most, n", [(8, 1, 9), (8, 3, 22), (64, 3, 190), (64, 10, 596)])
def test_windows_ask_for_as_many_sets_as_their_formula(n_units, most, n):
    v = function(len, n_units)
    windowed_growth(v, most=most)
    assert v.n_evaluations == n == 1 + sum(n_units - length + 1 for length in range(1, most + 1))


def test_windows_need_units():
    with pytest.raises(ValueError, match=r"windows of 9 units need 1..8"):
        windowed_growth(function(len, 8), most=9)
