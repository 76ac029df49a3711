"""Sizes of a model from ``config.json`` alone: no weight is read."""

from typing import Any

from shoal.run.job import window_of
from shoal.words.model_shape import ModelShape


def shape_of(model: str, *, dtype: str | None = None, trust_remote_code: bool = False) -> ModelShape:
    """Sizes from ``config.json``; the model is built without weights."""
    import torch

    from shoal.engine.families import find_layers, text_config
    from shoal.engine.model_config import describe
    from shoal.engine.open import DTYPES
    from shoal.engine.source import resolve_source
    from shoal.select.model_size import size_of

    path = resolve_source(model, trust_remote_code=trust_remote_code)
    described = describe(path, trust_remote_code=trust_remote_code)
    text, skeleton = text_config(described.config), described.model
    size = size_of(skeleton, find_layers(skeleton)[0])
    stored = text.dtype if isinstance(text.dtype, torch.dtype) else torch.float32
    hidden = int(text.hidden_size)
    return ModelShape(
        n_layers=size.n_layers,
        hidden=hidden,
        ffn=_ffn_of(text, hidden),
        vocabulary=int(text.vocab_size),
        itemsize=(stored if dtype is None else DTYPES[dtype]).itemsize,
        layer_parameters=max(size.layers),
        other_parameters=size.total - sum(size.layers),
        window=window_of(text),
    )


def _ffn_of(config: Any, hidden: int) -> int:
    """Inputs of the MLP's map into the stream that a token meets: of all its experts together."""
    experts = getattr(config, "num_experts_per_tok", None)
    width = getattr(config, "moe_intermediate_size", None) if experts else None
    if experts and width:
        return int(experts) * int(width)
    return int(getattr(config, "intermediate_size", None) or 4 * hidden) * int(experts or 1)
