"""A plan applied file to file: shards are copied tensor by tensor under renumbered names; the model is never opened.

Works for any size in the memory of a layer, keeps every byte of the kept tensors (quantised ones too), and uses the names on
disk, so split experts need no conversion. New values (refits, layers in place of a span) are put in where their tensors stand.
Copies, never links: editing the output cannot touch the source.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from shoal.checkpoint import generation_layers
from shoal.checkpoint.blueprint import check_layers, edited_config
from shoal.checkpoint.config_fields import NESTED
from shoal.checkpoint.config_json import CONFIG, write_config
from shoal.checkpoint.consumed_fields import edited_consumed
from shoal.checkpoint.copy_shards import Blocks, Copy, copied_bytes, copy_shard, write_index
from shoal.checkpoint.named_modules import Names, names_of, renumbered
from shoal.checkpoint.new_folder import copy_side_files, new_folder, side_files
from shoal.checkpoint.new_tensors import NewTensors
from shoal.checkpoint.stored_names import StoredNames
from shoal.edits.plan import Plan
from shoal.engine.beside import PREDICTION_COUNTS
from shoal.engine.families import text_config
from shoal.engine.layer_names import layer_of
from shoal.engine.model_config import Described, describe, read_config
from shoal.engine.per_layer_tables import per_layer_tables
from shoal.engine.shards import INDEX, SINGLE, Shard, TensorSlot
from shoal.engine.streamed import TORCH_DTYPES
from shoal.text.chat import deadline
from shoal.words.progress import megabytes
from shoal.words.reading import read_json
from shoal.words.structure import Structure

ABOUT_MODULES = ("quantization_config", "compression_config")  # Texts of these sections may name modules.
# Files beside the config in which engines look for the same.
QUANTISATION_FILES = ("quantize_config.json", "quant_config.json", "quantization_config.json", "hf_quant_config.json")
MOST_SECONDS = 120.0  # All patterns of a config are matched in this time; one that takes longer was made to take for ever.
NO_MODULES = ("architectures", "auto_map", "model_type", "id2label", "label2id", "transformers_version", *NESTED)


def rewrite(
    source: Path,
    plan: Plan,
    out: Path,
    *,
    structure: Structure | None = None,
    values: Mapping[str, Tensor] | None = None,
    model: nn.Module | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Write the checkpoint ``source`` as the plan says.

    Args:
        structure: of the checkpoint, where it is not that of the plan: without the modules that other files hold.
        values: of the plan's refits and replacements, under the names ``student_of`` reads.
        model: the source as it was opened, its weights in memory or not. The checkpoint is written in its dtype, with its own
            class for code that comes with the model. None: nothing is opened, and tensors keep the dtype they are stored in.
        trust_remote_code: code that comes with the source may run to say what its layers are.
    Returns: ``out``, a folder with shards, index, config and every side file of the source.
    Raises:
        ValueError: the plan was made for another depth, or says what a stock checkpoint cannot hold; values are missing or
            cannot be written as the source stores them; the source is damaged; its config cannot describe what is left;
            ``out`` is not empty; too little disk space.
    """
    source = Path(source)
    # The code ran, so it was trusted.
    brings_code = model is not None and not type(model).__module__.startswith("transformers.")
    described = describe(source, trust_remote_code=trust_remote_code or brings_code)
    shards, skeleton = described.shards, described.model
    config = described.config if model is None else read_config(source, like=model)
    if plan.n_layers != described.n_layers:
        raise ValueError(
            f"the plan was made for {plan.n_layers} layers, {source} has {described.n_layers}; "
            "apply it to the model it was made for"
        )
    dtype = None if model is None else other_dtype(model, config, shards)
    structure = plan.structure if structure is None else structure
    new = NewTensors(plan.edits, structure, values or {}, shards=shards, skeleton=lambda: model or skeleton, dtype=dtype)
    order = [slot.like for slot in structure]
    check_layers(config, order, model_class=type(model or skeleton))
    names = names_of(skeleton, shards, described.prefix, order)
    try:
        with deadline(MOST_SECONDS):
            content = rewritten_config(config, order, names)
    except TimeoutError:
        raise ValueError(
            f"a pattern in the config of {source} takes more than {MOST_SECONDS:.0f} s to match; mend it"
        ) from None
    if not described.beside.heads:
        state_no_prediction(content)
    if dtype is not None:
        set_dtype(content, dtype)
    stated = {file: read_json(source / file) for file in QUANTISATION_FILES if (source / file).exists()}
    stated = {file: renumbered(one, names, where=file) for file, one in stated.items()}
    blocks = blocks_of(described, order)
    cuts = [(shard, renamed(shard.slots, described.prefix, order, blocks)) for shard in shards]
    cuts = [(shard, kept) for shard, kept in cuts if kept]
    n_bytes = sum(copied_bytes(shard, kept, new) for shard, kept in cuts)
    with new_folder(out, n_bytes=n_bytes + sum(path.stat().st_size for path in side_files(source))) as folder:
        places: dict[str, str] = {}
        written = megabytes("write the checkpoint", n_bytes)
        for i, (shard, kept) in enumerate(cuts):
            file = SINGLE if len(cuts) == 1 else f"model-{i + 1:05d}-of-{len(cuts):05d}.safetensors"
            copy_shard(shard, kept, folder / file, new=new, written=written)
            places.update({one.given: file for one in kept})
        if len(cuts) > 1:
            write_index(folder / INDEX, places, n_bytes)
        stated_config = edited_consumed(read_json(source / CONFIG), config, order, described.n_layers)
        write_config(folder / CONFIG, stated_config, config, content)
        for file, one in stated.items():
            (folder / file).write_text(json.dumps(one, indent=2) + "\n", encoding="utf-8")
        if (source / generation_layers.FILE).exists():
            how = read_json(source / generation_layers.FILE)
            student = generation_layers.edited_generation(how, order)
            if student != how:
                text = json.dumps(student, indent=2, ensure_ascii=False) + "\n"
                (folder / generation_layers.FILE).write_text(text, encoding="utf-8")
        copy_side_files(source, folder)
    return Path(out)


def rewritten_config(config: Any, order: Sequence[int], names: Names) -> Any:
    """The edited config; texts in it that name modules are in the student's layer numbers."""
    edited = edited_config(config, order)
    for part in (edited, *(getattr(edited, name, None) for name in NESTED)):
        for field, value in list(vars(part).items()) if part is not None else ():
            if field not in NO_MODULES and not field.startswith("_") and isinstance(value, (str, list, dict)):
                about = field in ABOUT_MODULES
                setattr(part, field, renumbered(value, names, where=field, is_about_modules=about))
    return edited


def state_no_prediction(config: Any) -> None:
    """State that there are no layers for multi-token prediction, in every part of a config that counts some."""
    for part in (config, *(getattr(config, name, None) for name in NESTED)):
        for field in PREDICTION_COUNTS:
            if part is not None and getattr(part, field, None):
                setattr(part, field, 0)


def blocks_of(described: Described, order: Sequence[int]) -> dict[str, Blocks]:
    """What stays of the stored tensors that hold a block for every layer, by stored name.

    Raises:
        ValueError: such a tensor is stored in another shape: it is quantised.
    """
    tables = per_layer_tables(described.model, text_config(described.config))
    if not tables or list(order) == list(range(described.n_layers)):
        return {}
    found: dict[str, Blocks] = {}
    for stored, name in StoredNames(described.model, described.shards).in_memory.items():
        if name not in tables:
            continue
        slot = next(shard.slots[stored] for shard in described.shards if stored in shard.slots)
        needed = tuple(described.model.get_parameter(name).shape)
        if slot.shape != needed:
            raise ValueError(
                f"{described.path}: {stored!r} holds a block for every layer and is stored as {slot.shape}, not {needed}, so "
                "that no block can be taken out (is it quantised?); cut the unquantised checkpoint"
            )
        found[stored] = Blocks(tables[name], described.n_layers, tuple(order))
    return found


def renamed(
    names: Mapping[str, TensorSlot], prefix: str, order: Sequence[int], blocks: Mapping[str, Blocks] = MappingProxyType({})
) -> list[Copy]:
    """Where the tensors that stay go, in the order given; those of a layer that stands in several places go to each.

    Args:
        order: the source layer of every layer of the checkpoint.
        blocks: what stays of tensors that hold a block for every layer.
    """
    positions: dict[int, list[int]] = {}
    for position, source in enumerate(order):
        positions.setdefault(source, []).append(position)
    kept: list[Copy] = []
    for name in names:
        layer = layer_of(name, prefix)
        if layer is None:
            kept.append(Copy(name, name, None, blocks.get(name)))
            continue
        inner = name.removeprefix(prefix).partition(".")[2]
        kept += [Copy(name, f"{prefix}{at}.{inner}", at) for at in positions.get(layer, ())]
    return kept


def other_dtype(model: Any, config: Any, shards: Sequence[Shard]) -> torch.dtype | None:
    """The dtype a model was opened in where it is not the one its checkpoint is stored in."""
    stated = text_config(config).dtype or getattr(config, "dtype", None)
    if stated is None:  # The library reads such a checkpoint by its first floating tensor.
        kinds = (TORCH_DTYPES.get(slot.dtype) for shard in shards for slot in shard.slots.values())
        stated = next((kind for kind in kinds if kind is not None and kind.is_floating_point), model.dtype)
    return None if model.dtype == stated else model.dtype


def set_dtype(config: Any, dtype: torch.dtype) -> None:
    """State another dtype in a config and in the parts of it that state one."""
    for part in (config, *(getattr(config, name, None) for name in NESTED)):
        if getattr(part, "dtype", None) is not None or part is config:
            part.dtype = dtype
