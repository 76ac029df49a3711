"""The course of a run: one seeded pass over the text, cut into optimiser steps by samples, sized in real tokens."""

import pytest
import torch

from shoal.text.samples import Samples
from shoal.train.config import DEFAULT_TOKENS, MOST_LR, TrainConfig, TrainingPhase
from shoal.train.course import eval_interval, plan_courses

LENGTHS_N = torch.tensor([4, 2, 3, 4, 1 + 1, 4, 3])  # 22 tokens
IDS_NT = torch.arange(7 * 4).reshape(7, 4)
TEXT = Samples(IDS_NT, LENGTHS_N, "training", "seven documents", "h", 0)


def only_course(text, config):
    (course,) = plan_courses(text, config)
    return course


def test_a_pass_reads_every_sample_once_in_an_order_of_the_seed():
    orders = [only_course(TEXT, TrainConfig(seed=seed, batch=3)).samples.ids_NT[:, 0].tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == IDS_NT[:, 0].tolist()


def test_steps_are_ceil_of_samples_by_batch_and_pieces_hold_all_of_them():
    course = only_course(TEXT, TrainConfig(batch=3, micro_batch=2))
    assert course.n_steps == 3
    sizes = [[len(piece.ids_BT) for piece in course.step(index)] for index in range(3)]
    assert sizes == [[2, 1], [2, 1], [1]]
    read = torch.cat([piece.ids_BT[:, 0] for index in range(3) for piece in course.step(index)])
    assert torch.equal(read, course.samples.ids_NT[:, 0])


@pytest.mark.parametrize("tokens", [1, 2, 9, 21, 22])
def test_it_stops_with_the_sample_that_reaches_the_tokens(tokens):
    samples = only_course(TEXT, TrainConfig(tokens=tokens)).samples
    assert samples.n_tokens >= tokens > samples.n_tokens - int(samples.lengths_N[-1])


def test_fewer_tokens_are_a_prefix_of_more():
    few, many = (only_course(TEXT, TrainConfig(tokens=n)).samples for n in (8, 20))
    assert torch.equal(few.ids_NT, many.ids_NT[: few.n_samples])


def test_more_tokens_than_the_text_holds_are_refused():
    with pytest.raises(ValueError, match=r"tokens=23 .*hold 22 tokens of seven documents; give more text"):
        only_course(TEXT, TrainConfig(tokens=23))


def test_unstated_tokens_are_the_default_or_all_there_are():
    assert only_course(TEXT, TrainConfig()).samples.n_tokens == 22
    n = DEFAULT_TOKENS // 100 + 50
    long = Samples(torch.zeros(n, 100, dtype=torch.long), torch.full((n,), 100), "training", "long", "h", 0)
    assert only_course(long, TrainConfig()).samples.n_tokens == DEFAULT_TOKENS


THIRDS = (TrainingPhase(objective="hidden_mse", share=2 / 3, rate=0.5), TrainingPhase(objective="forward_kl", share=1 / 3))


@pytest.mark.parametrize("tokens", [None, 12])
def test_stages_that_state_shares_divide_the_tokens_of_the_run(tokens):
    config = TrainConfig(stages=THIRDS, tokens=tokens)
    first, second = plan_courses(TEXT, config)
    whole = only_course(TEXT, TrainConfig(tokens=tokens)).samples
    together = torch.cat([first.samples.ids_NT, second.samples.ids_NT])
    assert torch.equal(together[: whole.n_samples], whole.ids_NT[: len(together)]), "one reading, front to back"
    assert first.samples.n_tokens >= 2 / 3 * whole.n_tokens - 1 and config.all_tokens() == tokens
    assert config.with_rates(4096) == config.with_rates(4096).with_rates(4096), "as a checkpoint is resumed"
    assert [stage.lr for stage in config.with_rates(4096).stages] == [pytest.approx(1e-4), 2e-4]


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(stages=(TrainingPhase(share=0.7), TrainingPhase(share=0.7))), "add up to 1.4"),
        (dict(stages=(TrainingPhase(share=0.5), TrainingPhase())), "its own tokens, or each its share"),
        (dict(stages=(TrainingPhase(tokens=5), TrainingPhase(tokens=5)), tokens=9), "leave out tokens"),
        (dict(stages=THIRDS, lr=1e-3), "leave out lr"),  # Only one of them multiplies it.
    ],
)
def test_stages_give_one_answer(wrong, said):
    with pytest.raises(ValueError, match=said):
        TrainConfig(**wrong)


def test_rates_multiply_the_learning_rate_of_the_run():
    stages = (TrainingPhase(rate=0.5, share=0.5), TrainingPhase(rate=0.25, share=0.5))
    found = TrainConfig(stages=stages, lr=1e-3, min_lr=1e-4).with_rates(4096)
    assert [(one.lr, one.min_lr) for one in found.stages] == [(5e-4, 5e-5), (2.5e-4, 2.5e-5)]
    assert found.with_rates(4096) == found


@pytest.mark.parametrize("wrong", [dict(tokens=5, share=0.5), dict(lr=1e-3, rate=0.5)])
def test_a_stage_gives_one_answer(wrong):
    with pytest.raises(ValueError, match="two answers; give one of them"):
        TrainingPhase(**wrong)


@pytest.mark.parametrize(
    "n_steps,n_tokens,selection,expected",
    [
        (1000, 1_000_000, 10_000, 50),
        (100, 1_000_000, 10_000, 5),
        (100, 1_000_000, 100_000, 20),
        (100, 1000, 9999, 50),
        (1, 9, 9, 1),
    ],
)
def test_validations_are_about_twenty_and_fewer_where_they_cost(n_steps, n_tokens, selection, expected):
    got = eval_interval(None, n_steps=n_steps, n_tokens=n_tokens, selection_tokens=selection)
    assert got == expected
    assert eval_interval(7, n_steps=n_steps, n_tokens=n_tokens, selection_tokens=selection) == 7


def test_a_floor_above_the_peak_is_refused():
    with pytest.raises(ValueError, match="min_lr=0.002 needs to be at most lr=0.001"):
        TrainConfig(lr=1e-3, min_lr=2e-3)


def test_the_learning_rate_follows_the_width_from_the_papers_anchor():
    assert TrainingPhase().rates(4096) == (2e-4, pytest.approx(2e-5))
    assert TrainingPhase().rates(1024)[0] == pytest.approx(8e-4)
    assert TrainingPhase().rates(8)[0] == MOST_LR
    assert TrainingPhase(lr=3e-4).rates(8) == (3e-4, pytest.approx(3e-5))
    assert TrainingPhase(lr=3e-4, min_lr=0.0).rates(8) == (3e-4, 0.0)
    with pytest.raises(ValueError, match="min_lr=0.001 needs to be at most lr=0.0002 .*4096"):
        TrainingPhase(min_lr=1e-3).rates(4096)
