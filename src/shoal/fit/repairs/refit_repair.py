"""Both maps of the layer before each cut that write into the stream."""

from __future__ import annotations

from shoal.fit.repair import N_SUMS, Fit, Repair, RepairSize, bytes_of_sums
from shoal.words.model_shape import ModelShape


def fit() -> Fit:
    from shoal.fit.sites.of_layer import Sites
    from shoal.fit.sweep import MAPS, Sweep
    from shoal.fit.targets import before_cuts

    return Sweep(before_cuts, Sites(MAPS))


def size(shape: ModelShape, n_kept: int) -> RepairSize:
    """The MLP's map reads all its neurons; the attention's map is taken to be square."""
    maps = (shape.ffn + shape.hidden) * shape.hidden
    sums = N_SUMS * bytes_of_sums(shape.ffn, shape.hidden)
    return RepairSize(parameters=maps, layers=1, solved=(shape.ffn, shape.hidden, shape.ffn), sums=sums)


EFFORTS = ((2, 8_000), (2, 16_000), (2, 32_000))

REFIT = Repair("refit", "the maps of the last kept layer before each cut", fit, size, efforts=EFFORTS)
