"""Laws of debiased linear CKA: closed forms, invariances, no bias for independent features, additive sums."""

import itertools

import numpy as np
import pytest
import torch

from shoal.engine.view import Tap
from shoal.measure.cka import CkaObserver, hsic_between
from shoal.measure.scan import add_states
from shoal.words.types import Batch, Span


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def observe(states_EBTD, *, mask=None, n_tokens=24, seed=0, observer=None):
    n_ends, n_samples, length, _ = states_EBTD.shape
    observer = observer or CkaObserver(n_ends - 1, length=length, n_tokens=n_tokens, seed=seed)
    batch = Batch(torch.zeros(n_samples, length, dtype=torch.long), mask)
    observer.update(batch, {Tap("boundary", place): states_EBTD[place] for place in range(n_ends)})
    return observer


def test_hsic_equals_its_definition_as_a_sum_over_four_different_tokens():
    """Song et al. 2012: the mean over distinct i, j, q, r of k_ij (l_ij + l_qr - 2 l_iq)."""
    features = draw(2, 6, 3)
    k, other = (one @ one.T for one in features)
    fours = list(itertools.permutations(range(6), 4))
    exact = sum(k[i, j] * (other[i, j] + other[q, r] - 2 * other[i, q]) for i, j, q, r in fours) / len(fours)
    assert hsic_between(features)[0, 1] == pytest.approx(float(exact), rel=1e-10)


def test_equal_states_rotations_and_scales_are_one_shifts_are_ignored():
    first = draw(3, 32, 8)
    rotation = torch.linalg.qr(draw(8, 8, seed=1)).Q
    table = observe(torch.stack([first, first, 3 * first @ rotation + 5, -first])).tables()[0]
    np.testing.assert_allclose(table.values[np.triu_indices(4, 1)], 1.0, rtol=1e-9)
    np.testing.assert_allclose(table.stderr[np.triu_indices(4, 1)], 0.0, atol=1e-6)
    assert table.name == "cka/rest" and table.higher_is_more_redundant


def test_independent_features_are_zero_within_the_error_though_tokens_are_few():
    """The plain estimator would read near 1 here: 24 tokens in 64 dimensions."""
    states = draw(2, 200, 32, 64)
    table = observe(states).tables()[0]
    assert abs(table[Span(0, 1)]) < 4 * table.stderr[0, 1] < 0.1


def test_standard_error_agrees_with_the_spread_of_repetitions():
    def once(seed):
        shared = draw(60, 16, 6, seed=seed)
        states = torch.stack([shared, shared + draw(60, 16, 6, seed=1000 + seed)])
        table = observe(states, n_tokens=12).tables()[0]
        return table[Span(0, 1)], table.stderr[0, 1]

    values, errors = zip(*[once(seed) for seed in range(60)], strict=True)
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.3)  # 60 repetitions know it to 10 %


def test_standard_error_is_the_delta_method_by_automatic_gradients():
    states = draw(3, 9, 16, 5)
    states[1:] += 2 * states[0]
    states *= torch.linspace(0.5, 2.0, 9, dtype=torch.float64)[:, None, None]  # The variances of samples go together.
    got = observe(states).tables()[0]
    per_sample = [observe(states[:, [row]]).state()["hsic"] for row in range(9)]
    for start, stop in ((0, 1), (0, 2), (1, 2)):
        figures_SF = torch.stack([h[[start, start, stop], [stop, start, stop]] for h in per_sample])
        mean_F = figures_SF.mean(0).requires_grad_()
        value = mean_F[0] / (mean_F[1] * mean_F[2]).sqrt()
        (slope_F,) = torch.autograd.grad(value, mean_F)
        expected = (slope_F @ torch.cov(figures_SF.T) @ slope_F / 9).sqrt()
        assert got[Span(start, stop)] == pytest.approx(value.item(), rel=1e-9)
        assert got.stderr[start, stop] == pytest.approx(expected.item(), rel=1e-6)


def test_shards_add_and_padding_and_sinks_stay_out():
    states = draw(3, 4, 40, 8)
    whole, left, right = observe(states), observe(states[:, :2]), observe(states[:, 2:])
    joined = add_states([left.state(), right.state()])
    for name, total in whole.state().items():
        torch.testing.assert_close(joined[name], total, rtol=1e-12, atol=0)
    spoiled = states.clone()
    mask = torch.ones(4, 40, dtype=torch.bool)
    mask[1, 30:] = False
    spoiled[:, 1, 30:] = torch.nan
    spoiled[:, :, 0] *= 1e4
    clean = torch.where(mask[None, :, :, None], states, torch.zeros(()))
    ours, theirs = observe(spoiled, mask=mask), observe(clean, mask=mask)
    assert all(torch.equal(ours.state()[name], total) for name, total in theirs.state().items())


def test_short_samples_do_not_count_and_too_few_tokens_are_refused():
    observer = observe(draw(2, 3, 4, 8))  # 4 tokens, one of them a sink
    assert observer.tables()[0].n_samples == 0 and np.isnan(observer.tables()[0].values).all()
    with pytest.raises(ValueError, match="at least 4"):
        CkaObserver(2, length=8, n_tokens=3)
    with pytest.raises(ValueError, match="at least 4"):
        hsic_between(draw(1, 3, 2))
