"""Distances of two vectors, token by token: logits or hidden states as plain vectors.

Everything is computed in fp32 at least, in chunks of tokens, so that temporaries stay small beside the logits themselves.
Angles come from the chord between the two directions, never from a cosine near 1, so small ones keep their digits.
Shapes: N tokens, X any length.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from shoal.measure.divergence import tokens_per_chunk


def distance(a_NX: Tensor, b_NX: Tensor) -> Tensor:
    """Euclidean distance (N,), at least 0; exactly 0 for equal vectors. Raises ValueError: shapes differ."""
    return _by_chunk(lambda a, b: torch.linalg.vector_norm(a - b, dim=-1), a_NX, b_NX)


def angle(a_NX: Tensor, b_NX: Tensor) -> Tensor:
    """Angle (N,) in units of pi, 0 to 1: 2 asin(chord / 2) / pi; exactly 0 for equal vectors.

    A vector of zeros has no direction: it counts as equal to another vector of zeros and as at right angles to all others.
    Raises ValueError: shapes differ.
    """
    return _by_chunk(_angle, a_NX, b_NX)


def lost_cosine(a_NX: Tensor, b_NX: Tensor) -> Tensor:
    """1 - cosine (N,), 0 to 2; exactly 0 for equal vectors. Zeros as in :func:`angle`. Raises ValueError: shapes differ."""
    return _by_chunk(lambda a, b: _chord(a, b).square() / 2, a_NX, b_NX)


def _angle(a_NX: Tensor, b_NX: Tensor) -> Tensor:
    return torch.asin((_chord(a_NX, b_NX) / 2).clamp_(max=1.0)).mul_(2 / math.pi)


def _chord(a_NX: Tensor, b_NX: Tensor) -> Tensor:
    """Distance of the two directions, 0 to 2."""
    return torch.linalg.vector_norm(_direction(a_NX) - _direction(b_NX), dim=-1).clamp_(max=2.0)


def _direction(a_NX: Tensor) -> Tensor:
    norm_N1 = torch.linalg.vector_norm(a_NX, dim=-1, keepdim=True)
    return torch.where(norm_N1 > 0, a_NX / norm_N1, 0.0)


def _by_chunk(function: Callable[[Tensor, Tensor], Tensor], a_NX: Tensor, b_NX: Tensor) -> Tensor:
    if a_NX.shape != b_NX.shape:
        raise ValueError(f"vectors of shapes {tuple(a_NX.shape)} and {tuple(b_NX.shape)} cannot be compared token by token")
    exact = torch.promote_types(a_NX.dtype, torch.float32)
    size = tokens_per_chunk(a_NX)
    pieces = zip(a_NX.split(size), b_NX.split(size), strict=True)
    return torch.cat([function(a.to(exact), b.to(exact)) for a, b in pieces])
