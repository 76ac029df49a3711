"""Closed forms of the patches of the residual stream: the best change ``[x, 1] @ change`` of each form, from d x d sums.

Every form is fitted to the change of the block, y - x, so an infinite ridge leaves the stream as it is. ``x`` is what the patch
reads: the stream, or for ``linear`` the normed stream.

* ``linear``: affine; with a rank, reduced-rank regression: the affine map projected on the leading directions of what it
  explains, which is the best of that rank for the same sums.
* ``free``: linear, Ghosted Layers (arXiv 2605.15491); ``bias`` as well where the module has one.
* ``hadamard``: one factor per rotated channel, LinearPatch (arXiv 2505.24680); its ratio of magnitudes is in ``ratio.py``.
* ``rotation``: orthogonal Procrustes with a scale.

Shapes: N tokens, D hidden size, E = D + 1, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.edits.replace.modules import Free, Hadamard, Linear, Patch, Rotation, rotate
from shoal.fit.solve import mean_diagonal, ridge_change
from shoal.fit.sums import MapSums

Change = Callable[[MapSums, float], Tensor]
"""(E, D) change of the stream from sums and a ridge in units of the mean diagonal."""


@dataclass(frozen=True)
class PatchForm:
    """One form of patch.

    Attributes:
        reads: what of the stream the patch reads, by the module.
        change: the best change of this form, for the module's options.
        values: the module's new state for a change of this form.
    """

    reads: Callable[[Patch, Tensor], Tensor]
    change: Callable[[Patch], Change]
    values: Callable[[Patch, Tensor], dict[str, Tensor]]


def affine_change(*, bias: bool) -> Change:
    return lambda sums, ridge: ridge_change(sums, ridge, bias=bias)


def low_rank_change(rank: int) -> Change:
    """Affine with a linear part of at most ``rank``. The constraint on the sinks may need a direction more: they stay out."""

    def change(sums: MapSums, ridge: float) -> Tensor:
        found_ED = torch.zeros_like(sums.hr_ED)
        if math.isinf(ridge):
            return found_ED
        n, mean_F, mean_D = sums.hh_EE[-1, -1], sums.hh_EE[-1, :-1], sums.hr_ED[-1]
        if float(n) <= 0:
            return found_ED
        a_FF = sums.hh_EE[:-1, :-1] - torch.outer(mean_F, mean_F) / n  # the bias, never shrunk, takes the means
        hr_FD = sums.hr_ED[:-1] - torch.outer(mean_F, mean_D) / n
        a_FF.diagonal().add_(ridge * mean_diagonal(sums))
        full_FD = torch.linalg.solve(a_FF, hr_FD)
        explained_DD = hr_FD.mT @ full_FD
        leading_DR = torch.linalg.eigh((explained_DD + explained_DD.mT) / 2).eigenvectors[:, -rank:]
        found_ED[:-1] = full_FD @ leading_DR @ leading_DR.mT
        found_ED[-1] = (mean_D - mean_F @ found_ED[:-1]) / n
        return found_ED

    return change


def rotated_channels(sums: MapSums, ridge: float) -> Tensor:
    """D regressions in the rotated basis, without a bias. Each is fixed by the sinks on its own, so they stay out."""
    found_ED = torch.zeros_like(sums.hr_ED)
    if math.isinf(ridge):
        return found_ED
    h_DD = rotation_matrix(len(sums.hr_ED) - 1, like=sums.hr_ED)
    xx_D = (h_DD.mT @ sums.hh_EE[:-1, :-1] @ h_DD).diagonal() + ridge * mean_diagonal(sums)
    xr_D = (h_DD.mT @ sums.hr_ED[:-1] @ h_DD).diagonal()
    found_ED[:-1] = (h_DD * (xr_D / xx_D.clamp(min=torch.finfo(xx_D.dtype).tiny))) @ h_DD.mT
    return found_ED


def scaled_rotation(sums: MapSums, ridge: float) -> Tensor:
    """scale * Q - I with the best orthogonal Q and scale; the ridge draws both towards the identity. Sinks stay out."""
    found_ED = torch.zeros_like(sums.hr_ED)
    if math.isinf(ridge):
        return found_ED
    n = len(sums.hr_ED) - 1
    eye_DD = torch.eye(n, dtype=sums.hr_ED.dtype, device=sums.hr_ED.device)
    lift_DD = ridge * mean_diagonal(sums) * eye_DD
    xx_DD = sums.hh_EE[:-1, :-1]
    left_DD, shares_D, right_DD = torch.linalg.svd(xx_DD + sums.hr_ED[:-1] + lift_DD)
    scale = shares_D.sum() / (xx_DD + lift_DD).trace().clamp(min=torch.finfo(xx_DD.dtype).tiny)
    found_ED[:-1] = scale * (left_DD @ right_DD) - eye_DD
    return found_ED


def rotation_matrix(size: int, *, like: Tensor) -> Tensor:
    """H of :class:`shoal.edits.replace.modules.Hadamard`, columns are the rotated channels."""
    return rotate(torch.eye(size, dtype=like.dtype, device=like.device), inverse=False).mT


def _linear(patch: Patch) -> Linear:
    assert isinstance(patch, Linear)
    return patch


def _linear_change(patch: Patch) -> Change:
    rank = _linear(patch).rank
    return affine_change(bias=True) if rank is None else low_rank_change(rank)


def _linear_values(patch: Patch, change_ED: Tensor) -> dict[str, Tensor]:
    linear = _linear(patch)
    norm = {name: value for name, value in linear.state_dict().items() if name.startswith("norm.")}
    if linear.rank is None:
        return norm | {"map.weight": change_ED[:-1].mT, "map.bias": change_ED[-1]}
    left_DR, values_R, right_RD = torch.linalg.svd(change_ED[:-1], full_matrices=False)
    root_R = values_R[: linear.rank].sqrt()
    return norm | {
        "down.weight": (left_DR[:, : linear.rank] * root_R).mT,
        "up.weight": (root_R[:, None] * right_RD[: linear.rank]).mT,
        "up.bias": change_ED[-1],
    }


def _has_bias(patch: Patch) -> bool:
    assert isinstance(patch, Free)
    return patch.map.bias is not None


def _free_values(patch: Patch, change_ED: Tensor) -> dict[str, Tensor]:
    bias = {"map.bias": change_ED[-1]} if _has_bias(patch) else {}
    return {"map.weight": change_ED[:-1].mT, **bias}


def _hadamard_values(patch: Patch, change_ED: Tensor) -> dict[str, Tensor]:
    h_DD = rotation_matrix(len(change_ED) - 1, like=change_ED)
    return {"delta": (h_DD.mT @ change_ED[:-1] @ h_DD).diagonal().clone()}


def _rotation_values(patch: Patch, change_ED: Tensor) -> dict[str, Tensor]:
    turn_DD = change_ED[:-1] + torch.eye(len(change_ED) - 1, dtype=change_ED.dtype, device=change_ED.device)
    scale = torch.linalg.matrix_norm(turn_DD) / len(turn_DD) ** 0.5  # of an orthogonal matrix sqrt(D)
    return {"map.weight": (turn_DD / scale).mT if float(scale) else turn_DD.mT, "scale": scale}


def _stream(patch: Patch, h_BTD: Tensor) -> Tensor:
    return h_BTD


def _normed(patch: Patch, h_BTD: Tensor) -> Tensor:
    return _linear(patch).norm(h_BTD)


PATCH_FORMS: dict[type[Patch], PatchForm] = {
    Linear: PatchForm(_normed, _linear_change, _linear_values),
    Free: PatchForm(_stream, lambda patch: affine_change(bias=_has_bias(patch)), _free_values),
    Hadamard: PatchForm(_stream, lambda patch: rotated_channels, _hadamard_values),
    Rotation: PatchForm(_stream, lambda patch: scaled_rotation, _rotation_values),
}
"""The replacements whose values have a closed form."""
