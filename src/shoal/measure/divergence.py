"""How far a student's next-token distribution is from the teacher's: KL both ways, Jensen-Shannon, overlap, top-1
agreement, NLL.

Everything is per token and chunked over tokens, so that fp32 temporaries of the size of the vocabulary stay small whatever
the batch. With d = log p - log q, KL(p || q) is summed as p d - p + q: the same sum, because p and q each sum to one, but no
term is negative, equal logits give exactly 0, and a rounding error of a log-normaliser enters only in second order.
Shapes: ... any leading dimensions (batch, position), N all of them flattened, V vocabulary, B samples, T positions.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 1 << 20}  # One fp32 temporary has 4 MB, so that a handful of them stay in cache.
CHUNK_ELSEWHERE = 1 << 25  # A card has no such cache, and each operation costs a launch, so chunks are few and large.


def tokens_per_chunk(logits_V: Tensor) -> int:
    """Tokens whose logits are worked on at once."""
    return max(1, CHUNK_ELEMENTS.get(logits_V.device.type, CHUNK_ELSEWHERE) // logits_V.shape[-1])


def forward_kl(teacher_V: Tensor, student_V: Tensor) -> Tensor:
    """KL(teacher || student) per token, in nats.

    Args: teacher_V, student_V: logits (..., V) of one shape, any float dtype; computed in fp32.
    Returns: (...) fp32, >= 0; exactly 0 where the logits are equal. Infinite only where the student gives probability 0
        (a logit of -inf) to a token the teacher allows.
    Raises: ValueError: shapes differ.
    """
    return _per_token(_kl, teacher_V, student_V)


def reverse_kl(teacher_V: Tensor, student_V: Tensor) -> Tensor:
    """KL(student || teacher) per token, in nats; otherwise as :func:`forward_kl`."""
    return _per_token(_kl, student_V, teacher_V)


def jensen_shannon(teacher_V: Tensor, student_V: Tensor) -> Tensor:
    """Jensen-Shannon divergence per token, in nats: the mean KL of both to their average. Symmetric, in [0, log 2]."""
    return _per_token(_js, teacher_V, student_V)


def top1_agreement(teacher_V: Tensor, student_V: Tensor) -> Tensor:
    """Bool (...): teacher and student give the same most likely token (the first of equals)."""
    _check_shapes(teacher_V, student_V)
    return teacher_V.argmax(-1) == student_V.argmax(-1)


def overlap(teacher_V: Tensor, student_V: Tensor) -> Tensor:
    """Sum over the vocabulary of min(p, q) per token: the probability that a token drafted by the student is accepted.

    Source: speculative sampling, arXiv 2211.17192 (the same for either as the draft). Summed as
    1 - sum |p - q| / 2, so equal logits give exactly 1.
    Returns: (...) fp32 in [0, 1].
    Raises: ValueError: shapes differ.
    """
    return _per_token(_overlap, teacher_V, student_V)


def token_nll(logits_V: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood of the target tokens, in nats.

    Args: logits_V: (..., V); target: (...) int64, the token that comes next at each position.
    Returns: (...) fp32.
    Raises: ValueError: leading shapes differ.
    """
    if logits_V.shape[:-1] != target.shape:
        raise ValueError(
            f"logits {tuple(logits_V.shape)} need targets of shape {tuple(logits_V.shape[:-1])}, got {tuple(target.shape)}"
        )

    def nll(logits_NV: Tensor, target_N: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits_NV.float(), target_N, reduction="none")

    return _chunked(nll, logits_V, target.reshape(-1)).reshape(target.shape)


def predicts(ids_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Positions that are measured: real tokens followed by a real token.

    Returns: bool (B, T-1); entry t is True where tokens t and t+1 are both real. Padding never counts.
    """
    if mask_BT is None:
        return torch.ones_like(ids_BT[:, 1:], dtype=torch.bool)
    return mask_BT[:, :-1].bool() & mask_BT[:, 1:].bool()


def _kl(p_logits_NV: Tensor, q_logits_NV: Tensor) -> Tensor:
    return kl_of_log_probs(p_logits_NV.float().log_softmax(-1), q_logits_NV.float().log_softmax(-1))


def _js(p_logits_NV: Tensor, q_logits_NV: Tensor) -> Tensor:
    log_p, log_q = p_logits_NV.float().log_softmax(-1), q_logits_NV.float().log_softmax(-1)
    log_m = mixed(log_p, log_q, share=0.5)
    return (kl_of_log_probs(log_p, log_m) + kl_of_log_probs(log_q, log_m)) / 2


def mixed(log_p_NV: Tensor, log_q_NV: Tensor, *, share: float) -> Tensor:
    """log(share p + (1 - share) q), finite wherever p or q is; equal entries keep their value to the last bit."""
    log_m_NV = torch.logaddexp(log_p_NV + math.log(share), log_q_NV + math.log1p(-share))
    return torch.where(log_p_NV == log_q_NV, log_p_NV, log_m_NV)


def kl_of_log_probs(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """KL(p || q) (N,): the sum over V of p d - p + q, written as p (exp(-d) - 1 + d); every term is >= 0, and exactly 0 at
    d = 0."""
    d = log_p_NV - log_q_NV
    p = log_p_NV.exp()
    term = torch.neg(d).expm1_().add_(d).mul_(p)
    # Where p vanishes against q (or both vanish, and d is not a number) the term is q itself; exp(-d) would overflow.
    return torch.where((d > -80) & (p > 0), term, log_q_NV.exp()).sum(-1).clamp_(min=0)


def _overlap(p_logits_NV: Tensor, q_logits_NV: Tensor) -> Tensor:
    gap_NV = p_logits_NV.float().softmax(-1).sub_(q_logits_NV.float().softmax(-1))
    return gap_NV.abs_().sum(-1).div_(-2).add_(1).clamp_(min=0)


def _check_shapes(teacher_V: Tensor, student_V: Tensor) -> None:
    if teacher_V.shape != student_V.shape:
        raise ValueError(
            f"teacher logits {tuple(teacher_V.shape)} and student logits {tuple(student_V.shape)} differ in shape; "
            "both must come from the same text and one vocabulary"
        )


def _per_token(divergence: Callable[[Tensor, Tensor], Tensor], p_V: Tensor, q_V: Tensor) -> Tensor:
    _check_shapes(p_V, q_V)
    return _chunked(divergence, p_V, q_V.reshape(-1, q_V.shape[-1])).reshape(p_V.shape[:-1])


def _chunked(function: Callable[[Tensor, Tensor], Tensor], first_V: Tensor, second_N: Tensor) -> Tensor:
    first_NV = first_V.reshape(-1, first_V.shape[-1])
    size = tokens_per_chunk(first_V)
    pieces = zip(first_NV.split(size), second_N.split(size), strict=True)
    return torch.cat([function(first, second) for first, second in pieces])
