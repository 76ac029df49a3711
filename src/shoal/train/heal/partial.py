"""Partial healing: the output head, the final norm and the last k layers are trained whole, the rest is frozen.

Source: Reassessing Layer Pruning, arXiv 2411.15558 (the released code trains the final norm as well). A head that is the
embedding table cannot be trained alone; the paper leaves such models out, and here they are refused unless the head is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal.engine.families import find_layers
from shoal.train.heal.lora_targets import final_norm, is_tied

if TYPE_CHECKING:
    from shoal.train.heal.config import HealConfig
    from shoal.train.heal.ranks import RankEvidence
    from shoal.words.model_shape import ModelShape


def thaw_the_end(model: Any, config: HealConfig, evidence: RankEvidence) -> Any:
    """The same model, with gradients for its end alone.

    Raises:
        ValueError: the head is tied to the embedding; more layers than there are; nothing left to train.
    """
    _, layers = find_layers(model)
    if config.layers > len(layers):
        raise ValueError(f"layers={config.layers} is more than the {len(layers)} layers of the student; give 0..{len(layers)}")
    if config.head == "train" and is_tied(model):
        raise ValueError(
            "partial healing trains the output head, and the head of this model is its embedding table (tied): training it "
            "would change the input of every layer. Keep the head (--head keep), or use --method lora or full"
        )
    model.requires_grad_(False)
    chosen = [*layers[len(layers) - config.layers :], final_norm(model)]
    if config.head == "train":
        chosen.append(model.get_output_embeddings())
    for module in chosen:
        if module is not None:
            module.requires_grad_(True)
    return model


def most_of_the_end(shape: ModelShape, n_layers: int, config: HealConfig) -> int:
    """Parameters of the last layers, and of embedding, final norm and head."""
    return min(config.layers, n_layers) * shape.layer_parameters + shape.other_parameters
