"""The learning rate is its closed form, exact where it is named: first, peak and last step."""

import math

import pytest

from shoal.train.schedule import learning_rate, n_warmup_steps


def rates(n_steps, warmup, lr=1e-3, min_lr=1e-4):
    return [learning_rate(step, n_steps=n_steps, lr=lr, min_lr=min_lr, warmup=warmup) for step in range(n_steps)]


@pytest.mark.parametrize("n_steps,warmup", [(100, 0.05), (37, 0.1), (10, 0.3), (1000, 0.01)])
def test_first_peak_and_last_step(n_steps, warmup):
    w = n_warmup_steps(n_steps, warmup)
    got = rates(n_steps, warmup)
    assert w == round(n_steps * warmup)
    assert got[0] == 1e-3 / w if w else 1e-3
    assert got[max(w - 1, 0)] == got[w] == max(got) == 1e-3
    assert got[-1] == 1e-4 == min(got[w:])
    assert got[:w] == sorted(got[:w]) and got[w:] == sorted(got[w:], reverse=True)


def test_without_warmup_the_middle_is_the_mean_of_peak_and_floor():
    assert rates(101, 0.0)[50] == pytest.approx((1e-3 + 1e-4) / 2, rel=1e-12)
    assert rates(101, 0.0)[25] == pytest.approx(1e-4 + 9e-4 * (1 + math.sqrt(0.5)) / 2, rel=1e-12)


def test_the_whole_run_as_warmup_ends_at_the_peak():
    assert rates(4, 1.0) == [2.5e-4, 5e-4, 7.5e-4, 1e-3]


def test_one_step_runs_at_the_peak():
    assert rates(1, 0.0) == [1e-3]
    assert rates(1, 1.0) == [1e-3]


def test_equal_peak_and_floor_is_constant():
    assert rates(5, 0.0, min_lr=1e-3) == [1e-3] * 5


@pytest.mark.parametrize("step", [-1, 10])
def test_a_step_outside_the_run_is_refused(step):
    with pytest.raises(ValueError, match=r"0\.\.9"):
        learning_rate(step, n_steps=10, lr=1.0, min_lr=0.0, warmup=0.1)


def test_a_floor_above_the_peak_is_refused():
    with pytest.raises(ValueError, match="min_lr=2"):
        learning_rate(0, n_steps=10, lr=1.0, min_lr=2.0, warmup=0.1)
