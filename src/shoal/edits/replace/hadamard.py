"""One number per rotated channel, ``H diag(s) H^T x``: LinearPatch (arXiv 2505.24680).

Its values have a closed form: one regression per rotated channel, or the paper's own ratio of mean magnitudes. For hidden sizes
that are no power of two see :class:`shoal.edits.replace.modules.Hadamard`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Self

from shoal.edits.replace.contract import Layout
from shoal.edits.replace.described import StreamReplacement

if TYPE_CHECKING:
    from torch import Tensor, nn

    from shoal.edits.replace.closed_form import ClosedForm, Moments
    from shoal.edits.replace.family_mlp import Forms
    from shoal.words.model_shape import ModelShape


class HadamardReplacement(StreamReplacement):
    """``H diag(1 + delta) H^T x``; no options."""

    name: ClassVar[str] = "hadamard"
    about: ClassVar[str] = "one scale per Hadamard-rotated channel of the stream"
    layouts: ClassVar[tuple[Layout, ...]] = ("code",)
    has_closed_form: ClassVar[bool] = True

    @classmethod
    def closed_form(cls, module: nn.Module) -> ClosedForm:
        from shoal.edits.replace.closed_form import ClosedForm, Ratio

        ratio = Ratio(rotated_magnitudes, change_of_ratios)
        return ClosedForm(lambda h_BTD: h_BTD, rotated_values, change=rotated_channels, ratio=ratio)

    def with_forms(self, forms: Forms) -> Self:
        return self

    def most_parameters(self, shape: ModelShape) -> int:
        return shape.hidden

    def module_options(self) -> dict[str, Any]:
        return {}


def rotation_matrix(size: int, *, like: Tensor) -> Tensor:
    """H of :class:`shoal.edits.replace.modules.Hadamard`; its columns are the rotated channels."""
    import torch

    from shoal.edits.replace.modules import rotate

    return rotate(torch.eye(size, dtype=like.dtype, device=like.device), inverse=False).mT


def rotated_channels(sums: Moments, ridge: float) -> Tensor:
    """D regressions in the rotated basis, without a bias. The sinks would fix each of them on its own, so they stay out."""
    import torch

    found_ED = torch.zeros_like(sums.hr_ED)
    if math.isinf(ridge):
        return found_ED
    h_DD = rotation_matrix(len(sums.hr_ED) - 1, like=sums.hr_ED)
    xx_D = (h_DD.mT @ sums.hh_EE[:-1, :-1] @ h_DD).diagonal() + ridge * sums.mean_diagonal
    xr_D = (h_DD.mT @ sums.hr_ED[:-1] @ h_DD).diagonal()
    found_ED[:-1] = (h_DD * (xr_D / xx_D.clamp(min=torch.finfo(xx_D.dtype).tiny))) @ h_DD.mT
    return found_ED


def rotated_values(change_ED: Tensor) -> dict[str, Tensor]:
    """The module's state for a change that is diagonal in the rotated basis."""
    h_DD = rotation_matrix(len(change_ED) - 1, like=change_ED)
    return {"delta": (h_DD.mT @ change_ED[:-1] @ h_DD).diagonal().clone()}


def rotated_magnitudes(x_ND: Tensor) -> Tensor:
    """(N, D): the magnitude of each rotated channel."""
    from shoal.edits.replace.modules import rotate

    return rotate(x_ND, inverse=True).abs()


def change_of_ratios(ratio_D: Tensor) -> Tensor:
    """(E, D) change that multiplies every rotated channel by its ratio."""
    from torch.nn.functional import pad

    delta_D = ratio_D - 1.0
    h_DD = rotation_matrix(len(delta_D), like=delta_D)
    return pad((h_DD * delta_D) @ h_DD.mT, (0, 0, 0, 1))
