"""The speed of a draft follows from acceptance and cost: closed forms, a simulation, and the figures of the log."""

import random

import pytest

from shoal.evaluate.draft import MOST_DRAFTED, best_draft, draft_speed


@pytest.mark.parametrize("k", [1, 2, 5])
def test_closed_forms(k):
    assert draft_speed(0.0, 0.5, k) == 1 / (1 + 0.5 * k), "nothing accepted: the drafts are lost"
    assert draft_speed(1.0, 0.5, k) == (k + 1) / (1 + 0.5 * k), "everything accepted"
    a, c = 0.7, 0.3
    assert draft_speed(a, c, k) == pytest.approx((1 - a ** (k + 1)) / ((1 - a) * (1 + k * c)))


def test_one_drafted_token_pays_when_acceptance_exceeds_cost():
    for a, c in ((0.6, 0.5), (0.5, 0.6), (0.86, 0.75), (0.3, 0.25)):
        assert (draft_speed(a, c, 1) > 1) == (a > c)


@pytest.mark.parametrize(("a", "c", "k", "speed"), [(0.86, 0.75, 1, 1.06), (0.86, 0.5, 2, 1.30), (0.7, 0.25, 2, 1.46)])
def test_worked_examples(a, c, k, speed):
    assert draft_speed(a, c, k) == pytest.approx(speed, abs=0.005)


def test_a_simulation_agrees():
    rng, a, c, k = random.Random(0), 0.7, 0.25, 3
    made = cost = 0.0
    for _ in range(40_000):
        n = 0
        while n < k and rng.random() < a:
            n += 1
        made += n + 1  # The token of the teacher itself comes on top.
        cost += 1 + k * c
    assert made / cost == pytest.approx(draft_speed(a, c, k), rel=0.01)


@pytest.mark.parametrize(("a", "c", "k"), [(1.0, 0.1, MOST_DRAFTED), (0.0, 0.5, 1), (0.86, 0.5, 2)])
def test_the_best_number_of_tokens(a, c, k):
    assert best_draft(a, c).n_drafted == k
    assert best_draft(a, c).speed == max(draft_speed(a, c, n) for n in range(1, MOST_DRAFTED + 1))
