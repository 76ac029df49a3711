"""OWL: layers with more outliers keep more. arXiv 2310.05175.

D_l is the share of a layer's weights with ``|w_ij| * ||x_j||`` above ``outlier`` times the layer's mean, in the dense model.
The shares of zeros fall linearly with D_l over a range of ``2 * spread``. The mean that meets the budget is weighted by
parameters: the released program takes the plain one, which misses the budget where layers differ in size.
"""

from shoal.prune.allocator import Allocator, MapKey, ThinEvidence
from shoal.prune.amount import MOST_SHARE
from shoal.words.shares import allocate


def divide_by_outliers(evidence: ThinEvidence, budget: float, *, spread: float, outlier: float) -> dict[MapKey, float]:
    """The same share in all maps of a layer."""
    of_layer = allocate(evidence.layer_sizes, evidence.outliers(outlier), budget, spread, most=MOST_SHARE)
    return {key: of_layer[key[0]] for key in evidence.shapes}


OWL = Allocator(
    "owl", "layers with more outliers keep more", "inputs", divide_by_outliers, ("2310.05175",), ("spread", "outlier")
)
