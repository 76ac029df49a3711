"""Sizes of a model from ``config.json`` alone: no weight is read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from shoal.engine.families import text_config
from shoal.engine.model_config import Described, describe_source
from shoal.engine.open import DTYPES
from shoal.engine.shards import read_shards
from shoal.engine.streamed import bytes_by_layer
from shoal.run.job import window_of
from shoal.run.resource_amounts import amounts_as_if_alike, computed_amounts
from shoal.select.amounts import Amounts
from shoal.select.model_size import size_of
from shoal.words.model_shape import ModelShape


def as_it_runs(model: str, *, dtype: str | None = None, trust_remote_code: bool = False) -> Described:
    """The text decoder of a model in the dtype that it will run in.

    Raises:
        ValueError: no such model, or a damaged one.
    """
    found = describe_source(model, trust_remote_code=trust_remote_code)
    text = text_config(found.config)
    stored = text.dtype if isinstance(text.dtype, torch.dtype) else torch.float32
    return replace(found, config=text, model=found.model.to(stored if dtype is None else DTYPES[dtype]))


def shape_of(model: str, *, dtype: str | None = None, trust_remote_code: bool = False) -> ModelShape:
    """Sizes from ``config.json``; the model is built without weights."""
    found = as_it_runs(model, dtype=dtype, trust_remote_code=trust_remote_code)
    text, size = found.config, size_of(found.model, found.layers_path)
    hidden = int(text.hidden_size)
    return ModelShape(
        n_layers=size.n_layers,
        hidden=hidden,
        ffn=_ffn_of(text, hidden),
        vocabulary=int(text.vocab_size),
        itemsize=found.dtype.itemsize,
        layer_parameters=max(size.layers),
        other_parameters=size.total - sum(size.layers),
        window=window_of(text),
    )


def amounts_without_weights(
    model: str, *, context: int, dtype: str | None = None, trust_remote_code: bool = False
) -> dict[str, Amounts]:
    """What budgets can be shares of, but for time; of packed weights the bytes are those of the files."""
    described = as_it_runs(model, dtype=dtype, trust_remote_code=trust_remote_code)
    found = computed_amounts(described, context=context)
    if described.quantised is not None:
        outside, of_layer = bytes_by_layer(read_shards(described.path))
        about = found["bytes"].about
        found["bytes"] = amounts_as_if_alike(about, described.n_layers, of_layer=of_layer, outside=outside)
    return found


def _ffn_of(config: Any, hidden: int) -> int:
    """Inputs of the MLP's map into the stream that a token meets: of all its experts together."""
    experts = getattr(config, "num_experts_per_tok", None)
    width = getattr(config, "moe_intermediate_size", None) if experts else None
    if experts and width:
        return int(experts) * int(width)
    return int(getattr(config, "intermediate_size", None) or 4 * hidden) * int(experts or 1)
