"""Objectives equal naive references in value and gradient, ignore padding, and add up over pieces of a batch."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shoal.measure import divergence
from shoal.train.objectives import OBJECTIVES, n_real_tokens, objective_named, weighted_sum
from shoal.train.stream_losses import hidden_mse
from shoal.words.types import Batch

G = torch.Generator().manual_seed(0)
A, B = torch.randn(3, 5, 8, generator=G), torch.randn(3, 5, 8, generator=G)
MASK_BT = torch.arange(5)[None] < torch.tensor([2, 5, 3])[:, None]
IDS_BT = torch.randint(0, 8, (3, 5), generator=G)
STREAMS = sorted(name for name, one in OBJECTIVES.items() if one.needs == "boundary")
DIVERGENCES = sorted(name for name, one in OBJECTIVES.items() if one.needs == "logits")
ALPHA, TOP = 0.1, 3


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum(-1)


def naive_topk(p: Tensor, q: Tensor) -> Tensor:
    kept = torch.zeros_like(p, dtype=torch.bool).scatter(-1, p.topk(TOP).indices, True)
    merged = [torch.cat([one[kept].reshape(*one.shape[:-1], TOP), (one * ~kept).sum(-1, keepdim=True)], -1) for one in (p, q)]
    return kl(*merged)


NAIVE = {  # of one token: streams s and t; distributions q (student) and p (teacher); the ids
    "hidden_mse": lambda s, t: (s - t).square().mean(-1),
    "relative_mse": lambda s, t: (s - t).square().sum(-1) / t.square().sum(-1),
    "cosine": lambda s, t: 1 - torch.nn.functional.cosine_similarity(s, t, dim=-1),
    "forward_kl": lambda q, p: kl(p, q),
    "reverse_kl": lambda q, p: kl(q, p),
    "skewed_forward_kl": lambda q, p: kl(p, ALPHA * p + (1 - ALPHA) * q),
    "skewed_reverse_kl": lambda q, p: kl(q, ALPHA * q + (1 - ALPHA) * p),
    "jensen_shannon": lambda q, p: (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2,
    "topk_forward_kl": lambda q, p: naive_topk(p, q),
}


def naive(name: str, student: Tensor, reference: Tensor, mask: Tensor | None) -> Tensor:
    """In fp64, by the definition, differentiable."""
    mask = torch.ones(student.shape[:2], dtype=torch.bool) if mask is None else mask
    student = student.double()
    if name == "next_token":
        counted = mask[:, :-1] & mask[:, 1:]
        return -student[:, :-1].log_softmax(-1).gather(-1, reference[:, 1:, None])[..., 0][counted].mean()
    pair = (student, reference.double()) if name in STREAMS else (student.softmax(-1), reference.double().softmax(-1))
    return NAIVE[name](*pair)[mask].mean()


def loss_of(name: str):
    return objective_named(f"{name}({TOP})" if name == "topk_forward_kl" else name).loss


def reference_of(name: str) -> Tensor:
    return IDS_BT if name == "next_token" else B


def test_every_objective_has_a_naive_reference():
    assert {*NAIVE, "next_token"} == set(OBJECTIVES)


@pytest.mark.parametrize("elements", [1 << 20, 20])
@pytest.mark.parametrize("mask", [None, MASK_BT], ids=["packed", "padded"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_value_and_gradient_equal_the_definition(name, mask, elements, monkeypatch):
    monkeypatch.setattr(divergence, "CHUNK_ELEMENTS", {"cpu": elements})  # 20: chunks of two tokens
    ours, theirs = A.clone().requires_grad_(), A.clone().requires_grad_()
    loss, expected = loss_of(name)(ours, reference_of(name), mask), naive(name, theirs, reference_of(name), mask)
    loss.backward()
    expected.backward()
    # The sums of 8 terms of order 1 are fp32 against fp64.
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - {"next_token"}))
def test_equal_tensors_cost_nothing_and_pull_nowhere(name):
    student = A.clone().requires_grad_()
    loss = loss_of(name)(student, A, MASK_BT)
    loss.backward()
    assert loss.item() == 0.0
    assert float(student.grad.abs().max()) < 1e-7  # Probabilities add up to 1 to the last bit only in exact arithmetic.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_low_precision_is_computed_in_fp32(name, dtype):
    reference = reference_of(name) if name == "next_token" else B.to(dtype)
    wide = reference if name == "next_token" else reference.float()
    assert torch.equal(loss_of(name)(A.to(dtype), reference, None), loss_of(name)(A.to(dtype).float(), wide, None))


@pytest.mark.parametrize("size", [1e2, 1e4])
@pytest.mark.parametrize("name", [*DIVERGENCES, "next_token"])
def test_confident_logits_have_finite_losses_and_gradients(name, size):
    """Both sure of one token, of the same one, of another; and sure of nothing."""
    rows = torch.tensor([[size, -size, 0.0, 0.0], [-size, size, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [size, size, -size, 1.0]])
    student, teacher = rows.repeat_interleave(4, 0)[None].clone().requires_grad_(), rows.repeat(4, 1)[None]
    reference = torch.arange(16).remainder(4)[None] if name == "next_token" else teacher
    loss = loss_of(name)(student, reference, None)
    loss.backward()
    assert math.isfinite(loss.item()) and bool(student.grad.isfinite().all())


@pytest.mark.parametrize("name", DIVERGENCES)
def test_impossible_tokens_of_both_change_nothing(name):
    dead = torch.full((3, 5, 2), -math.inf)
    student, wider = A.clone().requires_grad_(), torch.cat([A, dead], -1).requires_grad_()
    few, many = loss_of(name)(student, B, MASK_BT), loss_of(name)(wider, torch.cat([B, dead], -1), MASK_BT)
    (few + many).backward()
    torch.testing.assert_close(many, few)
    torch.testing.assert_close(wider.grad[..., :8], student.grad)
    assert torch.all(wider.grad[..., 8:] == 0)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ["skewed_forward_kl", "skewed_reverse_kl"])
def test_skewed_divergences_are_bounded_by_minus_log_alpha(name, alpha):
    far = torch.tensor([[[1e4, 0.0]]]), torch.tensor([[[0.0, 1e4]]])
    assert float(objective_named(f"{name}({alpha})").loss(*far, None)) == pytest.approx(-math.log(alpha), rel=1e-6)


def test_limits_join_the_divergences():
    plain, skewed = (objective_named(name).loss(A, B, None) for name in ("forward_kl", "skewed_forward_kl(1e-7)"))
    torch.testing.assert_close(skewed, plain, rtol=1e-5, atol=0)
    whole = objective_named("topk_forward_kl(8)").loss(A, B, None)
    torch.testing.assert_close(whole, plain, rtol=1e-5, atol=0)
    growing = [float(objective_named(f"topk_forward_kl({k})").loss(A, B, None)) for k in range(1, 9)]
    assert growing[0] < growing[3] <= growing[7] * (1 + 1e-6), "merging outcomes loses information"
    far = torch.tensor([[[1e4, 0.0]]]), torch.tensor([[[0.0, 1e4]]])
    assert float(objective_named("jensen_shannon").loss(*far, None)) == pytest.approx(math.log(2), rel=1e-6)


def test_a_sink_counts_as_one_token_in_relative_terms():
    student, teacher = A.clone(), B.clone()
    before = [float(objective_named(name).loss(student, teacher, None)) for name in ("relative_mse", "hidden_mse")]
    student[:, 0], teacher[:, 0] = student[:, 0] * 1000, teacher[:, 0] * 1000
    after = [float(objective_named(name).loss(student, teacher, None)) for name in ("relative_mse", "hidden_mse")]
    assert after[0] == pytest.approx(before[0], rel=1e-5) and after[1] > 1e4 * before[1]


def test_a_token_of_norm_zero_is_finite():
    student = A.clone().requires_grad_()
    for name in STREAMS:
        objective_named(name).loss(student, torch.zeros_like(B), None).backward()
    assert bool(student.grad.isfinite().all())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_stands_on_padding_has_no_weight_and_no_gradient(name):
    loss = loss_of(name)
    spoiled = torch.where(MASK_BT[..., None], A, torch.nan)
    assert torch.equal(loss(spoiled, reference_of(name), MASK_BT), loss(A, reference_of(name), MASK_BT))
    student = spoiled.clone().requires_grad_()
    loss(student, reference_of(name), MASK_BT).backward()
    counted = MASK_BT[:, 1:] & MASK_BT[:, :-1] if name == "next_token" else MASK_BT
    grad = student.grad[:, : counted.shape[1]]
    assert torch.all(student.grad[~MASK_BT] == 0) and torch.all(grad[counted] != 0)


@pytest.mark.parametrize("text", [*OBJECTIVES, "hidden_mse + 0.25*forward_kl + 2*next_token"])
def test_pieces_weighed_by_their_positions_give_the_whole(text):
    objective = weighted_sum(text)

    def means(rows: slice) -> tuple[Tensor, Tensor]:
        batch = Batch(IDS_BT[rows], MASK_BT[rows])
        pair = (A[rows], B[rows])
        return objective.counts(batch), objective.means(boundaries=[pair], logits=A[rows], teacher_BTV=B[rows], batch=batch)

    counts, whole = means(slice(3))
    pieces = [means(slice(i, i + 1)) for i in range(3)]
    assert torch.equal(sum(count for count, _ in pieces), counts)
    total = sum(count / counts * mean for count, mean in pieces)
    torch.testing.assert_close(total, whole.double(), rtol=1e-6, atol=0)  # The means are fp32.


def test_unpadded_batches_weigh_all_their_tokens():
    assert n_real_tokens(Batch(torch.zeros(3, 5))) == 15


def test_text_without_a_next_token_costs_nothing():
    assert float(objective_named("next_token").loss(A[:, :1], IDS_BT[:, :1], None)) == 0.0


def test_no_second_tensor_of_the_vocabulary_lives_in_fp32():
    """Saved for the gradient: one tensor of the logits' size, in their own dtype."""
    student, teacher, saved = A.bfloat16().requires_grad_(), B.bfloat16(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        objective_named("forward_kl").loss(student, teacher, None)
    assert [(one.shape, one.dtype) for one in saved if one.numel() >= A.numel()] == [(torch.Size([15, 8]), torch.bfloat16)]


# -- names ---------------------------------------------------------------------------------------------------------------


def test_a_sum_is_read_and_said():
    sum_ = weighted_sum("hidden_mse+0.1 * skewed_forward_kl(0.2)")
    assert [(weight, one.name) for weight, one in sum_.terms] == [(1.0, "hidden_mse"), (0.1, "skewed_forward_kl(0.2)")]
    assert sum_.needs == {"boundary", "logits"}
    assert weighted_sum(str(sum_)).weights.tolist() == [1.0, 0.1]
    assert weighted_sum("1e-2*cosine").weights.tolist() == [0.01]


@pytest.mark.parametrize(
    "text,said",
    [
        ("hidden-mse", "form NAME"),
        ("hiden_mse", "did you mean 'hidden_mse'"),
        ("", "form NAME"),
        ("hidden_mse +", "form NAME"),
        ("0*hidden_mse", "above 0"),
        ("-1*hidden_mse", "above 0"),
        ("hidden_mse + 2*hidden_mse", "twice"),
        ("forward_kl(2)", "no number"),
        ("skewed_forward_kl(a)", "needs a number"),
        ("skewed_forward_kl(1)", "between 0 and 1"),
        ("topk_forward_kl(0)", "whole number from 1"),
        ("topk_forward_kl(2.5)", "whole number from 1"),
    ],
)
def test_what_is_no_objective_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        weighted_sum(text)


@pytest.mark.parametrize("name", ["hidden_mse", "forward_kl"])
def test_tensors_of_different_shapes_are_refused(name):
    with pytest.raises(ValueError, match=r"\(3, 5, 8\) and \(3, 4, 8\)"):
        objective_named(name).loss(A, B[:, :4], None)


def test_hidden_mse_is_the_mean_over_elements():
    assert float(hidden_mse(torch.full((1, 1, 4), 3.0), torch.full((1, 1, 4), 1.0), None)) == 4.0


def test_the_page_lists_every_objective():
    page = (Path(__file__).parent.parent / "docs" / "repair.md").read_text()
    for name, one in OBJECTIVES.items():
        example = {"alpha": "(0.1)", "k": "(128)"}.get(one.parameter or "", "")
        reads = {"boundary": "the stream", "logits": "logits", "labels": "the text"}[one.needs]
        said = one.about.replace("||", r"\|\|")
        assert f"| `{name}{example}` | {reads} | {said} |" in page
