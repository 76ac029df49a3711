"""Pruners against brute force, closed forms and naive references; allocation against its formulas."""

import itertools

import pytest
import torch

from shoal.prune.allocator import ThinEvidence
from shoal.prune.amount import SparsePattern, n_zeros, parse_pattern
from shoal.prune.input_sums import InputSums
from shoal.prune.pruners.by_sparsegpt import DAMPING, thin_by_sparsegpt
from shoal.prune.pruners.by_wanda import thin_by_wanda
from shoal.prune.table import ALLOCATORS, PRUNERS
from shoal.words.shares import allocate, scaled, shifted

FOUR = [0.5, 0.63, SparsePattern(2, 4), SparsePattern(4, 8)]


def drawn(*shape, seed=0):
    """Weights or inputs with heavy tails, as real ones have."""
    draw = torch.Generator().manual_seed(seed)
    return (
        torch.randn(*shape, generator=draw, dtype=torch.float64)
        * torch.randn(*shape, generator=draw, dtype=torch.float64).exp()
    )


def sums_of(x_NF):
    return InputSums(x_NF.square().sum(0), x_NF.mT @ x_NF, torch.tensor(len(x_NF)))


def error(w_DF, other_DF, x_NF):
    return float(((other_DF - w_DF) @ x_NF.mT).square().sum())


# -- pruners -------------------------------------------------------------------------------------------------------------


def naive_wanda(w_DF, x_NF, amount):
    """The mask of kept weights, row by row and weight by weight."""
    kept = torch.ones_like(w_DF, dtype=torch.bool)
    for d, row in enumerate(w_DF.tolist()):
        scores = [abs(w) * float(x_NF[:, f].norm()) for f, w in enumerate(row)]
        groups = [range(len(row))]
        if isinstance(amount, SparsePattern):
            groups = [range(at, at + amount.of) for at in range(0, len(row), amount.of)]
        for group in groups:
            n = amount.of - amount.keep if isinstance(amount, SparsePattern) else int(len(row) * amount)
            for f in sorted(group, key=lambda f: scores[f])[:n]:
                kept[d, f] = False
    return kept


@pytest.mark.parametrize("amount", FOUR, ids=str)
def test_wanda_takes_the_mask_of_a_naive_reference(amount):
    w_DF, x_NF = drawn(24, 64), drawn(200, 64, seed=1)
    found = thin_by_wanda(w_DF, sums_of(x_NF), amount)
    kept = naive_wanda(w_DF, x_NF, amount)
    assert int(((found != 0) != kept).sum()) == 0
    assert torch.equal(found[kept], w_DF[kept]), "no weight is updated"


def test_wanda_is_the_best_mask_where_inputs_do_not_correlate():
    """Then what a row loses is a sum over its zeros, and no other set of them loses less: all 70 sets are tried."""
    w_DF = drawn(5, 8)
    x_NF = torch.linalg.qr(drawn(40, 8, seed=1))[0] * drawn(8, seed=2).abs()
    found = thin_by_wanda(w_DF, sums_of(x_NF), 0.5)
    for row, kept in zip(w_DF, found, strict=True):
        losses = {
            gone: error(row[None], row.index_fill(0, torch.tensor(gone), 0.0)[None], x_NF)
            for gone in itertools.combinations(range(8), 4)
        }
        best = min(losses, key=losses.get)
        assert set(best) == {f for f in range(8) if kept[f] == 0}


@pytest.mark.parametrize("amount", [0.37, 0.5], ids=str)
def test_magnitude_zeroes_the_smallest_of_the_map(amount):
    w_DF = drawn(12, 20)
    found = PRUNERS["magnitude"].thin(w_DF, None, amount)
    gone = sorted(w_DF.abs().flatten().tolist())[: int(amount * 240)]
    assert sorted(w_DF[found == 0].abs().tolist()) == gone


def naive_sparsegpt(w_DF, h_FF, amount, block):
    """By explicit inverses of what is left of H, one weight at a time."""
    w_DF, n_inputs = w_DF.clone(), w_DF.shape[1]
    h_FF = h_FF + DAMPING * h_FF.diagonal().mean() * torch.eye(n_inputs, dtype=h_FF.dtype)
    inverses = [torch.linalg.inv(h_FF[at:, at:]) for at in range(n_inputs)]
    gone = torch.zeros_like(w_DF, dtype=torch.bool)
    for at in range(n_inputs):
        if isinstance(amount, SparsePattern):
            if at % amount.of == 0:
                columns = list(range(at, at + amount.of))
                scores = torch.stack([w_DF[:, c].square() / inverses[c][0, 0] for c in columns], dim=1)
                for d, row in enumerate(scores.tolist()):
                    for i in sorted(range(amount.of), key=lambda i, row=row: row[i])[: amount.of - amount.keep]:
                        gone[d, at + i] = True
        elif at % block == 0:
            columns = list(range(at, min(at + block, n_inputs)))
            scores = torch.stack([w_DF[:, c].square() / inverses[c][0, 0] for c in columns], dim=1)
            order = sorted(itertools.product(range(len(w_DF)), columns), key=lambda dc: float(scores[dc[0], dc[1] - at]))
            for d, c in order[: int(amount * len(order))]:
                gone[d, c] = True
        for d in range(len(w_DF)):
            if gone[d, at]:
                w_DF[d, at:] -= w_DF[d, at] / inverses[at][0, 0] * inverses[at][0]
                w_DF[d, at] = 0.0
    return w_DF


@pytest.mark.parametrize("amount", FOUR, ids=str)
@pytest.mark.parametrize("block", [32, 24])
def test_sparsegpt_equals_explicit_inverses(amount, block):
    w_DF, x_NF = drawn(10, 64), drawn(300, 64, seed=1)
    found = thin_by_sparsegpt(w_DF, sums_of(x_NF), amount, block=block)
    naive = naive_sparsegpt(w_DF, x_NF.mT @ x_NF, amount, block)
    assert torch.equal(found == 0, naive == 0)
    torch.testing.assert_close(found, naive, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("amount", FOUR, ids=str)
def test_sparsegpt_lies_between_the_least_squares_on_its_support_and_the_bare_mask(amount):
    w_DF, x_NF = drawn(10, 64), drawn(300, 64, seed=1) @ (torch.eye(64).double() + 0.3 * drawn(64, 64, seed=3))
    found = thin_by_sparsegpt(w_DF, sums_of(x_NF), amount)
    best = torch.zeros_like(w_DF)
    for d, kept in enumerate(found != 0):
        best[d, kept] = torch.linalg.lstsq(x_NF[:, kept], x_NF @ w_DF[d], driver="gelsd").solution
    bare = w_DF.masked_fill(found == 0, 0.0)
    assert error(w_DF, best, x_NF) <= error(w_DF, found, x_NF) <= error(w_DF, bare, x_NF)


def test_an_input_that_is_always_zero_goes_first_and_costs_nothing():
    w_DF, x_NF = drawn(6, 16), drawn(100, 16, seed=1)
    x_NF[:, 3] = 0.0
    found = thin_by_sparsegpt(w_DF, sums_of(x_NF), 0.25)
    assert bool((found[:, 3] == 0).all()) and bool(torch.isfinite(found).all())


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("amount", FOUR, ids=str)
def test_every_pruner_meets_the_amount_and_leaves_its_input(name, amount):
    w_DF, x_NF = drawn(16, 128), drawn(300, 128, seed=1)
    before, sums = w_DF.clone(), sums_of(x_NF)
    copy = InputSums(sums.squares_F.clone(), sums.moments_FF.clone(), sums.n_tokens)
    found = PRUNERS[name].thin(w_DF, sums, amount)
    assert torch.equal(w_DF, before) and torch.equal(sums.moments_FF, copy.moments_FF)
    if isinstance(amount, SparsePattern):
        per_group = (found.view(16, -1, amount.of) == 0).sum(-1)
        assert bool((per_group == amount.of - amount.keep).all())
    else:
        assert int((found == 0).sum()) == pytest.approx(amount * w_DF.numel(), abs=16)


@pytest.mark.parametrize("name", PRUNERS)
def test_an_expert_that_no_token_reached_is_thinned_by_size(name):
    w_DF = drawn(8, 32)
    nothing = InputSums(torch.zeros(32).double(), torch.zeros(32, 32).double(), torch.tensor(0))
    found = PRUNERS[name].thin(w_DF, nothing, 0.5)
    assert int((found == 0).sum()) == 128
    assert float(found.abs().sum()) > float(w_DF.abs().sum()) / 2


@pytest.mark.parametrize("text", ["4:2", "0:4", "2:2", "2-4", "x", "2:4:8"])
def test_a_pattern_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="0 < N < M"):
        parse_pattern(text)


def test_inputs_without_whole_groups_are_refused():
    with pytest.raises(ValueError, match="no whole groups of 4"):
        PRUNERS["wanda"].thin(drawn(4, 6), sums_of(drawn(9, 6)), SparsePattern(2, 4))


# -- allocation ----------------------------------------------------------------------------------------------------------

SIZES = {0: 1000, 1: 1000, 2: 670, 3: 50, 4: 1000}
SCORES = {0: 0.1, 1: 7.0, 2: 0.4, 3: 2.0, 4: 1.1}


def mean(sizes, shares):
    return sum(sizes[key] * shares[key] for key in sizes) / sum(sizes.values())


def test_shares_meet_the_budget_in_parameters_and_fall_with_the_score():
    shares = allocate(SIZES, SCORES, 0.7, 0.08)
    assert mean(SIZES, shares) == pytest.approx(0.7, abs=1e-12)
    assert sorted(shares, key=shares.get) == sorted(SCORES, key=SCORES.get, reverse=True)
    assert max(shares.values()) - min(shares.values()) == pytest.approx(0.16)


def test_shares_are_the_papers_with_a_weighted_mean():
    low, high = min(SCORES.values()), max(SCORES.values())
    k = {key: 0.16 * (score - low) / (high - low) for key, score in SCORES.items()}
    centre = mean(SIZES, k)
    assert allocate(SIZES, SCORES, 0.7, 0.08) == pytest.approx({key: 0.7 - (k[key] - centre) for key in k}, abs=1e-12)


def test_equal_scores_and_no_spread_are_uniform():
    assert allocate(SIZES, dict.fromkeys(SIZES, 3.0), 0.7, 0.08) == pytest.approx(dict.fromkeys(SIZES, 0.7), abs=1e-12)
    assert allocate(SIZES, SCORES, 0.7, 0.0) == pytest.approx(dict.fromkeys(SIZES, 0.7), abs=1e-12)


@pytest.mark.parametrize("budget", [0.02, 0.5, 0.97])
def test_shares_at_their_limits_are_made_up_for_by_the_others(budget):
    shares = allocate(SIZES, SCORES, budget, 0.5, most=0.99)
    assert mean(SIZES, shares) == pytest.approx(budget, abs=1e-12)
    assert min(shares.values()) >= 0 and max(shares.values()) <= 0.99


def test_a_budget_out_of_reach_and_a_damaged_score_are_refused():
    with pytest.raises(ValueError, match="out of reach"):
        shifted(SIZES, SCORES, 1.2)
    with pytest.raises(ValueError, match="no number"):
        allocate(SIZES, SCORES | {0: float("nan")}, 0.5, 0.1)


def test_scaled_shares_are_in_proportion_until_they_reach_a_limit():
    weights = {0: 1.0, 1: 8.0, 2: 1.0, 3: 0.0, 4: 2.0}
    free = scaled(SIZES, weights, 0.2)
    assert mean(SIZES, free) == pytest.approx(0.2, abs=1e-12)
    assert free[1] == pytest.approx(8 * free[0]) and free[3] == 0
    held = scaled(SIZES, weights, 0.6, least=0.05)
    assert mean(SIZES, held) == pytest.approx(0.6, abs=1e-12)
    assert held[1] == 1.0 and held[3] == 0.05 and held[4] == pytest.approx(2 * held[0])


def evidence(weights, outliers=None):
    shapes = {key: tuple(w_DF.shape) for key, w_DF in weights.items()}
    return ThinEvidence(shapes, lambda: weights.items(), lambda factor: outliers or {})


def three():
    return {(0, "a"): drawn(12, 20), (0, "b"): 100 * drawn(20, 16, seed=1), (1, "a"): drawn(12, 20, seed=2)}


def naive_lamp(weights, budget):
    """For each weight the squares of all not smaller ones of its map, O(n^2); then the lowest of all."""
    scores = []
    for key, w_DF in weights.items():
        squares = w_DF.flatten().square().tolist()
        scores += [(one / sum(other for other in squares if other >= one), key) for one in squares]
    gone = [key for _, key in sorted(scores)[: int(budget * len(scores) + 1e-6)]]
    return {key: gone.count(key) / w_DF.numel() for key, w_DF in weights.items()}


@pytest.mark.parametrize("budget", [0.1, 0.5, 0.75, 0.98])
def test_lamp_equals_brute_force(budget):
    weights = three()
    found = ALLOCATORS["lamp"].divide(evidence(weights), budget, spread=0.0, outlier=0.0)
    assert found == pytest.approx(naive_lamp(weights, budget), abs=1e-12)
    assert all(n_zeros(found[key], w_DF.numel()) < w_DF.numel() for key, w_DF in weights.items()), "no map is emptied"


def test_lamp_does_not_see_the_scale_of_a_map():
    weights = three()
    other = weights | {(0, "a"): 1e-6 * weights[0, "a"]}
    found = [ALLOCATORS["lamp"].divide(evidence(one), 0.6, spread=0.0, outlier=0.0) for one in (weights, other)]
    assert found[0] == pytest.approx(found[1], abs=1e-12)


@pytest.mark.parametrize("name", ALLOCATORS)
@pytest.mark.parametrize("budget", [0.3, 0.8])
def test_every_rule_meets_the_budget_in_parameters(name, budget):
    weights = three()
    found = evidence(weights, {0: 0.02, 1: 0.01})
    shares = ALLOCATORS[name].divide(found, budget, spread=0.1, outlier=5.0)
    n = sum(w_DF.numel() for w_DF in weights.values())
    assert mean(found.sizes, shares) == pytest.approx(budget, abs=1 / n)
    assert all(0 <= share <= 1 for share in shares.values())


def test_erk_keeps_in_proportion_to_the_sides_over_the_product():
    weights = {(0, "wide"): drawn(40, 40), (0, "narrow"): drawn(4, 40), (1, "wide"): drawn(40, 40)}
    kept = {key: 1 - share for key, share in ALLOCATORS["erk"].divide(evidence(weights), 0.9, spread=0, outlier=0).items()}
    assert kept[0, "narrow"] / kept[0, "wide"] == pytest.approx((44 / 160) / (80 / 1600))
