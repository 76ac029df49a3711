"""A linear map behind the MLP of the layer before each cut (ReplaceMe, arXiv 2505.02819)."""

from shoal.fit.repair import N_SUMS, Fit, Repair, RepairSize, bytes_of_sums
from shoal.words.model_shape import ModelShape


def fit() -> Fit:
    from shoal.fit.sites.folded_map import find_output
    from shoal.fit.sites.of_layer import Sites
    from shoal.fit.sweep import Sweep
    from shoal.fit.targets import before_cuts

    return Sweep(before_cuts, Sites(("mlp",), (find_output,)))


def size(shape: ModelShape, n_kept: int) -> RepairSize:
    """The map reads what the MLP returns."""
    sums = N_SUMS * bytes_of_sums(shape.hidden, shape.hidden)
    return RepairSize(parameters=shape.ffn * shape.hidden, layers=1, solved=(shape.hidden,), sums=sums)


MAP = Repair("map", "a linear map of the last kept MLP's output, folded into its down_proj or experts (ReplaceMe)", fit, size)
