"""Healing by gains and biases alone: every vector of the model is trained, every matrix is frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.train.heal.config import HealConfig
    from shoal.train.heal.ranks import RankEvidence
    from shoal.words.model_shape import ModelShape


def thaw_vectors(model: Any, config: HealConfig, evidence: RankEvidence) -> Any:
    """The same model, with gradients for its one-dimensional parameters.

    Raises:
        ValueError: it has none.
    """
    n_vectors = 0
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.ndim == 1)
        n_vectors += parameter.ndim == 1
    if not n_vectors:
        raise ValueError(f"this {model.config.model_type!r} model has no gains or biases to train; use --method lora")
    return model


def most_vectors(shape: ModelShape, n_layers: int, config: HealConfig) -> int:
    """A dozen gains and biases of the stream's width in every layer, and two of the MLP's; the final norm's."""
    return n_layers * (12 * shape.hidden + 2 * shape.ffn) + 2 * shape.hidden
