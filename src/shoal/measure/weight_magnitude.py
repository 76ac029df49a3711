"""Magnitude of the weights of a unit: the baseline that fails, because it sees weights and not what they do.

Source: the magnitude rows of Reassessing Layer Pruning (arXiv 2411.15558), which rank among the last there. A unit whose
output map is zero changes nothing, and may have the largest weights of all.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from shoal.engine.view import DecoderView
from shoal.measure.unit_parameters import parameters_of
from shoal.words.types import Unit, UnitTable


@torch.no_grad()
def weight_magnitudes(view: DecoderView, units: Sequence[Unit]) -> tuple[UnitTable, UnitTable]:
    """Tables ``weight_l1``, the sum of absolute weights, and ``weight_l2``, the sum of the norms of all weight matrices.

    Vectors (norms, biases) do not count. No text is read.
    Raises:
        ValueError: a sublayer that is no module of its own; packed weights.
    """
    l1, l2 = np.zeros(len(units)), np.zeros(len(units))
    for layer in sorted({unit.index for unit in units}):
        with view.residency.layer(layer) as module:
            for place, unit in enumerate(units):
                if unit.index != layer:
                    continue
                matrices = [one for one in parameters_of(unit, module).values() if one.ndim >= 2]
                if any(not one.is_floating_point() or one.element_size() == 1 for one in matrices):
                    raise ValueError(
                        f"the weights of layer {layer} are packed (quantised), so they have no magnitudes to score by"
                    )
                l1[place] = sum(_sum(one.abs()) for one in matrices)
                l2[place] = sum(_sum(one.float().square()) ** 0.5 for one in matrices)
    return _table("weight_l1", units, l1), _table("weight_l2", units, l2)


def _sum(values: Tensor) -> float:
    return values.sum(dtype=torch.float64).item()


def _table(criterion: str, units: Sequence[Unit], values: np.ndarray) -> UnitTable:
    return UnitTable(criterion, tuple(units), values, np.zeros(len(units)), "sum over weights", False, 0)
