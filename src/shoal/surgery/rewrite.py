"""Remove layers file to file: shards are copied tensor by tensor under renumbered names; the model is never opened.

Works for any size in a few megabytes of memory, keeps every byte of the kept tensors (quantised ones too), and uses the names
on disk, so split experts need no conversion. Copies, never links: editing the output cannot touch the source.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shoal.decoder.families import find_layers
from shoal.decoder.shards import INDEX, SINGLE, Shard, Slot
from shoal.decoder.source import check_source
from shoal.plan import Plan
from shoal.surgery.blueprint import blueprint, check_layers, edited_config
from shoal.surgery.config_fields import NESTED, count_layers
from shoal.surgery.folder import copy_side_files, new_folder, side_files

CHUNK = 8 * 2**20  # bytes held in memory while copying
LAYER_NAME = re.compile(r"^((?:[^.]*[^.\d][^.]*\.)*)(\d+)\.(.+)$")  # prefix up to the first all-digit part, index, rest


def rewrite(source: Path, plan: Plan, out: Path) -> Path:
    """Write the checkpoint ``source`` without the layers the plan removes.

    Returns: ``out``, a folder with shards, index, config and every side file of the source.
    Raises:
        ValueError: the plan does more than remove whole layers or was made for another depth; the source is damaged; its config
            cannot describe what is left; ``out`` is not empty; too little disk space.
    """
    source = Path(source)
    if not plan.is_pure_removal:
        raise ValueError("file to file only whole layers can be removed; this plan also refits or replaces, apply it in memory")
    shards = check_source(source)
    config = read_config(source)
    n = count_layers(config.to_dict())
    if plan.n_layers != n:
        raise ValueError(
            f"the plan was made for {plan.n_layers} layers, {source} has {n}; apply it to the model it was made for"
        )
    order = plan.kept_layers
    check_layers(config, order)
    prefix = layer_prefix([name for shard in shards for name in shard.slots], n, find_layers(blueprint(config))[0])
    content = rewritten_config(config, order)
    cuts = [(shard, renamed(shard.slots, prefix, order)) for shard in shards]
    cuts = [(shard, names) for shard, names in cuts if names]
    side_bytes = sum(path.stat().st_size for path in side_files(source))
    n_bytes = side_bytes + sum(shard.slots[name].n_bytes for shard, names in cuts for name in names)
    with new_folder(out, n_bytes=n_bytes) as folder:
        places: dict[str, str] = {}
        for i, (shard, names) in enumerate(cuts):
            file = SINGLE if len(cuts) == 1 else f"model-{i + 1:05d}-of-{len(cuts):05d}.safetensors"
            copy_shard(shard, names, folder / file)
            places.update({new: file for new in names.values()})
        if len(cuts) > 1:
            write_index(folder / INDEX, places, n_bytes - side_bytes)
        content.save_pretrained(str(folder))
        copy_side_files(source, folder)
    return Path(out)


def read_config(folder: Path) -> Any:
    """The config with every per-layer list made explicit. Raises ValueError when transformers cannot read it."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    from shoal.decoder.open import quiet_loading

    with quiet_loading():
        try:
            return AutoConfig.from_pretrained(str(folder), local_files_only=True)
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


def copy_shard(shard: Shard, names: Mapping[str, str], target: Path) -> None:
    """Write a safetensors file of some tensors of a shard under new names, by copying byte ranges."""
    slots: dict[str, Slot] = {}
    ranges: list[list[int]] = []
    end = 0
    for name, new in names.items():
        slot = shard.slots[name]
        slots[new] = replace(slot, start=end, stop=end + slot.n_bytes)
        end += slot.n_bytes
        if ranges and ranges[-1][1] == slot.start:
            ranges[-1][1] = slot.stop
        else:
            ranges.append([slot.start, slot.stop])
    header: dict[str, Any] = {"__metadata__": shard.metadata} if shard.metadata else {}
    header.update({n: {"dtype": s.dtype, "shape": list(s.shape), "data_offsets": [s.start, s.stop]} for n, s in slots.items()})
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # the format wants the data aligned to 8 bytes
    with shard.path.open("rb") as reader, target.open("wb") as writer:
        writer.write(len(raw).to_bytes(8, "little") + raw)
        for start, stop in ranges:
            reader.seek(shard.data_start + start)
            left = stop - start
            while left:
                piece = reader.read(min(CHUNK, left))
                if not piece:
                    raise ValueError(f"{shard.path} became shorter while it was copied")
                writer.write(piece)
                left -= len(piece)
        writer.flush()
        os.fsync(writer.fileno())


def write_index(path: Path, places: Mapping[str, str], n_bytes: int) -> None:
    """The index of a sharded checkpoint: tensor name to file, and the bytes of all tensors."""
    content = {"metadata": {"total_size": n_bytes}, "weight_map": dict(sorted(places.items()))}
    path.write_text(json.dumps(content, indent=2) + "\n")
