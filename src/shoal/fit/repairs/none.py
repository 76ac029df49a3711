"""No repair: the plain cut."""

from shoal.fit.repair import Repair, RepairSize
from shoal.words.model_shape import ModelShape


def size(shape: ModelShape, n_kept: int) -> RepairSize:
    return RepairSize()


NONE = Repair("none", "plain removal", None, size, compares_repaired=False)
