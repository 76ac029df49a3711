"""ERK: the share that stays goes with (outputs + inputs) / (outputs * inputs), so wide maps are thinned more. arXiv 1911.11134.

A map whose share would pass 1 keeps all its weights, and the others make up for it.
"""

from shoal.prune.allocator import Allocator, MapKey, ThinEvidence
from shoal.prune.amount import MOST_SHARE
from shoal.words.shares import scaled


def divide_by_shape(evidence: ThinEvidence, budget: float, *, spread: float, outlier: float) -> dict[MapKey, float]:
    """One constant times the weights above, kept in its limits, as the share that stays."""
    weights = {key: (outputs + inputs) / (outputs * inputs) for key, (outputs, inputs) in evidence.shapes.items()}
    kept = scaled(evidence.sizes, weights, 1 - budget, least=1 - MOST_SHARE)
    return {key: 1 - one for key, one in kept.items()}


ERK = Allocator(
    "erk", "narrow maps keep more, by the sum of their sides over their product", "shapes", divide_by_shape, ("1911.11134",)
)
