"""Every kept layer from the one before the first cut on, front to back; MLPs before a cut take neurons of removed layers."""

from shoal.fit.repair import EFFORTS_OF_SWEEPS, Fit, Repair, RepairSize
from shoal.words.model_shape import ModelShape


def fit() -> Fit:
    from shoal.fit.sweep import WHOLE_SWEEP

    return WHOLE_SWEEP


def size(shape: ModelShape, n_kept: int) -> RepairSize:
    from shoal.fit.sweep import whole_sweep_size

    return whole_sweep_size(shape, n_kept)


SWEEP = Repair(
    "sweep",
    "that layer as refit does, and the maps of every kept layer after it",
    fit,
    size,
    efforts=EFFORTS_OF_SWEEPS,
    ranks_by="refit",
)
