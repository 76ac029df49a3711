"""When enough is off: equal units become the nearest number of them, unequal ones come as near as the smallest allows."""

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.measure.set_function import CountedSets
from shoal.select.search.evolution import Evolution
from shoal.select.search.greedy import Greedy
from shoal.select.search.one_shot import one_shot
from shoal.select.search.policy_gradient import PolicyGradient, projected, within
from shoal.select.search.quotas import Quota, Quotas, count
from shoal.select.search.search_contract import Aim, filled, run_search
from shoal.words.types import Unit, model_units, whole_layers

SEARCHES = {
    "greedy": Greedy(),
    "beam": Greedy(width=3),
    "one-shot": one_shot,
    "evolution": Evolution(),
    "policy": PolicyGradient(),
}
UNITS = model_units(6, "sublayers")
PARAMETERS = {unit: 4.0 if unit.kind == "attn" else 11.0 for unit in UNITS}
CACHE = {unit: float(unit.kind == "attn") for unit in UNITS}


def held(off, of_unit):
    return sum(of_unit[unit] for unit in off)


@given(st.integers(1, 8), st.fractions(min_value=Fraction(1, 50), max_value=Fraction(49, 50)))
def test_equal_units_become_the_nearest_number_and_ties_keep_more(n_units, share):
    units = model_units(n_units)
    wanted = float(share * n_units * 3)
    n = len(filled(frozenset(), units, Quotas((Quota(wanted, dict.fromkeys(units, 3.0)),))))
    assert all((abs(3 * n - wanted), n) <= (abs(3 * other - wanted), other) for other in range(n_units + 1))


@settings(max_examples=60)
@given(st.floats(5.0, 80.0), st.integers(0, 10**6))
def test_a_filled_set_is_within_half_of_the_smallest_unit_while_there_are_such(wanted, seed):
    order = random.Random(seed).sample(UNITS, len(UNITS))
    goal = Quotas((Quota(wanted, PARAMETERS),))
    off = filled(frozenset(), order, goal)
    smallest_left = any(unit.kind == "attn" for unit in UNITS if unit not in off)
    assert goal.is_met(off, UNITS)
    assert abs(held(off, PARAMETERS) - wanted) <= (2.0 if smallest_left else 11.0 / 2)
    assert len(off) <= goal.most(UNITS)


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_meets_all_shares(name):
    goal = Quotas((Quota(30.0, PARAMETERS, "parameters"), Quota(3.0, CACHE, "cache")))
    v = CountedSets(lambda sets: [sum(1 + unit.index for unit in one) ** 1.5 for one in sets], UNITS)
    answer = run_search(SEARCHES[name], v, Aim(goal))
    for off, _ in answer.sets:
        assert held(off, PARAMETERS) >= 28.0 and held(off, CACHE) >= 2.5
        assert held(off, PARAMETERS) <= 35.5 or held(off, CACHE) <= 3.5


@pytest.mark.parametrize("name", SEARCHES)
def test_the_cheaper_kind_of_unit_goes(name):
    """Attention is free here, and it holds enough."""
    goal = Quotas((Quota(16.0, PARAMETERS),))
    v = CountedSets(lambda sets: [float(sum(unit.kind == "mlp" for unit in one)) for one in sets], UNITS)
    best, loss = run_search(SEARCHES[name], v, Aim(goal)).sets[0]
    assert loss == 0.0 and all(unit.kind == "attn" for unit in best) and len(best) == 4


def test_what_no_units_hold_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"200.0% of cache is to go; the 12 units that may go hold 16.7%..100.0% of it"):
        Quotas((Quota(12.0, CACHE, "cache", 6.0),)).refuse_impossible(UNITS)
    with pytest.raises(ValueError, match=r"13 units to switch off need 1..12"):
        count(13).refuse_impossible(UNITS)


@pytest.mark.parametrize("seed", range(20))
def test_weighted_probabilities_are_the_nearest_within_the_budget(seed):
    draw = random.Random(seed)
    values, weights = [draw.uniform(-1, 2) for _ in range(5)], [draw.choice([1.0, 4.0]) for _ in range(5)]
    found = projected(values, most=3.0, held=weights)
    assert all(0 <= s <= 1 for s in found) and sum(s * w for s, w in zip(found, weights, strict=True)) <= 3.0 + 1e-9

    def apart(other):
        return sum((a - b) ** 2 for a, b in zip(values, other, strict=True))

    for _ in range(200):
        other = [draw.random() for _ in range(5)]
        scale = min(1.0, 3.0 / sum(s * w for s, w in zip(other, weights, strict=True)))
        assert apart(found) <= apart([s * scale for s in other]) + 1e-9


def test_probabilities_come_within_several_budgets():
    budgets = [([1.0, 4.0, 1.0], 2.0), ([0.0, 1.0, 1.0], 0.5)]
    found = within([0.9, 0.9, 0.9], budgets)
    assert all(sum(s * w for s, w in zip(found, held, strict=True)) <= most + 1e-6 for held, most in budgets)


def test_both_sublayers_of_a_layer_are_the_layer():
    units = [Unit("attn", 1), Unit("mlp", 1), Unit("mlp", 2), Unit("layer", 3), Unit("attn", 3)]
    assert whole_layers(units) == {Unit("layer", 1), Unit("mlp", 2), Unit("layer", 3)}
