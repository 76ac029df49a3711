"""An affine map of the normed stream, ``x + W norm(x) + b``; with a rank W is a product of two thin maps.

Its values have a closed form: least squares on the change of the span. With a rank it is reduced-rank regression, the affine
map projected on the leading directions of what it explains, which is the best of that rank for the same sums.

Shapes: D hidden size, E = D + 1, F inputs (F = D), R rank.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from shoal.edits.replace.contract import MOST_WIDTH, Layout
from shoal.edits.replace.described import StreamReplacement

if TYPE_CHECKING:
    from torch import Tensor, nn

    from shoal.edits.replace.closed_form import Change, ClosedForm, Moments
    from shoal.edits.replace.family_mlp import Forms
    from shoal.words.model_shape import ModelShape


class LinearReplacement(StreamReplacement):
    """``x + W norm(x) + b``.

    Attributes:
        rank: of W; None: full, one square map.
        norm, eps: None: the family's.
    """

    name: ClassVar[str] = "linear"
    about: ClassVar[str] = "an affine map of the normed stream, of full or low rank"
    layouts: ClassVar[tuple[Layout, ...]] = ("stock", "code")
    has_closed_form: ClassVar[bool] = True

    rank: int | None = Field(default=None, ge=1, le=MOST_WIDTH)
    norm: Literal["rms", "layer"] | None = None
    eps: float | None = Field(default=None, ge=0)

    @classmethod
    def closed_form(cls, module: nn.Module) -> ClosedForm:
        from shoal.edits.replace.closed_form import ClosedForm
        from shoal.edits.replace.modules import Linear

        assert isinstance(module, Linear)
        norm = {name: value for name, value in module.state_dict().items() if name.startswith("norm.")}
        if module.rank is None:
            return ClosedForm(module.norm, lambda change_ED: norm | whole_values(change_ED), bias=True)
        rank = module.rank
        change = low_rank_change(rank)
        return ClosedForm(module.norm, lambda change_ED: norm | low_rank_values(change_ED, rank), bias=True, change=change)

    def with_forms(self, forms: Forms) -> Self:
        if self.rank is not None and self.rank > forms.hidden_size:
            raise ValueError(f"rank={self.rank} is above the hidden size {forms.hidden_size}; leave it out for a full map")
        family: dict[str, Any] = {"norm": forms.norm, "eps": forms.eps}
        return self.model_copy(update={name: value for name, value in family.items() if getattr(self, name) is None})

    def most_parameters(self, shape: ModelShape) -> int:
        return shape.hidden * (shape.hidden if self.rank is None else 2 * self.rank) + 3 * shape.hidden

    def module_options(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"layout"})


def low_rank_change(rank: int) -> Change:
    """Affine with a linear part of at most ``rank``. The constraint on the sinks may need a direction more: they stay out."""

    def change(sums: Moments, ridge: float) -> Tensor:
        import torch

        found_ED = torch.zeros_like(sums.hr_ED)
        if math.isinf(ridge):
            return found_ED
        n, mean_F, mean_D = sums.hh_EE[-1, -1], sums.hh_EE[-1, :-1], sums.hr_ED[-1]
        if float(n) <= 0:
            return found_ED
        a_FF = sums.hh_EE[:-1, :-1] - torch.outer(mean_F, mean_F) / n  # The bias, which is never shrunk, takes the means.
        hr_FD = sums.hr_ED[:-1] - torch.outer(mean_F, mean_D) / n
        a_FF.diagonal().add_(ridge * sums.mean_diagonal)
        full_FD = torch.linalg.solve(a_FF, hr_FD)
        explained_DD = hr_FD.mT @ full_FD
        leading_DR = torch.linalg.eigh((explained_DD + explained_DD.mT) / 2).eigenvectors[:, -rank:]
        found_ED[:-1] = full_FD @ leading_DR @ leading_DR.mT
        found_ED[-1] = (mean_D - mean_F @ found_ED[:-1]) / n
        return found_ED

    return change


def whole_values(change_ED: Tensor) -> dict[str, Tensor]:
    """The state of the one square map, and its bias."""
    return {"map.weight": change_ED[:-1].mT, "map.bias": change_ED[-1]}


def low_rank_values(change_ED: Tensor, rank: int) -> dict[str, Tensor]:
    """The state of two thin maps whose product the change is, of equal norms, and the bias."""
    import torch

    left_DR, values_R, right_RD = torch.linalg.svd(change_ED[:-1], full_matrices=False)
    root_R = values_R[:rank].sqrt()
    return {
        "down.weight": (left_DR[:, :rank] * root_R).mT,
        "up.weight": (root_R[:, None] * right_RD[:rank]).mT,
        "up.bias": change_ED[-1],
    }
