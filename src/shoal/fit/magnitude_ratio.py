"""The ratio of mean magnitudes behind and before a span: one over all channels, or one for each of some.

Prune&Comp (arXiv 2507.18212) takes one ratio over all channels, LinearPatch (arXiv 2505.24680) one per channel of the Hadamard
basis; both average the ratio over samples.

Shapes: B samples, T positions, D hidden size, N tokens, C channels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from shoal.fit.fit_config import FitConfig
from shoal.fit.held_out import LayerEnds, counted


def whole(x_ND: Tensor) -> Tensor:
    """(N, 1): the magnitude of a token over all channels."""
    return x_ND.abs().sum(-1, keepdim=True)


def mean_ratio(ends: LayerEnds, *, of: Callable[[Tensor], Tensor], config: FitConfig) -> Tensor:
    """(C,) mean over the samples of the fit of mean ``of(y)`` / mean ``of(x)``; 1 where a channel is silent, fp64.

    Args:
        ends: the states x before a span, and y behind it.
        of: (N, D) states to the (N, C) magnitudes that are averaged over tokens.
    """
    total_C, n = torch.zeros((), dtype=torch.float64), 0
    for reading, x_BTD, y_BTD, folds_B in zip(ends.readings, ends.inputs, ends.goals, ends.folds, strict=True):
        counted_BT = counted(reading.batch, x_BTD, y_BTD, config)
        for sample in (folds_B > 0).nonzero().flatten().tolist():
            before_C, after_C = (of(one[sample][counted_BT[sample]].double()).sum(0) for one in (x_BTD, y_BTD))
            total_C = total_C.to(before_C.device) + torch.where(before_C > 0, after_C / before_C, 1.0)
            n += 1
    return total_C / n
