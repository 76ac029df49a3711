"""Leave one out: how much the loss grows when a unit goes alone. By any metric; M + 1 evaluations of a set function.

Source: the perplexity ranking of Reassessing Layer Pruning (arXiv 2411.15558), and, up to a strictly monotone map, the scores
that the code of A deeper look at depth pruning (arXiv 2407.16286) calls Shapley, as it draws only sets that lack one unit.
With the metric ``lost_cka`` it is the score of Effective Layer Pruning through a Similarity Metric (arXiv 2405.17081).
"""

import numpy as np

from shoal.measure.set_function import SetFunction
from shoal.words.types import UnitTable


def leave_one_out(function: SetFunction) -> UnitTable:
    """The growth of the loss without each unit; exactly 0 for one that does nothing, and below 0 for one that does harm."""
    whole, *without = function.values([frozenset(), *(frozenset({unit}) for unit in function.units)])
    return UnitTable(
        criterion="left_out",
        units=function.units,
        values=np.array([loss - whole for loss in without]),
        stderr=np.full(len(without), np.nan),
        unit="growth of the loss",
        higher_is_more_redundant=False,
        n_samples=0,
    )
