"""Searches on set functions in plain Python: optimal where they must be, counted by formula, equal for equal seeds."""

import itertools
import math
import random
import statistics

import numpy as np
import pytest

from shoal.measure.set_function import CountedSets
from shoal.select.request import Evidence, Request
from shoal.select.search.evolution import Evolution
from shoal.select.search.greedy import Greedy
from shoal.select.search.greedy_refit import GreedyRefit
from shoal.select.search.one_shot import n_one_shot_evaluations, one_shot
from shoal.select.search.policy_gradient import PolicyGradient, estimated_gradient, off_by, projected
from shoal.select.search.quotas import count
from shoal.select.search.search_contract import Aim, anything_goes, run_search
from shoal.select.search.surrogate import Quadratic, Surrogate
from shoal.select.shortlist import candidates_or_reason
from shoal.select.table import SELECTORS
from shoal.words.types import Unit, model_units

SEARCHES = {
    "greedy": Greedy(),
    "beam": Greedy(width=3),
    "surrogate": Surrogate(),
    "one-shot": one_shot,
    "evolution": Evolution(n_generations=30),
    "policy-gradient": PolicyGradient(),
}
PRICES = [3.0, 0.5, 7.0, 0.25, 2.0, 1.0, 4.0, 0.125]


def function(loss, n_units, *, limit=None, choice="layers"):
    """A set function of the indices that are off."""
    units = model_units(n_units, choice)
    return CountedSets(lambda sets: [loss({units.index(unit) for unit in one}) for one in sets], units, limit=limit)


def additive(off):
    return sum(PRICES[i] for i in off)


def pairs(seed, n, *, spread=0.5):
    """A random function with an interaction for every pair."""
    draw = random.Random(seed)
    single = [draw.random() for _ in range(n)]
    pair = {key: draw.gauss(0, spread) for key in itertools.combinations(range(n), 2)}
    return lambda off: sum(single[i] for i in sorted(off)) + sum(pair[key] for key in itertools.combinations(sorted(off), 2))


def indices(off):
    return sorted(unit.index for unit in off)


def optimum(loss, n_units, n):
    return min(loss(set(one)) for one in itertools.combinations(range(n_units), n))


# -- all searches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("name", SEARCHES)
def test_an_additive_function_is_solved(name, n):
    answer = run_search(SEARCHES[name], function(additive, 8), Aim(count(n)))
    assert answer.sets[0][1] == optimum(additive, 8, n)


@pytest.mark.parametrize("name", SEARCHES)
def test_equal_seeds_give_equal_answers_and_the_curve_falls_to_the_best(name):
    loss = pairs(3, 10)
    answers = [run_search(SEARCHES[name], function(loss, 10), Aim(count(4), seed=seed)) for seed in (0, 0)]
    assert answers[0] == answers[1]
    answer = answers[0]
    assert all(len(off) == 4 and value == loss(set(indices(off))) for off, value in answer.sets)
    assert [value for _, value in answer.sets] == sorted(value for _, value in answer.sets)
    assert answer.curve[-1][1] == answer.sets[0][1] and answer.curve[-1][0] <= answer.n_evaluations
    assert all(b[1] < a[1] and b[0] >= a[0] for a, b in itertools.pairwise(answer.curve))


@pytest.mark.parametrize("name", SEARCHES)
def test_what_the_family_refuses_is_worked_around(name):
    """Two of the cheapest units may not go together, and the cheapest may not go at all."""

    def may_go(off):
        return not {1, 3} <= set(indices(off)) and 7 not in indices(off)

    answer = run_search(SEARCHES[name], function(additive, 8), Aim(count(3), may_go))
    allowed = [value for off, value in answer.sets if may_go(off)]
    assert allowed[0] == min(
        additive(one) for one in itertools.combinations(range(8), 3) if 7 not in one and not {1, 3} <= set(one)
    )


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
@pytest.mark.parametrize("name", SEARCHES)
def test_a_loss_that_is_not_finite_never_wins(name, bad):
    """Without the cheapest unit, or without the first, the student overflows: the best of the others is found."""
    for broken in (7, 0):

        def loss(off, broken=broken):
            return bad if broken in off else additive(off)

        answer = run_search(SEARCHES[name], function(loss, 8), Aim(count(3)))
        others = [set(one) for one in itertools.combinations(range(8), 3) if broken not in one]
        assert answer.sets[0][1] == min(map(additive, others))
        assert [value for _, value in answer.sets] == sorted(value for _, value in answer.sets)
        assert all(math.isfinite(value) for _, value in answer.curve) and answer.curve[-1][1] == answer.sets[0][1]


@pytest.mark.parametrize("name", SEARCHES)
def test_where_no_loss_is_finite_a_search_still_ends(name):
    answer = run_search(SEARCHES[name], function(lambda off: math.nan if off else 0.0, 6), Aim(count(2)))
    assert {value for _, value in answer.sets} == {math.inf} and not answer.curve


@pytest.mark.parametrize("name", ["greedy", "beam", "evolution"])
def test_a_family_that_can_lose_certain_numbers_alone_is_searched_through_others(name):
    answer = run_search(SEARCHES[name], function(additive, 8), Aim(count(4), lambda off: len(off) % 2 == 0))
    assert answer.sets[0][1] == optimum(additive, 8, 4)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_that_runs_out_of_evaluations_answers_with_its_best(name):
    loss = pairs(2, 8)
    n_needed = run_search(SEARCHES[name], function(loss, 8), Aim(count(3))).n_evaluations
    with pytest.raises(ValueError, match="0 evaluations end before a set of 3 units"):
        run_search(SEARCHES[name], function(loss, 8, limit=0), Aim(count(3)))
    if name != "one-shot":  # It measures its only complete set last.
        answer = run_search(SEARCHES[name], function(loss, 8, limit=n_needed - 2), Aim(count(3)))
        assert answer.is_cut_short and answer.n_evaluations == n_needed - 2


@pytest.mark.parametrize("name, n_least", [("greedy", 9), ("beam", 9), ("one-shot", 9), ("surrogate", 10)])
def test_too_few_evaluations_for_any_answer_are_refused_before_the_first(name, n_least):
    v = function(pairs(2, 8), 8, limit=n_least - 1)
    with pytest.raises(ValueError, match=f"{n_least - 1} evaluations end before a set of 3 units is measured; allow at least"):
        run_search(SEARCHES[name], v, Aim(count(3)))
    assert v.n_measured == 0
    assert run_search(SEARCHES[name], function(pairs(2, 8), 8, limit=n_least), Aim(count(3))).sets


def refitted(loss, n_units, limit):
    """A function that settles and forgets it at once: greedy with a repair inside is then greedy."""
    v = function(loss, n_units, limit=limit)
    v.settle = lambda off: None
    return v


def apart(off):
    """No two neighbours may go together."""
    return all(b - a > 1 for a, b in itertools.pairwise(indices(off)))


@pytest.mark.parametrize("search", [Greedy(), Greedy(width=2), Greedy(front=0.3), GreedyRefit()], ids=str)
@pytest.mark.parametrize("may_go", [anything_goes, apart])
def test_a_greedy_search_with_too_few_evaluations_ends_with_a_complete_set(search, may_go):
    """Every limit from that of one shot to its own: sets that are complete and may go, no more of them than allowed, the front
    left alone; where nothing is in its way it is itself."""
    loss = pairs(5, 12)
    whole = run_search(search, refitted(loss, 12, None), Aim(count(4), may_go))
    for limit in range(13, whole.n_evaluations + 3):
        answer = run_search(search, refitted(loss, 12, limit), Aim(count(4), may_go))
        assert all(len(off) == 4 and value == loss(set(indices(off))) for off, value in answer.sets)
        assert any(may_go(off) for off, _ in answer.sets)
        assert answer.n_evaluations <= limit and answer.is_cut_short == (limit < whole.n_evaluations)
        assert not getattr(search, "front", 0) or min(min(indices(off)) for off, _ in answer.sets) >= 4
        if limit >= whole.n_evaluations:
            assert answer == whole


@pytest.mark.parametrize("search", [Greedy(), GreedyRefit()], ids=str)
@pytest.mark.parametrize("may_go", [anything_goes, apart])
@pytest.mark.parametrize("seed", range(5))
def test_greedy_with_as_many_evaluations_as_one_shot_is_one_shot(search, may_go, seed):
    loss = pairs(seed, 10)
    one = run_search(one_shot, function(loss, 10), Aim(count(4), may_go))
    answer = run_search(search, refitted(loss, 10, 11), Aim(count(4), may_go))
    assert may_go(answer.sets[0][0]) and answer.sets == one.sets and answer.n_evaluations == one.n_evaluations == 11


@pytest.mark.parametrize("limit", [None, 9, 13, 18])
@pytest.mark.parametrize("name", ["greedy", "beam", "one-shot", "greedy-refit"])
def test_why_nothing_may_go_is_said_by_what_was_measured(name, limit):
    v = refitted(pairs(3, 8), 8, limit)
    request = Request(n_layers=8, n=3, selector=name)
    with pytest.raises(ValueError, match=f"'{name}' finds no 3 layers that can go .its first choice, .*: never"):
        candidates_or_reason(
            SELECTORS[name], name, evidence=Evidence(value=v, refuse=lambda structure: "never"), request=request
        )
    assert v.n_evaluations == len(v.asked) <= (limit or 99)


@pytest.mark.parametrize("name", SEARCHES)
def test_impossible_wishes_are_refused_in_one_line(name):
    with pytest.raises(ValueError, match="9 units to switch off need 1..8"):
        run_search(SEARCHES[name], function(additive, 8), Aim(count(9)))


@pytest.mark.parametrize("name", ["greedy", "beam", "one-shot"])
def test_of_equal_losses_the_deeper_units_go(name):
    assert indices(run_search(SEARCHES[name], function(lambda off: 1.0, 6), Aim(count(2))).sets[0][0]) == [4, 5]


# -- each of them ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_units, n", [(8, 1), (8, 3), (18, 6), (5, 5)])
def test_greedy_asks_for_as_many_sets_as_its_formula(n_units, n):
    answer = run_search(Greedy(), function(pairs(0, n_units), n_units), Aim(count(n)))
    assert answer.n_evaluations == Greedy().n_evaluations(n_units, n) == n * n_units - n * (n - 1) // 2


def test_one_shot_asks_for_every_unit_and_its_choice():
    for n, expected in ((4, 10), (1, 9)):
        answer = run_search(one_shot, function(pairs(0, 9), 9), Aim(count(n)))
        assert answer.n_evaluations == n_one_shot_evaluations(9, n) == expected


@pytest.mark.parametrize("n_units, n", [(6, 2), (9, 4), (14, 3)])
@pytest.mark.parametrize("name", ["beam", "surrogate", "evolution", "policy-gradient"])
def test_no_search_asks_for_more_than_it_says(name, n_units, n):
    answer = run_search(SEARCHES[name], function(pairs(0, n_units), n_units), Aim(count(n)))
    assert answer.n_evaluations <= SEARCHES[name].n_evaluations(n_units, n)


def test_greedy_sees_an_interaction_that_one_shot_cannot():
    """Units 3 and 6 are free alone and costly together."""

    def loss(off):
        return 0.1 * sum(i not in (3, 6) for i in off) + 10 * ({3, 6} <= set(off))

    assert indices(run_search(one_shot, function(loss, 8), Aim(count(2))).sets[0][0]) == [3, 6]
    best, value = run_search(Greedy(), function(loss, 8), Aim(count(2))).sets[0]
    assert value == 0.1 and len({3, 6} & set(indices(best))) == 1


def test_a_wider_beam_finds_what_greedy_misses():
    """Units 0 and 1 are free only together; each alone is dearer than unit 2."""

    def loss(off):
        return 2.0 * len({0, 1} & off) - 4.0 * ({0, 1} <= off) + sum(1.0 + i for i in off if i > 1) / 10

    greedy, beam = (run_search(Greedy(width=width), function(loss, 6), Aim(count(2))).sets[0] for width in (1, 6))
    assert indices(beam[0]) == [0, 1] and beam[1] == 0.0 < greedy[1]


@pytest.mark.parametrize("seed", range(5))
def test_a_beam_of_all_sets_is_exhaustive(seed):
    loss = pairs(seed, 7)
    answer = run_search(Greedy(width=10**6), function(loss, 7), Aim(count(3)))
    assert answer.sets[0][1] == pytest.approx(optimum(loss, 7, 3)) and len(answer.sets) == math.comb(7, 3)


def test_the_front_goes_last():
    """FinerCut's option: the first 40 % of units are no candidates until 40 % of all are off."""
    cheap_in_front = list(range(10))
    answer = run_search(Greedy(front=0.4), function(lambda off: sum(cheap_in_front[i] for i in off), 10), Aim(count(4)))
    assert indices(answer.sets[0][0]) == [4, 5, 6, 7]
    assert answer.n_evaluations == sum(6 - round_ for round_ in range(4))
    later = run_search(Greedy(front=0.4), function(lambda off: sum(cheap_in_front[i] for i in off), 10), Aim(count(5)))
    assert indices(later.sets[0][0]) == [0, 4, 5, 6, 7]


@pytest.mark.parametrize("m, n", [(64, 16), (10, 4), (10, 7), (3, 2), (3, 3), (2, 1), (1, 1)])
def test_a_front_asks_for_as_many_sets_as_it_says(m, n):
    greedy = Greedy(front=0.4)
    answer = run_search(greedy, function(lambda off: sum(off), m), Aim(count(n)))
    assert answer.n_evaluations == greedy.n_evaluations(m, n) and len(answer.sets[0][0]) == n


def test_the_front_of_finercut_saves_what_its_paper_counts():
    """16 of 64 sublayers: 904 sets with all of them as candidates, 488 without the front."""
    assert (Greedy().n_evaluations(64, 16), Greedy(front=0.4).n_evaluations(64, 16)) == (904, 488)


def test_both_sublayers_of_a_layer_that_does_nothing_go_first():
    units = model_units(5, "sublayers")
    planted = {Unit("attn", 2), Unit("mlp", 2)}
    prices = {unit: 0.0 if unit in planted else 1.0 + i for i, unit in enumerate(units)}
    v = CountedSets(lambda sets: [sum(prices[unit] for unit in one) for one in sets], units)
    assert run_search(Greedy(), v, Aim(count(2))).sets[0] == (frozenset(planted), 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_evolution_finds_the_optimum_of_a_small_function(seed):
    loss = pairs(seed, 10)
    answer = run_search(Evolution(n_generations=60), function(loss, 10), Aim(count(4), seed=seed))
    assert answer.sets[0][1] == pytest.approx(optimum(loss, 10, 4))
    assert answer.n_evaluations <= min(math.comb(10, 4), 61 * 16)


# -- greedy with a repair inside ---------------------------------------------------------------------------------------------


class Settling(CountedSets):
    """Units 1 and 2 are cheap together once the repair has seen that 1 is gone; before that unit 3 is cheaper beside 1."""

    def __init__(self):
        self.settled = [frozenset()]
        super().__init__(self.losses, model_units(5))

    def losses(self, sets):
        repaired = indices(self.settled[-1])
        return [self.loss(set(indices(one)), repaired) for one in sets]

    def loss(self, off, repaired):
        return sum({1: 0.1, 2: 0.5, 3: 0.3}.get(i, 9.0) for i in off) - (0.4 if 1 in repaired and 2 in off else 0.0)

    def settle(self, off):
        self.settled.append(off)


def test_a_repair_between_rounds_changes_what_goes_next():
    function_ = Settling()
    answer = run_search(GreedyRefit(), function_, Aim(count(2)))
    assert indices(answer.sets[0][0]) == [1, 2] and [indices(one) for one in function_.settled] == [[], [1]]
    assert indices(run_search(Greedy(), Settling(), Aim(count(2))).sets[0][0]) == [1, 3]
    assert answer.n_evaluations == GreedyRefit().n_evaluations(5, 2) == 9
    with pytest.raises(ValueError, match="greedy-refit refits what stays after every round"):
        run_search(GreedyRefit(), function(additive, 5), Aim(count(2)))


# -- surrogate --------------------------------------------------------------------------------------------------------------


def test_a_quadratic_is_found_again_from_enough_sets():
    loss, units = pairs(1, 6), model_units(6)
    sets = [frozenset(one) for n in range(5) for one in itertools.combinations(units, n)]
    fitted = Quadratic.fit({one: loss(set(indices(one))) for one in sets}, units)
    whole = frozenset(units)
    assert fitted(whole) == pytest.approx(loss(set(range(6))), abs=0.01)
    start = frozenset(units[:3])
    end = fitted.descend(start, units, count(3))[-1]
    assert fitted(end) <= min(fitted(end - {a} | {b}) for a in end for b in set(units) - end)


@pytest.mark.parametrize("spread", [pytest.param(0.1, marks=pytest.mark.slow), 0.5])
def test_a_surrogate_comes_nearer_to_the_optimum_than_greedy_for_as_many_sets(spread):
    """Mean over functions with an interaction for every pair; single cases go either way."""
    apart = {"greedy": [], "surrogate": []}
    for seed in range(6):
        loss = pairs(seed, 12, spread=spread)
        best = optimum(loss, 12, 5)
        answers = {name: run_search(SEARCHES[name], function(loss, 12), Aim(count(5))) for name in apart}
        assert answers["surrogate"].n_evaluations <= answers["greedy"].n_evaluations
        for name, answer in answers.items():
            apart[name].append(answer.sets[0][1] - best)
    assert statistics.fmean(apart["surrogate"]) < statistics.fmean(apart["greedy"])


# -- policy gradient -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", [0.0, 5.0])
def test_the_estimated_gradient_is_exact_on_average(baseline):
    """By enumeration of all masks of four units, weighted by their probability."""
    kept, units = [0.2, 0.5, 0.7, 0.9], model_units(4)
    loss = pairs(4, 4)

    def value(mask):
        return loss({i for i, unit in enumerate(units) if unit in off_by(units, mask)})

    def probability(mask, kept):
        return math.prod(s if m else 1 - s for m, s in zip(mask, kept, strict=True))

    def expected(kept):
        return sum(probability(mask, kept) * value(mask) for mask in itertools.product([False, True], repeat=4))

    found = np.zeros(4)
    for mask in itertools.product([False, True], repeat=4):
        found += probability(mask, kept) * np.array(estimated_gradient([value(mask)], [mask], kept, baseline=baseline))
    for u in range(4):  # The expected loss is linear in each probability.
        one, zero = ([*kept[:u], end, *kept[u + 1 :]] for end in (1.0, 0.0))
        assert found[u] == pytest.approx(expected(one) - expected(zero))


@pytest.mark.parametrize("seed", range(20))
def test_projected_probabilities_are_the_nearest_within_the_budget(seed):
    draw = random.Random(seed)
    values = [draw.uniform(-1, 2) for _ in range(6)]
    found = projected(values, most=2.5)
    assert all(0 <= s <= 1 for s in found) and sum(found) <= 2.5 + 1e-9

    def apart(other):
        return sum((a - b) ** 2 for a, b in zip(values, other, strict=True))

    for _ in range(200):
        other = [draw.random() for _ in range(6)]
        other = [s * min(1.0, 2.5 / sum(other)) for s in other]
        assert apart(found) <= apart(other) + 1e-9


def test_probabilities_stay_within_bounds_though_the_budget_holds_already():
    assert projected([1.4, -0.2, 0.5], most=3) == [1.0, 0.0, 0.5]


def test_planted_units_that_do_nothing_are_found_by_noisy_losses():
    """Ten units, two of which do nothing; noise of a twentieth; at most 1000 evaluations."""
    found = 0
    for seed in range(10):
        noise = random.Random(seed)
        prices = [0.0 if i in (3, 7) else 0.2 + 0.1 * i for i in range(10)]
        v = function(lambda off, noise=noise, prices=prices: sum(prices[i] for i in off) + noise.gauss(0, 0.05), 10, limit=1000)
        found += indices(run_search(PolicyGradient(), v, Aim(count(2), seed=seed)).sets[0][0]) == [3, 7]
    assert found >= 9
