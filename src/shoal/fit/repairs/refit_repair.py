"""The layer before each cut: neurons of the removed layers for its MLP, then both maps that write into the stream.

Of layers that lost a sublayer the map that is left, and neurons of a lost MLP for the next layer that has one.
"""

from __future__ import annotations

from shoal.fit.repair import Fit, Repair, RepairSize
from shoal.words.model_shape import ModelShape


def fit() -> Fit:
    from shoal.fit.sites.of_layer import Sites
    from shoal.fit.sweep import MAPS, Sweep
    from shoal.fit.targets import with_takers

    return Sweep(with_takers, Sites(MAPS, gathers=True))


def size(shape: ModelShape, n_kept: int) -> RepairSize:
    """As one layer of a sweep."""
    from shoal.fit.sweep import whole_sweep_size

    return whole_sweep_size(shape, 1)


EFFORTS = ((2, 8_000), (2, 16_000), (2, 32_000))

REFIT = Repair(
    "refit",
    "the last kept layer before each cut: its MLP takes the best neurons of the removed ones, its maps are refitted",
    fit,
    size,
    efforts=EFFORTS,
)
