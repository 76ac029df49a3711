"""Full healing: every parameter is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.train.heal.config import HealConfig
    from shoal.train.heal.ranks import RankEvidence
    from shoal.words.model_shape import ModelShape


def thaw_all(model: Any, config: HealConfig, evidence: RankEvidence) -> Any:
    """The same model, with gradients everywhere."""
    return model.requires_grad_(True)


def all_of_them(shape: ModelShape, n_layers: int, config: HealConfig) -> int:
    """Parameters of the student."""
    return n_layers * shape.layer_parameters + shape.other_parameters
