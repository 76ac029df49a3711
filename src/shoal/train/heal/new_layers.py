"""Healing of new layers alone: what a growing put in is trained, all that was there before is frozen.

Source: LLaMA Pro, arXiv 2401.02415 (block expansion), and Llama SLayer, arXiv 2410.02330. A new layer whose output maps are
zero starts as the identity: in the first step these maps alone have a gradient, and the rest follows when they are no longer
zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal.engine.families import find_layers

if TYPE_CHECKING:
    from shoal.train.heal.config import HealConfig
    from shoal.train.heal.ranks import RankEvidence
    from shoal.words.model_shape import ModelShape


def thaw_new_layers(model: Any, config: HealConfig, evidence: RankEvidence) -> Any:
    """The same model, with gradients for its new layers alone.

    Raises:
        ValueError: it is not known which layers are new, or none is.
    """
    if evidence.cut is None:
        raise ValueError("method new trains the layers that a plan put in, and there is none; give --plan FILE of shoal grow")
    if not evidence.cut.new:
        raise ValueError("method new trains the layers that a plan put in, and this plan puts none in; use --method partial")
    _, layers = find_layers(model)
    model.requires_grad_(False)
    for index in evidence.cut.new:
        layers[index].requires_grad_(True)
    return model


def most_new_layers(shape: ModelShape, n_layers: int, config: HealConfig) -> int:
    """Parameters of as many layers as the student has: how many of them are new is not known from sizes."""
    return n_layers * shape.layer_parameters
