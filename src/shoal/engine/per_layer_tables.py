"""Tensors outside the layers that hold a block for every layer, layer after layer: embeddings per layer (Gemma 3n, Gemma 4)."""

from typing import Any

from torch import nn

DIMENSIONS = {"embed_tokens_per_layer.weight": 1, "per_layer_model_projection.weight": 0}
"""The dimension along which a tensor has its blocks, by the end of its name: tokens by layers, layers by hidden size."""


def per_layer_tables(model: nn.Module, config: Any) -> dict[str, int]:
    """Name in memory and dimension of the blocks of each such tensor of a model; its weights may be on ``meta``.

    Args:
        config: of the decoder.
    """
    if not getattr(config, "hidden_size_per_layer_input", 0):
        return {}
    n = config.num_hidden_layers * config.hidden_size_per_layer_input
    return {
        name: dim
        for name, parameter in model.named_parameters()
        for ending, dim in DIMENSIONS.items()
        if f".{name}".endswith(f".{ending}") and parameter.ndim == 2 and parameter.shape[dim] == n
    }
