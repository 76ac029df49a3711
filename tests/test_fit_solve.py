"""Laws of the sums and the ridge: closed forms, shards, folds left out, and the exact constraint."""

import math

import pytest
import torch

from shoal.fit.solve import (
    N_MIXTURES,
    RIDGES,
    best_ridge,
    cross_validated,
    effective_rank,
    mixed_outputs,
    ridge_change,
    solve,
    spectrum,
    squared_error,
    squared_error_with_sinks,
)
from shoal.fit.sums import HELD_OUT, N_FOLDS, add_gram, folds_of, no_sums
from shoal.words.types import Batch

F, D, N = 7, 5, 200


def data(n=N, *, seed=0, n_sinks=0):
    draw = torch.Generator().manual_seed(seed)
    h_NF, r_ND = torch.randn(n, F, generator=draw) + 0.5, torch.randn(n, D, generator=draw)
    weights_N = torch.rand(n, generator=draw) + 0.1
    sinks_N = torch.zeros(n, dtype=torch.bool)
    sinks_N[:n_sinks] = True
    h_NF[:n_sinks] = 300.0 + torch.randn(n_sinks, F, generator=draw)
    r_ND[:n_sinks] *= 100
    return h_NF, r_ND, weights_N, sinks_N


def sums_of(h_NF, r_ND, weights_N, sinks_N):
    sums = no_sums(F, D)
    sums.add_tokens(h_NF, r_ND, weights_N=weights_N, sinks_N=sinks_N)
    return sums


def weighted_rows(h_NF, r_ND, weights_N, *, bias):
    """Double precision rows whose plain least squares is the weighted problem."""
    ones = torch.ones(len(h_NF), 1) if bias else torch.zeros(len(h_NF), 0)
    root = weights_N.double().sqrt()[:, None]
    return root * torch.cat([h_NF, ones], 1).double(), root * r_ND.double()


@pytest.mark.parametrize("bias", [False, True])
def test_without_ridge_the_change_is_weighted_least_squares(bias):
    h_NF, r_ND, weights_N, sinks_N = data()
    found_ED = ridge_change(sums_of(h_NF, r_ND, weights_N, sinks_N), 0.0, bias=bias)
    expected = torch.linalg.lstsq(*weighted_rows(h_NF, r_ND, weights_N, bias=bias)).solution
    # Products are summed in fp32 within a batch.
    torch.testing.assert_close(found_ED[: F + bias], expected, rtol=1e-4, atol=1e-5)
    assert bias or not found_ED[F].any()


@pytest.mark.parametrize("bias", [False, True])
def test_a_ridge_shrinks_the_change_and_never_the_bias(bias):
    h_NF, r_ND, weights_N, sinks_N = data()
    sums = sums_of(h_NF, r_ND, weights_N, sinks_N)
    rows, targets = weighted_rows(h_NF, r_ND, weights_N, bias=bias)
    penalty = 0.3 * sums.mean_diagonal * torch.eye(F + bias, dtype=torch.float64)
    if bias:
        penalty[F, F] = 0.0
    expected = torch.linalg.solve(rows.T @ rows + penalty, rows.T @ targets)
    torch.testing.assert_close(ridge_change(sums, 0.3, bias=bias)[: F + bias], expected, rtol=1e-4, atol=1e-5)


def test_an_infinite_ridge_changes_nothing_at_all_where_there_are_no_sinks():
    assert not ridge_change(sums_of(*data()), math.inf, bias=True).any()


@pytest.mark.parametrize("bias", [False, True])
def test_an_infinite_ridge_is_the_least_change_that_meets_the_sinks(bias):
    h_NF, r_ND, weights_N, sinks_N = data(n_sinks=4)
    change_ED = ridge_change(sums_of(h_NF, r_ND, weights_N, sinks_N), math.inf, bias=bias)
    v_F, y_D = h_NF[sinks_N].double().mean(0), r_ND[sinks_N].double().mean(0)
    least_FD = torch.linalg.pinv(v_F[None]) @ y_D[None]
    torch.testing.assert_close(change_ED[:-1], least_FD)
    assert not change_ED[-1].any()
    limit_ED = ridge_change(sums_of(h_NF, r_ND, weights_N, sinks_N), 1e9, bias=False)
    torch.testing.assert_close(change_ED[:-1], limit_ED[:-1], rtol=1e-4, atol=1e-6)


def test_a_large_ridge_tends_to_no_change():
    sums = sums_of(*data())
    sizes = [float(ridge_change(sums, ridge, bias=False).norm()) for ridge in (1.0, 1e3, 1e6)]
    assert sizes[0] > sizes[1] > sizes[2] and sizes[2] < 1e-5


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_the_mean_sink_is_met_exactly_and_at_the_least_cost(ridge, bias):
    h_NF, r_ND, weights_N, sinks_N = data(n_sinks=4)
    sums = sums_of(h_NF, r_ND, weights_N, sinks_N)
    change_ED = ridge_change(sums, ridge, bias=bias)
    sink_E = torch.cat([h_NF[:4].double().mean(0), torch.ones(1, dtype=torch.float64)])
    torch.testing.assert_close(sink_E @ change_ED, r_ND[:4].double().mean(0), rtol=1e-5, atol=1e-5)
    # The objective cannot fall along any direction that keeps the constraint: its gradient is a multiple of the sink.
    a_EE = sums.hh_EE + ridge * sums.mean_diagonal * torch.diag(torch.tensor([1.0] * F + [0.0], dtype=torch.float64))
    gradient = (a_EE @ change_ED - sums.hr_ED)[: F + bias]
    along = sink_E[: F + bias] / sink_E[: F + bias].norm()
    left = gradient - along[:, None] * (along @ gradient)
    assert left.norm() < 1e-6 * gradient.norm()


@pytest.mark.parametrize("bias", [False, True])
def test_a_shared_sink_is_one_more_row_that_weighs_as_much_as_all_others(bias):
    h_NF, r_ND, weights_N, sinks_N = data(n_sinks=4)
    sums = sums_of(h_NF, r_ND, weights_N, sinks_N)
    rows, targets = weighted_rows(h_NF[4:], r_ND[4:], weights_N[4:], bias=bias)
    v_F, y_D = h_NF[:4].double().mean(0), r_ND[:4].double().mean(0)
    root = (targets.square().sum() / y_D.square().sum()).sqrt()
    own = root * torch.cat([v_F, torch.ones(int(bias), dtype=torch.float64)])
    expected = torch.linalg.lstsq(torch.cat([rows, own[None]]), torch.cat([targets, root * y_D[None]])).solution
    found_ED = ridge_change(sums, 0.0, bias=bias, sinks="shared")
    torch.testing.assert_close(found_ED[: F + bias], expected, rtol=1e-4, atol=1e-5)
    missed = (torch.cat([rows, own[None]]) @ expected - torch.cat([targets, root * y_D[None]])).square().sum()
    assert math.isclose(squared_error_with_sinks(sums, found_ED), float(missed), rel_tol=1e-4)
    assert not ridge_change(sums, math.inf, bias=bias, sinks="shared").any()


@pytest.mark.parametrize("ridge", [None, 1e-2])
def test_sinks_that_no_input_tells_apart_are_shared_and_the_rest_is_not_ruined(ridge):
    draw = torch.Generator().manual_seed(5)
    map_FD = torch.randn(F, D, generator=draw)
    h_NF, r_ND, weights_N, sinks_N = data(n_sinks=4)
    r_ND = h_NF @ map_FD + 0.1 * r_ND
    h_NF[:4], r_ND[:4] = h_NF[4:].mean(0), 1e4  # A sink that reads what others read, and misses what later layers would write.
    folds = [sums_of(*(one[part::4] for one in (h_NF, r_ND, weights_N, sinks_N))) for part in range(4)]
    total = sums_of(h_NF, r_ND, weights_N, sinks_N)
    met_ED = ridge_change(total, ridge or 1e-2, bias=False)
    assert squared_error(total, met_ED) > float(total.rr)
    found = solve(folds, bias=False, ridge=ridge)
    assert squared_error(total, found.change_ED) < 0.9 * float(total.rr)
    # Where the sinks stand apart they are met, whatever this rule says.
    h_NF[:4] = 300.0
    r_ND[:4] = 1.0
    folds = [sums_of(*(one[part::4] for one in (h_NF, r_ND, weights_N, sinks_N))) for part in range(4)]
    found = solve(folds, bias=False, ridge=ridge)
    torch.testing.assert_close(h_NF[0].double() @ found.change_ED[:-1], r_ND[0].double(), rtol=1e-5, atol=1e-5)


def test_sinks_enter_no_second_moment():
    h_NF, r_ND, weights_N, sinks_N = data(n_sinks=4)
    with_sinks, rest = sums_of(h_NF, r_ND, weights_N, sinks_N), sums_of(h_NF[4:], r_ND[4:], weights_N[4:], sinks_N[4:])
    assert torch.equal(with_sinks.hh_EE, rest.hh_EE) and torch.equal(with_sinks.hr_ED, rest.hr_ED)
    assert with_sinks.rr == rest.rr and with_sinks.n_tokens == N - 4 and with_sinks.sink_E[-1] == 4


def test_sums_of_shards_are_the_sums_of_the_whole():
    whole, parts = data(), [slice(0, 60), slice(60, 61), slice(61, N)]
    shards = [sums_of(*(one[part] for one in whole)) for part in parts]
    total = shards[0] + shards[1] + shards[2]
    expected = sums_of(*whole)
    torch.testing.assert_close(total.hh_EE, expected.hh_EE, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(total.hr_ED, expected.hr_ED, rtol=1e-6, atol=1e-5)
    assert total.n_tokens == expected.n_tokens
    torch.testing.assert_close((total - shards[2] - shards[1]).hh_EE, shards[0].hh_EE, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("bias", [False, True])
def test_cross_validation_from_sums_is_the_naive_refit_of_every_fold(bias):
    whole = data()
    parts = [slice(i * 50, (i + 1) * 50) for i in range(4)]
    found = cross_validated([sums_of(*(one[part] for one in whole)) for part in parts], (0.0, math.inf), bias=bias)
    h_NF, r_ND, weights_N, _ = whole
    rows, targets = weighted_rows(h_NF, r_ND, weights_N, bias=bias)
    expected = 0.0
    for part in parts:
        rest = torch.ones(N, dtype=torch.bool)
        rest[part] = False
        naive = torch.linalg.lstsq(rows[rest], targets[rest]).solution
        expected += float((rows[part] @ naive - targets[part]).square().sum())
    assert found[0] == pytest.approx(expected, rel=1e-5)
    assert found[1] == pytest.approx(float(targets.square().sum()), rel=1e-6)


def test_a_planted_map_is_found_with_the_smallest_ridge():
    h_NF, _, weights_N, sinks_N = data()
    planted_FD, bias_D = torch.randn(F, D), torch.randn(D)
    r_ND = h_NF @ planted_FD + bias_D
    folds = [sums_of(h_NF[i::4], r_ND[i::4], weights_N[i::4], sinks_N[i::4]) for i in range(4)]
    found = solve(folds, bias=True)
    assert found.ridge == RIDGES[0] and found.r2 > 0.999999 and found.r2_folds > 0.999999
    torch.testing.assert_close(found.change_ED.float(), torch.cat([planted_FD, bias_D[None]]), rtol=1e-3, atol=1e-3)
    assert solve(folds, bias=False).r2 < 0.999


def noisy_folds(noise, *, seed):
    """A planted map seen through correlated inputs and noise: the best ridge lies anywhere in the table."""
    draw = torch.Generator().manual_seed(seed)
    mix_FF = torch.randn(F, F, generator=draw) * torch.logspace(0, -2, F)
    h_NF = torch.randn(60, F, generator=draw) @ mix_FF
    r_ND = h_NF @ torch.randn(F, D, generator=draw) + noise * torch.randn(60, D, generator=draw)
    ones_N, no_sinks = torch.ones(60), torch.zeros(60, dtype=torch.bool)
    return [sums_of(h_NF[i::4], r_ND[i::4], ones_N[i::4], no_sinks[i::4]) for i in range(4)]


def test_the_search_finds_what_all_ridges_would_and_stops_behind_it():
    found = set()

    def change(sums, ridge):
        solved.add(ridge)
        return ridge_change(sums, ridge, bias=True)

    problems = [noisy_folds(noise, seed=seed) for noise in (1e-3, 0.1, 1.0, 5.0, 30.0) for seed in range(8)]
    for folds in problems:
        errors = cross_validated(folds, RIDGES, bias=True)
        best = min(range(len(RIDGES)), key=lambda i: (errors[i], -RIDGES[i]))
        solved: set[float] = set()
        assert best_ridge(folds, RIDGES, change) == (RIDGES[best], errors[best])
        found.add(best)
        if best < len(RIDGES) - 1:
            assert min(solved) >= RIDGES[max(0, best - 1)], "one ridge beyond the best, no more"
    assert len(found) >= 6, "the problems do not spread over the table"


def test_mixtures_explain_what_the_outputs_do():
    draw = torch.Generator().manual_seed(0)
    h_NF = torch.randn(400, F, generator=draw)
    r_ND = h_NF @ torch.randn(F, 600, generator=draw) + torch.randn(400, 600, generator=draw)
    sums = no_sums(F, 600)
    sums.add_tokens(h_NF, r_ND, weights_N=torch.ones(400), sinks_N=torch.zeros(400, dtype=torch.bool))
    mixed = mixed_outputs(sums)
    assert mixed.hr_ED.shape == (F + 1, N_MIXTURES) and mixed.rr == sums.rr
    for ridge in (1e-3, 1.0, 10.0):
        left, of_mixed = (squared_error(one, ridge_change(one, ridge, bias=True)) for one in (sums, mixed))
        # The spread of a mean over 128 mixtures is a tenth; ridges are compared on the same mixtures.
        assert float(sums.rr) - of_mixed == pytest.approx(float(sums.rr) - left, rel=0.2)
    few = sums_of(*data())
    assert mixed_outputs(few) is few


def test_a_given_ridge_leaves_no_fold_out():
    folds = noisy_folds(1.0, seed=0)
    found = solve(folds, bias=True, ridge=0.5)
    assert found.ridge == 0.5 and found.r2_folds is None
    assert torch.equal(found.change_ED, ridge_change(folds[0] + folds[1] + folds[2] + folds[3], 0.5, bias=True))


def test_the_search_never_does_worse_than_no_change():
    """Whatever the curve between: here it is made to rise to both sides of the middle, and no change is best."""
    folds = noisy_folds(1.0, seed=0)
    ridge, error = best_ridge(folds, RIDGES, lambda sums, ridge: torch.full_like(sums.hr_ED, 0.0 if math.isinf(ridge) else 9.0))
    assert math.isinf(ridge) and error == pytest.approx(sum(float(fold.rr) for fold in folds))


def test_noise_is_left_alone():
    """Two inputs per token and nothing to find: any finite ridge does harm on the folds left out."""
    folds = [sums_of(*data(4, seed=seed)) for seed in range(4)]
    found = solve(folds, bias=False)
    assert found.ridge >= 1.0 and found.r2_folds >= 0.0


def test_the_error_of_a_change_is_what_running_it_leaves():
    h_NF, r_ND, weights_N, sinks_N = data()
    change_ED = torch.randn(F + 1, D, dtype=torch.float64)
    left = r_ND.double() - torch.cat([h_NF, torch.ones(N, 1)], 1).double() @ change_ED
    expected = float((weights_N.double() * left.square().sum(1)).sum())
    assert squared_error(sums_of(h_NF, r_ND, weights_N, sinks_N), change_ED) == pytest.approx(expected, rel=1e-5)


def test_a_singular_system_is_refused_and_out_of_the_race():
    sums = sums_of(*data(3))
    with pytest.raises(ValueError, match="singular"):
        ridge_change(sums, 0.0, bias=False)
    assert math.isinf(cross_validated([sums, sums], (0.0,), bias=False)[0])


def test_rank_and_condition_of_known_spectra():
    h_NF = torch.eye(F).repeat(10, 1)
    equal = sums_of(h_NF, torch.zeros(len(h_NF), D), torch.ones(len(h_NF)), torch.zeros(len(h_NF), dtype=torch.bool))
    assert spectrum(equal, 0.0) == pytest.approx((1.0, F))
    one = torch.zeros(10, F)
    one[:, 0] = 1.0
    single = sums_of(one, torch.zeros(10, D), torch.ones(10), torch.zeros(10, dtype=torch.bool))
    assert spectrum(single, 1.0) == pytest.approx((1.0 + F, 1.0))  # The mean diagonal is a seventh of the only value.
    assert math.isinf(spectrum(single, 0.0)[0])


@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_rank_and_condition_are_those_of_the_eigenvalues(ridge):
    sums = sums_of(*data())
    values_F = torch.linalg.eigvalsh(sums.hh_EE[:-1, :-1])
    lifted_F = values_F + ridge * sums.mean_diagonal
    condition, rank = spectrum(sums, ridge)
    assert condition == pytest.approx(float(lifted_F.max() / lifted_F.min()), rel=0.05)
    assert rank == pytest.approx(float(values_F.sum() ** 2 / values_F.square().sum()))
    assert rank == pytest.approx(effective_rank(values_F))


def test_folds_follow_the_samples_wherever_they_are():
    ids_NT = torch.arange(40 * 6).view(40, 6)
    whole = torch.cat(folds_of([Batch(ids_NT)]))
    turned = torch.cat(folds_of([Batch(part, index=i) for i, part in enumerate(ids_NT.flip(0).split(7))]))
    assert torch.equal(turned.flip(0), whole)
    counts = torch.bincount(whole, minlength=N_FOLDS)
    assert counts[0] == 40 // HELD_OUT and counts[1:].max() - counts[1:].min() <= 1
    mask_BT = torch.ones(40, 8, dtype=torch.bool)
    mask_BT[:, 6:] = False
    padded = torch.cat([ids_NT, torch.full((40, 2), 9)], 1)
    assert torch.equal(torch.cat(folds_of([Batch(padded, mask_BT)])), whole)


def test_equal_samples_share_a_fold_and_too_few_are_refused():
    ids_NT = torch.arange(20).repeat(2).view(-1, 4)
    (folds,) = folds_of([Batch(ids_NT)])
    assert torch.equal(folds[:5], folds[5:])
    with pytest.raises(ValueError, match="too few"):
        folds_of([Batch(ids_NT[:2])])


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7, 64])
def test_the_gram_of_blocks_is_the_product(width):
    draw = torch.Generator().manual_seed(0)
    h_NE = torch.randn(50, width, generator=draw, dtype=torch.float64)
    total_EE = torch.ones(width, width, dtype=torch.float64)
    add_gram(total_EE, h_NE)
    torch.testing.assert_close(total_EE, 1.0 + h_NE.mT @ h_NE, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(total_EE, total_EE.mT, rtol=1e-12, atol=1e-12)
