"""LAMP: the score of a weight is its square over the sum of the squares of all not smaller ones of its map. arXiv 2010.07611.

The weights of the lowest scores of the whole model go; how many of a map they are is the map's share. The largest weight of a
map scores 1, so no map is emptied, and scaling a map changes nothing. No text is read.

The scores of all maps are never held together: a first pass counts them in bins of their leading bits, a second one collects
the scores of the one bin that the threshold falls into.
Shapes: n weights of a map, K bins.
"""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from shoal.prune.allocator import Allocator, MapKey, ThinEvidence
from shoal.prune.amount import n_zeros

if TYPE_CHECKING:
    from torch import Tensor

BITS = 47
"""Trailing bits of a score that its bin leaves open; the 15 before them number the bin (a double up to 1 has 62 in use)."""

N_BINS = 1 << (62 - BITS)


def lamp_scores(w_DF: Tensor) -> Tensor:
    """(n,) scores in the order of rising ``|w|``, fp64: in fp32 the suffix sum over 16 million weights is 3 % off."""
    squares_n = w_DF.double().flatten().square().sort().values
    suffix_n = squares_n.flip(0).cumsum(0).flip(0)
    return squares_n / suffix_n.clamp_min(1e-300)


def divide_by_lamp(evidence: ThinEvidence, budget: float, *, spread: float, outlier: float) -> dict[MapKey, float]:
    """The share of each map among the weights of the lowest scores; of equal scores the first map's go first."""
    left = n_zeros(budget, sum(evidence.sizes.values()))
    counts = {key: _bins(lamp_scores(w_DF)).bincount(minlength=N_BINS).int() for key, w_DF in evidence.weights()}
    up_to_K = reduce(add, counts.values()).cumsum(0)
    threshold = int((up_to_K < left).sum())
    gone = {key: int(count_K[:threshold].sum()) for key, count_K in counts.items()}
    left -= sum(gone.values())
    for key, n in _lowest_inside(evidence, threshold, left).items():
        gone[key] += n
    return {key: gone[key] / size for key, size in evidence.sizes.items()}


def _bins(scores_n: Tensor) -> Tensor:
    """(n,) number of the bin: doubles of one sign are in the order of their bits."""
    import torch

    return scores_n.view(torch.int64) >> BITS


def _lowest_inside(evidence: ThinEvidence, bin: int, n: int) -> dict[MapKey, int]:
    """How many of the n lowest scores inside one bin belong to each map."""
    import torch

    keys: list[MapKey] = []
    found: list[Tensor] = []
    for key, w_DF in evidence.weights():
        scores_n = lamp_scores(w_DF)
        found.append(scores_n[_bins(scores_n) == bin])
        keys.append(key)
    owner = torch.cat([torch.full_like(one, i, dtype=torch.int64) for i, one in enumerate(found)])
    lowest = owner[torch.cat(found).argsort(stable=True)[:n]].bincount(minlength=len(keys))
    return {key: int(count) for key, count in zip(keys, lowest, strict=True)}


LAMP = Allocator(
    "lamp",
    "by the weights of least square over the squares that are not smaller, over all maps",
    "weights",
    divide_by_lamp,
    ("2010.07611",),
)
