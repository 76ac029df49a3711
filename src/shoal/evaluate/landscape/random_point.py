"""A random point as far from A as B is: what a distance alone does to the loss. The control of arXiv 2307.06966.

Where B's part costs less than such points, it is the direction that does it, not a flat place around A.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Euclidean distance of some parameters, all of them taken as one vector; in fp64."""
    return math.sqrt(sum(float((b[name].to(one.device).double() - one.double()).square().sum()) for name, one in a.items()))


@torch.no_grad()
def random_point(a: Mapping[str, Tensor], b: Mapping[str, Tensor], *, seed: int) -> dict[str, Tensor]:
    """A's parameters, moved in one random direction of all of them together, by the distance to B's; in A's dtype.

    Normal numbers have no direction that they prefer, and are scaled to the length. They are drawn on the CPU, so that every
    device gets the same.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(value.shape, generator=generator) for name, value in a.items()}
    length = math.sqrt(sum(float(one.double().square().sum()) for one in drawn.values()))
    scale = distance(a, b) / length if length else 0.0
    found = {}
    for name, value in a.items():
        exact = torch.promote_types(value.dtype, torch.float32)
        found[name] = (value.to(exact) + scale * drawn[name].to(value.device, exact)).to(value.dtype)
    return found
