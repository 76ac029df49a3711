"""One scale per cut: the norm of the stream (Prune&Comp, arXiv 2507.18212)."""

from shoal.edits.replace.contract import Replacement
from shoal.fit.repair import N_SUMS, Fit, Repair, RepairSize, TrainedOn, bytes_of_sums
from shoal.words.model_shape import ModelShape


def fit() -> Fit:
    from shoal.fit.norm_scale import NormScale

    return NormScale()


def size(shape: ModelShape, n_kept: int) -> RepairSize:
    """Both maps of every layer behind the cut change; a scale needs no sums to speak of."""
    maps = n_kept * (shape.ffn + shape.hidden) * shape.hidden
    return RepairSize(parameters=maps, layers=n_kept, sums=N_SUMS * bytes_of_sums(0, shape.hidden))


def conflict(replacement: Replacement | None, trained_on: TrainedOn) -> str:
    if "stream" not in trained_on:
        return ""
    return "repair 'magnitude' scales the stream away from the teacher's, so polish it on logits: --polish kl"


MAGNITUDE = Repair(
    "magnitude", "one scale per cut, folded into the maps after it (Prune&Comp)", fit, size, conflict, needs_layers=True
)
