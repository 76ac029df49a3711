"""A folder's ``config.json`` as a config, and as a model without weights: the one way in, guarded against what files can hold.

Libraries raise every kind of error for a config that is damaged, and build without question whatever a sound one asks for: a
billion layers, or the billions of parameters of a config that states nothing but its family. So the counts are bounded before
anything is made of them, the layers are compared with those of the weights, and the model's size with theirs.
"""

import copy
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shoal.engine.beside import Beside, beside, refuse_layers_behind
from shoal.engine.families import find_layers, refuse_coupled_layers, text_config
from shoal.engine.layer_names import decoder_prefix, numbers_by_prefix
from shoal.engine.shards import Shard
from shoal.engine.source import auto_class, check_source, fingerprint, quantisation, resolve_source
from shoal.words.reading import guarded, read_json, shortened

COUNT_OF_MODULES = re.compile(r"(?:^|_)(?:layers?|depths?|blocks?|experts|heads|stages|codebooks|n_head)(?:$|_per_)")
MOST_MODULES = 20_000  # The deepest models have some hundred layers, the widest some thousand experts.
MOST_SIZE = 2**40  # No size, width or position of a model is as large.
MOST_EMPTY_BUFFERS = 4 * 2**30  # Tables that are computed when a model is built have at most so many bytes.


def read_config(folder: Path, *, trust_remote_code: bool = False, like: Any | None = None) -> Any:
    """The config of a folder with every per-layer list made explicit.

    Args:
        trust_remote_code: allow the config class that comes with the model. Never asked on the terminal: False is no.
        like: a model in memory whose config class is used instead.
    Raises:
        ValueError: transformers cannot read it, or it states counts that no model has.
    """
    from transformers import AutoConfig

    from shoal.engine.open import quiet_loading

    refuse_absurd(read_json(Path(folder) / "config.json"), str(folder))
    with quiet_loading(), guarded(f"{folder}/config.json cannot be read"):
        if like is not None:
            return type(like.config).from_pretrained(str(folder), local_files_only=True)
        return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=trust_remote_code)


def refuse_absurd(content: dict[str, Any], where: str) -> None:
    """Raises ValueError for a config dict, nested ones included, that states counts or sizes which no model has."""
    for field, value in _numbers(content):
        most = MOST_MODULES if COUNT_OF_MODULES.search(field) else MOST_SIZE
        if abs(value) > most:
            said = shortened(str(value), 24)
            raise ValueError(f"{where}: config.json states {field}={said}; no model has more than {most:,}; mend config.json")


def _numbers(content: Any, field: str = "") -> Iterable[tuple[str, int]]:
    """Every whole number of a config, under the name of the field it belongs to."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _numbers(value, str(key))
    elif isinstance(content, list):
        for value in content:
            yield from _numbers(value, field)
    elif type(content) is int:
        yield field, content


def build_empty(
    config: Any, *, model_class: Any | None = None, trust_remote_code: bool = False, where: str = "this config"
) -> nn.Module:
    """The model of a config on the ``meta`` device, in eval mode: names, shapes and settings, no weights.

    Args:
        model_class: class of a model in memory; by default transformers' own choice of causal language model.
        trust_remote_code: allow the modelling code that comes with the model.
        where: the folder of the config, for messages.
    Raises:
        ValueError: the library cannot build it.
    """
    from shoal.engine.open import quiet_loading

    family = getattr(config, "model_type", type(config).__name__)
    with quiet_loading(), torch.device("meta"), guarded(f"{where}: no model of type {family!r} can be built"):
        if model_class is not None:
            return model_class._from_config(copy.deepcopy(config)).eval()
        return auto_class(config).from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code).eval()


def build_skeleton(config: Any, *, dtype: torch.dtype, trust_remote_code: bool = False) -> Any:
    """As :func:`build_empty` in a dtype, with real buffers: tables that are computed, not stored."""
    from accelerate import init_empty_weights

    refuse_coupled_layers(config)
    with init_empty_weights(include_buffers=False), guarded("the model of this config cannot be built"):
        return auto_class(config).from_config(config, dtype=dtype, trust_remote_code=trust_remote_code).eval()


@dataclass(frozen=True, eq=False)
class Described:
    """A checkpoint folder, checked, before any weight is read.

    Attributes:
        shards: where its tensors lie.
        config: with every per-layer list made explicit.
        model: of the config, without weights.
        prefix: what stands before the layer number in the names on disk.
        beside: what the folder holds beside the decoder.
    """

    path: Path
    shards: list[Shard]
    config: Any
    model: nn.Module
    prefix: str
    beside: Beside

    @property
    def layers_path(self) -> str:
        """Where the decoder's layers are in the model."""
        return find_layers(self.model)[0]

    @property
    def layers(self) -> nn.ModuleList:
        return find_layers(self.model)[1]

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def shapes(self) -> nn.Module:
        """The model as its weights are counted: nothing is packed without weights."""
        return self.model

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def quantised(self) -> str | None:
        """The method of a quantised checkpoint."""
        return quantisation(read_json(self.path / "config.json"))

    @cached_property
    def fingerprint(self) -> str:
        """Identity of config and weights on disk."""
        return fingerprint(self.path)


def describe_source(source: str | Path, *, trust_remote_code: bool = False) -> Described:
    """As :func:`describe`, of a folder, a hub id or a GGUF file. Raises ValueError, also where there is no such source."""
    return describe(resolve_source(source, trust_remote_code=trust_remote_code), trust_remote_code=trust_remote_code)


def describe(path: Path, *, trust_remote_code: bool = False) -> Described:
    """Check a checkpoint folder and say what it holds; nothing is loaded.

    Raises:
        ValueError: everything :func:`~shoal.engine.source.check_source` finds; a config that no model can be built from; other
            layers than the weights have, or a model far larger than they are.
    """
    shards = check_source(path, trust_remote_code=trust_remote_code)
    config = read_config(path, trust_remote_code=trust_remote_code)
    names = [name for shard in shards for name in shard.slots]
    refuse_more_layers(config, names, str(path))
    model = build_empty(config, trust_remote_code=trust_remote_code, where=f"{path}/config.json")
    refuse_other_size(model, shards, where=str(path), is_packed=quantisation(read_json(path / "config.json")) is not None)
    in_memory, layers = find_layers(model)
    prefix = decoder_prefix(names, len(layers), in_memory)
    refuse_layers_behind(text_config(config).to_dict(), names, prefix, n_layers=len(layers), where=str(path))
    return Described(path, shards, config, model, prefix, beside(path, names, prefix, n_layers=len(layers)))


def refuse_other_size(model: nn.Module, shards: Sequence[Shard], *, where: str, is_packed: bool) -> None:
    """Raises ValueError for a model far larger than its weights; equal names and shapes are asked for when it is loaded.

    Args:
        is_packed: the weights are quantised, so that one stored number may hold several.
    """
    stored = sum(math.prod(slot.shape) for shard in shards for slot in shard.slots.values()) * (16 if is_packed else 1)
    asked = sum(parameter.numel() for parameter in model.parameters())
    tables = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    if asked > 2 * stored + 1_000_000 or tables > MOST_EMPTY_BUFFERS:
        raise ValueError(
            f"{where}: config.json asks for {asked:,} parameters and {tables:,} bytes of tables, the weights hold {stored:,} "
            "numbers; config.json and the weights are not of one model"
        )


def refuse_more_layers(config: Any, names: Sequence[str], where: str) -> None:
    """Raises ValueError where the config states more layers than the weights have: cheap, and before a model is built."""
    n = getattr(text_config(config), "num_hidden_layers", None)
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"{where}: config.json states num_hidden_layers={n!r}, a whole number from 1 is needed")
    found = numbers_by_prefix(names)
    if not any(len(seen) >= n and max(seen) >= n - 1 for seen in found.values()):
        there = max((len(seen) for seen in found.values()), default=0)
        raise ValueError(f"{where}: config.json states {n:,} layers, the weights have {there}; they are not of one model")
