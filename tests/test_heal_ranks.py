"""Rank schedules: equal budgets, and where they put the ranks."""

import dataclasses

import pytest
from heal_world import KEPT, config, world
from hypothesis import given
from hypothesis import strategies as st

from shoal.train.heal.cut_place import CutPlace
from shoal.train.heal.ranks import RANKS, RankEvidence, divided
from shoal.train.heal.train import prepare


@pytest.mark.parametrize("name", RANKS)
def test_every_schedule_costs_what_the_uniform_rank_costs(name):
    cut = CutPlace.of_kept((0, 1, 2, 3, 8, 9), 10)
    evidence = RankEvidence(6, cut, (0.1, 0.0, 0.3, 2.0, 0.5, 0.2))
    ranks = divided(RANKS.named(name).weights(evidence), [30] * 6, 8)
    assert sum(ranks) == 8 * 6 and min(ranks) >= 1


@given(st.lists(st.tuples(st.floats(0.01, 10), st.integers(1, 50)), min_size=1, max_size=12), st.integers(1, 32))
def test_ranks_never_cost_more_than_the_budget_and_nearly_use_it(layers, rank):
    weights, costs = [w for w, _ in layers], [c for _, c in layers]
    ranks = divided(weights, costs, rank)
    cost = sum(r * c for r, c in zip(ranks, costs, strict=True))
    assert cost <= rank * sum(costs)
    assert all(r >= 1 for r in ranks)


def test_rising_is_the_papers_line():
    # PRILoRA: from 4 to 12 where the average is 8.
    ranks = divided(RANKS["rising"].weights(RankEvidence(5)), [10] * 5, 8)
    assert ranks == (4, 6, 8, 10, 12)
    assert divided(RANKS["falling"].weights(RankEvidence(5)), [10] * 5, 8) == (12, 10, 8, 6, 4)


def test_no_layer_gets_more_than_its_maps_are_wide():
    """It was refused, after all the work before it, where the schedule and not the rank that was asked for led there."""
    assert divided([1, 1, 1, 9], [10] * 4, 4, most=8) == (3, 3, 2, 8)
    assert divided([0, 0, 1, 1], [10] * 4, 6, most=8) == (4, 4, 8, 8)
    assert divided([0, 0, 1, 1], [10] * 4, 8, most=8) == (8, 8, 8, 8)


def test_near_cut_is_largest_on_both_sides_of_the_cut():
    cut = CutPlace.of_kept((0, 1, 2, 3, 8, 9), 10)
    assert cut.interfaces == (4,) and cut.distances() == (3, 2, 1, 0, 0, 1)
    weights = RANKS["near_cut"].weights(RankEvidence(6, cut))
    assert weights == [1 / 4, 1 / 3, 1 / 2, 1, 1, 1 / 2]


def test_cuts_at_the_ends_have_their_interfaces():
    assert CutPlace.of_kept((2, 3), 4).interfaces == (0,)
    assert CutPlace.of_kept((0, 1), 4).interfaces == (2,)
    assert CutPlace.of_kept((0, 1), 4).pairs("interface") == ((2, 4),)
    assert CutPlace.of_kept((0, 3), 5).pairs("every") == ((1, 3), (2, 5))
    with pytest.raises(ValueError, match="every"):
        CutPlace.of_kept((0, 1), 2).pairs("interface")
    with pytest.raises(ValueError, match="increasing"):
        CutPlace.of_kept((1, 0), 2)


def test_adapters_have_the_ranks_of_the_schedule_and_one_scale():
    student, lesson = world()
    pupil = prepare(student, config(ranks="rising", rank=6, alpha=12.0), lesson)
    assert pupil.ranks == (3, 5, 7, 9)
    scales = {module.scaling["default"] for module in pupil.model.modules() if hasattr(module, "lora_A")}
    assert scales == {2.0}


def test_scores_are_measured_and_the_cut_is_counted_to_the_layer_before_it():
    student, lesson = world()
    pupil = prepare(student, config(ranks="from_scores", rank=3), lesson)
    assert KEPT == (0, 1, 4, 5) and pupil.ranks[1] == max(pupil.ranks)
    assert pupil.ranks[0] == 1  # Before the cut nothing differs.


def test_schedules_that_read_the_cut_or_the_teacher_ask_for_them():
    student, lesson = world()
    for ranks, without in (("near_cut", "cut"), ("from_scores", "cut"), ("from_scores", "teacher")):
        with pytest.raises(ValueError, match="--plan" if without == "cut" else "--teacher"):
            prepare(student, config(ranks=ranks), dataclasses.replace(lesson, **{without: None}))
