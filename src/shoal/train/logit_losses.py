"""Objectives on logits: next token, and divergences between the teacher's and the student's next-token distributions.

Each takes (student_BTV, reference, mask_BT), where the reference is the teacher's logits (the token ids for ``next_token``),
and returns a scalar, the mean over real tokens in nats. Values and gradients are closed forms in fp32, a chunk of tokens at a
time: besides the logits themselves a batch holds one tensor of their size, the gradient in their own dtype. All are finite
for logits of any finite size. p is the teacher's distribution, q the student's, z the student's logits; every divergence
comes as its value and its slope, the gradient in z.
Shapes: B samples, T positions, V vocabulary, N tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shoal.measure.divergence import kl_of_log_probs, mixed, predicts, tokens_per_chunk

LogitPair = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Divergence:
    """Functions of (log_p_NV, log_q_NV): ``value`` gives (N,), ``slope`` its gradient (N, V) in the student's logits."""

    value: LogitPair
    slope: LogitPair


def next_token(student_BTV: Tensor, ids_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Mean negative log-likelihood of each real token that follows a real token; 0 where none does."""
    counted_BT = predicts(ids_BT, mask_BT)
    return next_token_at(student_BTV[:, :-1][counted_BT], ids_BT[:, 1:][counted_BT])


def next_token_at(logits_NV: Tensor, next_N: Tensor) -> Tensor:
    """Mean negative log-likelihood of the given next tokens; 0 where there are none. Slope: q - one-hot."""

    def value(ids_N1: Tensor, log_q_NV: Tensor) -> Tensor:
        return -log_q_NV.gather(-1, ids_N1).squeeze(-1)

    def slope(ids_N1: Tensor, log_q_NV: Tensor) -> Tensor:
        return log_q_NV.exp().scatter_add_(-1, ids_N1, torch.full_like(ids_N1, -1, dtype=log_q_NV.dtype))

    per_token_N = _PerToken.apply(logits_NV, next_N[:, None], Divergence(value, slope))
    return per_token_N.sum() / max(1, len(per_token_N))


def forward_kl_loss(student_BTV: Tensor, teacher_BTV: Tensor, mask_BT: Tensor | None) -> Tensor:
    """KL(p || q), the measure the tournament and the reports use. Slope: q - p."""
    return _mean(Divergence(kl_of_log_probs, lambda log_p, log_q: log_q.exp() - log_p.exp()), student_BTV, teacher_BTV, mask_BT)


def reverse_kl_loss(student_BTV: Tensor, teacher_BTV: Tensor, mask_BT: Tensor | None) -> Tensor:
    """KL(q || p): seeks the teacher's modes."""

    def slope(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
        return _through_softmax(log_q_NV, log_q_NV - log_p_NV)

    return _mean(Divergence(lambda log_p, log_q: kl_of_log_probs(log_q, log_p), slope), student_BTV, teacher_BTV, mask_BT)


def skewed_forward_kl(student_BTV: Tensor, teacher_BTV: Tensor, mask_BT: Tensor | None, *, alpha: float = 0.1) -> Tensor:
    """KL(p || m) with m = alpha p + (1 - alpha) q, at most -log(alpha). DistiLLM (arXiv 2402.03898).

    With r = (1 - alpha) q / m the slope is q sum(p r) - p r.
    Raises: ValueError: alpha outside (0, 1).
    """
    _check_alpha(alpha)

    def value(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
        return kl_of_log_probs(log_p_NV, mixed(log_p_NV, log_q_NV, share=alpha))

    def slope(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
        # The product p r is one exponent: r alone overflows nothing, but p / m does where both are tiny.
        log_m_NV = mixed(log_p_NV, log_q_NV, share=alpha)
        pr_NV = _exp(log_p_NV + log_q_NV - log_m_NV) * (1 - alpha)
        return log_q_NV.exp() * pr_NV.sum(-1, keepdim=True) - pr_NV

    return _mean(Divergence(value, slope), student_BTV, teacher_BTV, mask_BT)


def skewed_reverse_kl(student_BTV: Tensor, teacher_BTV: Tensor, mask_BT: Tensor | None, *, alpha: float = 0.1) -> Tensor:
    """KL(q || m) with m = (1 - alpha) p + alpha q, at most -log(alpha). DistiLLM (arXiv 2402.03898).

    Raises: ValueError: alpha outside (0, 1).
    """
    _check_alpha(alpha)

    def value(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
        return kl_of_log_probs(log_q_NV, mixed(log_p_NV, log_q_NV, share=1 - alpha))

    def slope(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
        gap_NV = log_q_NV - mixed(log_p_NV, log_q_NV, share=1 - alpha)
        return _through_softmax(log_q_NV, gap_NV - alpha * _exp(gap_NV))

    return _mean(Divergence(value, slope), student_BTV, teacher_BTV, mask_BT)


def jensen_shannon_loss(student_BTV: Tensor, teacher_BTV: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Mean KL of p and q to their average; symmetric, at most log 2."""

    def value(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
        log_m_NV = mixed(log_p_NV, log_q_NV, share=0.5)
        return (kl_of_log_probs(log_p_NV, log_m_NV) + kl_of_log_probs(log_q_NV, log_m_NV)) / 2

    def slope(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
        return _through_softmax(log_q_NV, (log_q_NV - mixed(log_p_NV, log_q_NV, share=0.5)) / 2)

    return _mean(Divergence(value, slope), student_BTV, teacher_BTV, mask_BT)


def topk_forward_kl(student_BTV: Tensor, teacher_BTV: Tensor, mask_BT: Tensor | None, *, k: int = 128) -> Tensor:
    """KL(p || q) over the teacher's k most likely tokens and one bucket for all others.

    At most the full KL (merging outcomes loses information), equal to it at k = V. What is needed of the teacher fits in k
    numbers a token. With P, Q the masses of the bucket the slope is q - p on the k and q (1 - P / Q) elsewhere.
    Raises: ValueError: k is not a whole number from 1.
    """
    if not math.isfinite(k) or k < 1 or k != int(k):
        raise ValueError(f"k={k:g} needs a whole number from 1")
    n_top = min(int(k), teacher_BTV.shape[-1])

    def split(log_p_NV: Tensor, log_q_NV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        top_NK = log_p_NV.topk(n_top, dim=-1).indices
        rest = [one.scatter(-1, top_NK, -math.inf).logsumexp(-1, keepdim=True) for one in (log_p_NV, log_q_NV)]
        return top_NK, rest[0], rest[1]

    def value(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
        top_NK, p_rest_N1, q_rest_N1 = split(log_p_NV, log_q_NV)
        pairs = ((log_p_NV, p_rest_N1), (log_q_NV, q_rest_N1))
        log_p, log_q = (torch.cat([one.gather(-1, top_NK), rest], -1) for one, rest in pairs)
        return kl_of_log_probs(log_p, log_q)

    def slope(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
        top_NK, p_rest_N1, q_rest_N1 = split(log_p_NV, log_q_NV)
        spread_NV = _exp(log_q_NV - q_rest_N1 + p_rest_N1)  # The rest of the teacher is spread as that of the student.
        goal_NV = spread_NV.scatter(-1, top_NK, log_p_NV.gather(-1, top_NK).exp())
        return log_q_NV.exp() - goal_NV

    return _mean(Divergence(value, slope), student_BTV, teacher_BTV, mask_BT)


def _mean(divergence: Divergence, student_BTV: Tensor, teacher_BTV: Tensor, mask_BT: Tensor | None) -> Tensor:
    if student_BTV.shape != teacher_BTV.shape:
        raise ValueError(f"logits of shapes {tuple(student_BTV.shape)} and {tuple(teacher_BTV.shape)} cannot be compared")
    # Tokens are chosen, not multiplied by 0: padding may hold anything, NaN included.
    chosen = (one.flatten(0, -2) if mask_BT is None else one[mask_BT] for one in (student_BTV, teacher_BTV))
    student_NV, teacher_NV = chosen
    per_token_N: Tensor = _PerToken.apply(student_NV, teacher_NV, divergence)
    return per_token_N.mean()


class _PerToken(torch.autograd.Function):
    """A divergence per token (N,) of (student_NV, reference); the reference is logits, or ids (N, 1)."""

    @staticmethod
    def forward(ctx: Any, student_NV: Tensor, reference: Tensor, divergence: Divergence) -> Tensor:
        size = tokens_per_chunk(student_NV)
        slopes_NV = torch.empty_like(student_NV) if ctx.needs_input_grad[0] else None
        values = []
        for at in range(0, len(student_NV), size):
            log_q_NV, against = _log_probs(student_NV[at : at + size]), reference[at : at + size]
            against = _log_probs(against) if against.is_floating_point() else against
            values.append(divergence.value(against, log_q_NV))
            if slopes_NV is not None:
                slopes_NV[at : at + size] = divergence.slope(against, log_q_NV)
        if slopes_NV is not None:
            ctx.save_for_backward(slopes_NV)
        return torch.cat(values) if values else student_NV.new_zeros(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slopes_NV,) = ctx.saved_tensors
        return slopes_NV * grads[0][:, None].to(slopes_NV.dtype), None, None


def _log_probs(logits_NV: Tensor) -> Tensor:
    return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)).log_softmax(-1)


def _through_softmax(log_q_NV: Tensor, slope_NV: Tensor) -> Tensor:
    """From the gradient in q to the gradient in the logits: q (g - sum(q g)). Where q is 0 it is 0, whatever g is."""
    q_NV = log_q_NV.exp()
    weighed_NV = torch.where(q_NV > 0, q_NV * slope_NV, 0.0)
    return weighed_NV - q_NV * weighed_NV.sum(-1, keepdim=True)


def _exp(log_NV: Tensor) -> Tensor:
    """exp, with 0 where -inf met -inf."""
    return log_NV.exp().nan_to_num(nan=0.0)


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha:g} needs to be between 0 and 1")
