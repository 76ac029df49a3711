"""Which tokens an average is over: the last one, all but sinks, all, or the sinks. Padding belongs to none.

A sink is the first real token of a sample and every token whose norm, at any boundary, exceeds 20 times the median of that
boundary over the sample's real tokens. Its norm is 100-1000 times the rest, so it would own every sum it enters.
The rule looks at one sample at a time, so it does not depend on batching.
"""

import torch
from torch import Tensor

from shoal.words.types import Batch

MASSIVE = 20.0
"""Times the median norm of a boundary."""


def massive_tokens(norms_ET: Tensor) -> Tensor:
    """(E, T) bool: which real tokens of one sample exceed 20 times the median norm, per boundary."""
    return norms_ET > MASSIVE * norms_ET.median(dim=1, keepdim=True).values


def sink_tokens(massive_ET: Tensor) -> Tensor:
    """(T,) bool: the sinks among the real tokens of one sample, from :func:`massive_tokens` at all E boundaries."""
    sinks_T = massive_ET.any(dim=0)
    sinks_T[0] = True
    return sinks_T


def real_lengths(batch: Batch) -> list[int]:
    """Number of real tokens of each sample.

    Raises:
        ValueError: padding that is not on the right, or a sample without a real token.
    """
    n_samples, n_positions = batch.ids_BT.shape
    if batch.mask_BT is None:
        return [n_positions] * n_samples
    lengths_B = batch.mask_BT.sum(dim=1)
    on_the_right = torch.arange(n_positions, device=lengths_B.device) < lengths_B[:, None]
    if not torch.equal(on_the_right, batch.mask_BT.bool()) or not bool((lengths_B > 0).all()):
        raise ValueError(f"batch {batch.index} has samples that are empty or not padded on the right; pad on the right")
    return [int(length) for length in lengths_B.tolist()]
