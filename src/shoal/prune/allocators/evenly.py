"""Uniform allocation: every map has the same share of zeros."""

from shoal.prune.allocator import Allocator, MapKey, ThinEvidence


def divide_evenly(evidence: ThinEvidence, budget: float, *, spread: float, outlier: float) -> dict[MapKey, float]:
    """The budget for each."""
    return dict.fromkeys(evidence.shapes, budget)


UNIFORM = Allocator("uniform", "the same share in every map", "shapes", divide_evenly)
