"""A plan applied file to file: shards are copied tensor by tensor under renumbered names; the model is never opened.

Works for any size in the memory of a layer, keeps every byte of the kept tensors (quantised ones too), and uses the names on
disk, so split experts need no conversion. New values (refits, layers in place of a span) are put in where their tensors stand.
Copies, never links: editing the output cannot touch the source.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoal.checkpoint.blueprint import blueprint, check_layers, edited_config
from shoal.checkpoint.config_fields import NESTED, count_layers
from shoal.checkpoint.copy_shards import copied_bytes, copy_shard, write_index
from shoal.checkpoint.new_folder import copy_side_files, new_folder, side_files
from shoal.checkpoint.new_tensors import NewTensors
from shoal.engine.families import find_layers, text_config
from shoal.engine.shards import INDEX, SINGLE, Shard, Slot
from shoal.engine.source import check_source
from shoal.engine.streamed import TORCH_DTYPES
from shoal.words.plan import Plan

LAYER_NAME = re.compile(r"^((?:[^.]*[^.\d][^.]*\.)*)(\d+)\.(.+)$")  # prefix up to the first all-digit part, index, rest


def rewrite(
    source: Path, plan: Plan, out: Path, *, values: Mapping[str, Tensor] | None = None, model: nn.Module | None = None
) -> Path:
    """Write the checkpoint ``source`` as the plan says.

    Args:
        values: of the plan's refits and replacements, under the names ``student_of`` reads.
        model: the source as it was opened, its weights in memory or not. The checkpoint is written in its dtype, with its own
            class for code that comes with the model. None: nothing is opened, and tensors keep the dtype they are stored in.
    Returns: ``out``, a folder with shards, index, config and every side file of the source.
    Raises:
        ValueError: the plan was made for another depth, or says what a stock checkpoint cannot hold; values are missing or
            cannot be written as the source stores them; the source is damaged; its config cannot describe what is left;
            ``out`` is not empty; too little disk space.
    """
    source = Path(source)
    shards = check_source(source, trust_remote_code=model is not None)
    config = read_config(source, like=model)
    n = count_layers(config.to_dict())
    if plan.n_layers != n:
        raise ValueError(
            f"the plan was made for {plan.n_layers} layers, {source} has {n}; apply it to the model it was made for"
        )
    dtype = None if model is None else other_dtype(model, config, shards)
    new = NewTensors(plan, values or {}, shards=shards, skeleton=lambda: model or blueprint(config), dtype=dtype)
    order = new.order
    check_layers(config, order, model_class=None if model is None else type(model))
    path_in_memory = find_layers(model or blueprint(config))[0]
    prefix = layer_prefix([name for shard in shards for name in shard.slots], n, path_in_memory)
    content = rewritten_config(config, order)
    if dtype is not None:
        set_dtype(content, dtype)
    cuts = [(shard, renamed(shard.slots, prefix, order)) for shard in shards]
    cuts = [(shard, names) for shard, names in cuts if names]
    n_bytes = sum(copied_bytes(shard, names, new) for shard, names in cuts)
    with new_folder(out, n_bytes=n_bytes + sum(path.stat().st_size for path in side_files(source))) as folder:
        places: dict[str, str] = {}
        for i, (shard, names) in enumerate(cuts):
            file = SINGLE if len(cuts) == 1 else f"model-{i + 1:05d}-of-{len(cuts):05d}.safetensors"
            copy_shard(shard, names, folder / file, new=new)
            places.update({name: file for name in names.values()})
        if len(cuts) > 1:
            write_index(folder / INDEX, places, n_bytes)
        content.save_pretrained(str(folder))
        copy_side_files(source, folder)
    return Path(out)


def read_config(folder: Path, *, like: Any | None = None) -> Any:
    """The config with every per-layer list made explicit, of the class of the model ``like`` where one is given.

    Raises:
        ValueError: transformers cannot read it.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    from shoal.engine.open import quiet_loading

    with quiet_loading():
        try:
            reader = AutoConfig if like is None else type(like.config)
            return reader.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{folder}/config.json cannot be read: {type(error).__name__}: {reason}") from None


def rewritten_config(config: Any, order: Sequence[int]) -> Any:
    """The edited config; layers named in its quantisation section are renumbered too."""
    edited = edited_config(config, order)
    for part in (edited, *(getattr(edited, name, None) for name in NESTED)):
        stated = getattr(part, "quantization_config", None)
        if isinstance(stated, dict):
            part.quantization_config = renumber_names(stated, {old: new for new, old in enumerate(order)})
    return edited


def renumber_names(value: Any, index: Mapping[int, int]) -> Any:
    """Module names inside a config section: ``...layers.7...`` renumbered, removed layers dropped from lists and dicts.

    Raises:
        ValueError: a regular expression that names a layer number.
    """
    gone = object()

    def name(text: str) -> Any:
        found = re.search(r"(?:^|\.)(?:layers|h|blocks)\\?\.(\d+)(?=$|\.|\\)", text)
        if found is None:
            return text
        if text.startswith("re:") or "\\" in text:
            raise ValueError(
                f"quantization_config has the pattern {text!r}, which names a layer number; it cannot be renumbered"
            )
        old = int(found.group(1))
        return f"{text[: found.start(1)]}{index[old]}{text[found.end(1) :]}" if old in index else gone

    if isinstance(value, str):
        new = name(value)
        return value if new is gone else new
    if isinstance(value, list):
        items = [name(one) if isinstance(one, str) else renumber_names(one, index) for one in value]
        return [one for one in items if one is not gone]
    if isinstance(value, dict):
        pairs = [(name(key) if isinstance(key, str) else key, renumber_names(one, index)) for key, one in value.items()]
        return {key: one for key, one in pairs if key is not gone}
    return value


def layer_prefix(names: Sequence[str], n_layers: int, path_in_memory: str) -> str:
    """What stands before the layer number in the names on disk, e.g. ``model.layers.``.

    The first number of a name counts, so expert numbers do not. Numbers from ``n_layers`` on (prediction layers that are not
    part of the decoder) are allowed.
    Raises:
        ValueError: no prefix has every number 0..n-1, or several do and none is the path of the layers in memory.
    """
    numbers: dict[str, set[int]] = {}
    for name in names:
        found = LAYER_NAME.match(name)
        if found:
            numbers.setdefault(found.group(1), set()).add(int(found.group(2)))
    whole = sorted(prefix for prefix, seen in numbers.items() if set(range(n_layers)) <= seen)
    if not whole:
        raise ValueError(f"no tensor names numbered 0..{n_layers - 1} in the weights; they are not those of this config")
    if len(whole) > 1:
        # transformers renames on loading, e.g. language_model.model.layers to model.language_model.layers: same words
        same = [prefix for prefix in whole if sorted(prefix.split(".")) == sorted(f"{path_in_memory}.".split("."))]
        if len(same) != 1:
            raise ValueError(
                f"several lists of {n_layers} layers in the weights ({', '.join(whole)}); cannot tell which to cut"
            )
        return same[0]
    return whole[0]


def renamed(names: Mapping[str, Slot], prefix: str, order: Sequence[int]) -> dict[str, str]:
    """Old name to new name of the tensors that stay, in the order given."""
    index = {old: new for new, old in enumerate(order)}
    kept: dict[str, str] = {}
    for name in names:
        found = LAYER_NAME.match(name)
        if found is None or found.group(1) != prefix:
            kept[name] = name
        elif int(found.group(2)) in index:
            kept[name] = f"{prefix}{index[int(found.group(2))]}.{found.group(3)}"
    return kept


def other_dtype(model: Any, config: Any, shards: Sequence[Shard]) -> torch.dtype | None:
    """The dtype a model was opened in where it is not the one its checkpoint is stored in."""
    stated = text_config(config).dtype or getattr(config, "dtype", None)
    if stated is None:  # as the library reads such a checkpoint: by its first floating tensor
        kinds = (TORCH_DTYPES.get(slot.dtype) for shard in shards for slot in shard.slots.values())
        stated = next((kind for kind in kinds if kind is not None and kind.is_floating_point), model.dtype)
    return None if model.dtype == stated else model.dtype


def set_dtype(config: Any, dtype: torch.dtype) -> None:
    """State another dtype in a config and in the parts of it that state one."""
    for part in (config, *(getattr(config, name, None) for name in NESTED)):
        if getattr(part, "dtype", None) is not None or part is config:
            part.dtype = dtype
