"""Objectives equal naive references, ignore padding, and add up over pieces of a batch."""

import pytest
import torch
from torch import Tensor

from shoal.train.objectives import OBJECTIVES, hidden_mse, objective_named
from shoal.train.students import n_real_tokens
from shoal.types import Batch

G = torch.Generator().manual_seed(0)
A, B = torch.randn(3, 5, 4, generator=G), torch.randn(3, 5, 4, generator=G)
MASK_BT = torch.arange(5)[None] < torch.tensor([2, 5, 3])[:, None]


def naive(a: Tensor, b: Tensor, mask: Tensor) -> float:
    terms = [
        (float(a[i, t, d]) - float(b[i, t, d])) ** 2
        for i in range(a.shape[0])
        for t in range(a.shape[1])
        for d in range(a.shape[2])
        if mask[i, t]
    ]
    return sum(terms) / len(terms)


def test_hidden_mse_equals_three_loops():
    assert float(hidden_mse(A, B, MASK_BT)) == pytest.approx(naive(A, B, MASK_BT), rel=1e-6)  # fp32 mean of 40 terms
    assert float(hidden_mse(A, B, None)) == pytest.approx(naive(A, B, torch.ones(3, 5, dtype=torch.bool)), rel=1e-6)


def test_hidden_mse_is_computed_in_fp32():
    a, b = A.bfloat16(), B.bfloat16()
    assert float(hidden_mse(a, b, None)) == float(hidden_mse(a.float(), b.float(), None))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_equal_streams_cost_nothing(name):
    assert float(objective_named(name).loss(A, A.clone(), MASK_BT)) == 0.0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_stands_on_padding_has_no_weight_and_no_gradient(name):
    loss = objective_named(name).loss
    spoiled = torch.where(MASK_BT[..., None], A, torch.nan)
    assert torch.equal(loss(spoiled, B, MASK_BT), loss(A, B, MASK_BT))
    student = A.clone().requires_grad_()
    loss(student, B, MASK_BT).backward()
    assert torch.all(student.grad[~MASK_BT] == 0) and torch.all(student.grad[MASK_BT] != 0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_pieces_weighed_by_their_tokens_give_the_whole(name):
    loss = objective_named(name).loss
    weights = [n_real_tokens(Batch(A[i : i + 1, :, 0], MASK_BT[i : i + 1])) for i in range(3)]
    assert weights == [2, 5, 3]
    pieces = [float(loss(A[i : i + 1], B[i : i + 1], MASK_BT[i : i + 1])) for i in range(3)]
    total = sum(w * p for w, p in zip(weights, pieces, strict=True)) / sum(weights)
    assert total == pytest.approx(float(loss(A, B, MASK_BT)), rel=1e-6)  # fp32 means


def test_unpadded_batches_weigh_all_their_tokens():
    assert n_real_tokens(Batch(torch.zeros(3, 5))) == 15


def test_streams_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 5, 4\) and \(3, 4, 4\)"):
        hidden_mse(A, B[:, :4], None)


def test_unknown_objectives_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'hidden_mse'"):
        objective_named("hidden-mse")
