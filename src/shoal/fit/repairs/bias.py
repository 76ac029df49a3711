"""The biases of the layer before each cut: the mean of what is missing."""

from shoal.fit.repair import N_SUMS, Fit, Repair, RepairSize, bytes_of_sums
from shoal.words.model_shape import ModelShape


def fit() -> Fit:
    from shoal.fit.sites.bias import find_bias
    from shoal.fit.sites.of_layer import Sites
    from shoal.fit.sweep import Sweep
    from shoal.fit.targets import before_cuts

    return Sweep(before_cuts, Sites(("mlp", "attn"), (find_bias,)))


def size(shape: ModelShape, n_kept: int) -> RepairSize:
    sums = N_SUMS * bytes_of_sums(0, shape.hidden)
    return RepairSize(parameters=2 * shape.hidden, layers=1, solved=(0, 0), sums=sums)


BIAS = Repair("bias", "the biases of the last kept layer, where the family has them", fit, size)
