"""The geometry of every span, token by token: lengths of both ends and of what lies between, from inner products.

The change of a span is a sum of layer updates, x_m - x_l = sum of delta_i for l <= i < m, so all its squared lengths are
block sums of the L x L matrix of <delta_i, delta_j>. Layers that change nothing therefore give exactly 0.

Shapes: T tokens, L layers, E = L + 1 boundaries, S spans (all l < m, row-major).
"""

from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class SpanGeometry:
    """What a criterion may use; every tensor is (S, T) float64.

    Attributes:
        norm_start, norm_stop: ‖x_l‖ and ‖x_m‖, both above 0.
        dist2: ‖x_m - x_l‖², at least 0.
    """

    norm_start: Tensor
    norm_stop: Tensor
    dist2: Tensor

    @cached_property
    def chord2(self) -> Tensor:
        """Squared distance of the two directions, 2 - 2 cos, in [0, 4].

        ‖x_m - x_l‖² splits into the change of length and the chord, so nothing near 1 is ever subtracted: angles far below
        1e-3 keep their digits and equal states give exactly 0.
        """
        radial = (self.norm_stop - self.norm_start).square_()
        return (self.dist2 - radial).div_(self.norm_start * self.norm_stop).clamp_(0.0, 4.0)

    @cached_property
    def dist(self) -> Tensor:
        """‖x_m - x_l‖."""
        return self.dist2.sqrt()

    @cached_property
    def dot(self) -> Tensor:
        """<x_l, x_m>."""
        return (self.norm_start.square() + self.norm_stop.square() - self.dist2).mul_(0.5)


@cache  # A copy to a card waits for it, and every sample would make one.
def span_ends(n_layers: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """(S,) starts and stops of all spans of ``n_layers`` layers, sorted by start, then stop. Shared: not to be edited."""
    starts, stops = torch.triu_indices(n_layers + 1, n_layers + 1, offset=1, device=device)
    return starts, stops


def span_geometry(gram_TLL: Tensor, norms_ET: Tensor) -> SpanGeometry:
    """Lengths of all spans from the inner products of layer updates.

    Args:
        gram_TLL: <delta_i, delta_j> per token, float32 or float64.
        norms_ET: ‖x_l‖ at every boundary, float64.
    """
    n_tokens, n_layers, _ = gram_TLL.shape
    starts, stops = span_ends(n_layers, gram_TLL.device)
    n_ends = n_layers + 1
    # Double prefix sums in fp64 give block_EET[l, m] = <x_l - x_0, x_m - x_0>. A zero update repeats a row and a column
    # exactly.
    block_EET = torch.zeros(n_ends, n_ends, n_tokens, dtype=torch.float64, device=gram_TLL.device)
    block_EET[1:, 1:] = gram_TLL.permute(1, 2, 0)
    flat = block_EET.cumsum_(0).cumsum_(1).view(n_ends * n_ends, n_tokens)
    from_origin = flat[:: n_ends + 1]
    dist2 = from_origin[starts].add_(from_origin[stops]).sub_(flat[starts * n_ends + stops], alpha=2.0).clamp_(min=0.0)
    return SpanGeometry(norms_ET[starts], norms_ET[stops], dist2)
