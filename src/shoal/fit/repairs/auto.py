"""A sweep where the family has an exact one, else the plain cut."""

from shoal.fit.repair import EFFORTS_OF_SWEEPS, Fit, Repair, RepairSize
from shoal.words.model_shape import ModelShape


def fit() -> Fit:
    from shoal.fit.sweep import WHOLE_SWEEP

    return WHOLE_SWEEP


def size(shape: ModelShape, n_kept: int) -> RepairSize:
    from shoal.fit.sweep import whole_sweep_size

    return whole_sweep_size(shape, n_kept)


AUTO = Repair(
    "auto",
    "sweep where the family has an exact one, else the plain cut, said aloud",
    fit,
    size,
    efforts=EFFORTS_OF_SWEEPS,
    else_plain=True,
    comes_to="sweep",
    ranks_by="refit",
)
