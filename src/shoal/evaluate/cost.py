"""What a model costs to store and to run, counted from shapes: parameters, MACs, KV cache.

One multiply-accumulate (MAC) is two FLOPs. For a token that sees ``context`` tokens, itself included::

    MACs/token = sum of linear maps (in x out each) + sum over attention layers of heads x (d_qk + d_v) x keys

* linear maps: every matrix of the layers, of the final head (a tied one, too: it runs) and of the maps around the layers;
  embeddings are look-ups. Of E experts only the k active ones count: their matrices times k/E; the router counts whole.
* ``keys`` = context; in sliding-window or chunked layers min(context, window). Scores and values need d_qk and d_v products
  per head and key. This equals the mean per token of a forward over ``context`` tokens that computes the whole T x T
  matrix; kernels that skip the masked half need half of that term in prefill.
* torch's FlopCounterMode is no help: of torch 2.13 it counts neither grouped maps of experts nor attention on a CPU.
* norms, activations, biases, rotary embeddings, softmax and the states of linear-attention layers are left out.

KV cache: ``bytes(context) / context`` with, per attention layer, min(context, window) x kv heads x (d_k + d_v) x bytes of the
model's dtype; with multi-head latent attention the latent and the rotary part, (kv_lora_rank + qk_rope_head_dim), which is
what is cached. Layers without softmax attention keep a state of constant size and count 0.

Sizes of students: removed layers cost nothing; a removed sublayer costs nothing here, although a stock checkpoint still
stores it (zeroed); replacement modules are counted in full.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from shoal.edits.replace.modules import StreamModule
from shoal.engine.families import output_map, sublayer
from shoal.engine.quantised import bytes_of
from shoal.engine.student import TEACHER, Student
from shoal.words.records import Record

# Families name the same fact differently in their configs.
ACTIVE_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "moe_k", "top_k_experts")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
KV_HEADS = ("num_key_value_heads", "num_kv_heads")
STATEFUL = ("linear_attn",)  # These sublayers stand where attention would and keep a state of constant size instead of keys.
MIXED = ("mixer", "temporal_block")  # One name for attention, for what keeps a state, and for an MLP that is a layer by itself.
KEY_MAPS = ("k_proj", "qkv_proj", "Wqkv", "query_key_value", "c_attn")


class Cost(Record):
    """Cost of one model (formulas at the top of this file).

    Attributes:
        layers: blocks that run: kept layers and replacement modules.
        parameters: numbers stored, tied ones once.
        active_parameters: those that one token meets: of E experts the k that are chosen; None as for the MACs.
        weight_bytes: bytes of those numbers, in memory and in the checkpoint's safetensors (headers and buffers aside); of a
            quantised model those it holds in memory, scales included.
        file_bytes: of the safetensors files in the folder the model was opened from; None for a student that has none.
        context: tokens that the measured token sees, itself included.
        macs_per_token: None when the active experts of a mixture cannot be told from the config.
        kv_bytes_per_token: bytes of the cache after ``context`` tokens, divided by ``context``.
    """

    layers: int
    parameters: int
    weight_bytes: int
    active_parameters: float | None = None
    file_bytes: int | None = None
    context: int
    macs_per_token: float | None
    kv_bytes_per_token: float


class Sized(Protocol):
    """A decoder as far as its cost is counted: an opened one, or its config built without weights."""

    @property
    def model(self) -> Any: ...

    @property
    def shapes(self) -> Any: ...

    @property
    def layers_path(self) -> str: ...

    @property
    def n_layers(self) -> int: ...

    @property
    def config(self) -> Any: ...

    @property
    def dtype(self) -> torch.dtype: ...


@dataclass(frozen=True)
class Block:
    """One module of the stream.

    Attributes:
        layer: the layer whose place in the pattern it takes.
        off: its sublayers that are off.
        is_inserted: it was put in, so a checkpoint stores it on its own, whatever it shares in memory.
    """

    layer: int
    module: nn.Module
    off: frozenset[str] = frozenset()
    is_inserted: bool = False


def cost(view: Sized, *, context: int, student: Student = TEACHER) -> Cost:
    """Cost of a student of a view (of the viewed model itself unless given), for a token that sees ``context`` tokens.

    Raises:
        ValueError: context below 1.
    """
    return next(costs(view, [student], context=context))


def costs(view: Sized, students: Iterable[Student], *, context: int) -> Iterator[Cost]:
    """:func:`cost` of several students of a view; what a block costs is counted once for all of them.

    Raises:
        ValueError: context below 1.
    """
    if context < 1:
        raise ValueError(f"context={context} needs at least 1 token (the measured token sees itself)")
    shapes = view.shapes
    layers = shapes.get_submodule(view.layers_path)
    around, around_macs = _parameters_around(shapes, layers), _map_macs_around(shapes, layers)
    counted = cache(lambda block: _counted(view, block, context))
    for student in students:
        blocks = list(_blocks(layers, student))
        counts = [counted(block) for block in blocks]
        stored = _once(around, blocks, counts)
        n_parameters = sum(parameter.numel() for parameter in stored)
        macs, idle = _sum_or_none(one.macs for one in counts), _sum_or_none(one.idle for one in counts)
        yield Cost(
            layers=sum(not isinstance(block.module, StreamModule) for block in blocks),
            parameters=n_parameters,
            active_parameters=None if idle is None else n_parameters - idle,
            weight_bytes=_weight_bytes(view, blocks, stored, is_packed=shapes is not view.model),
            file_bytes=_file_bytes(view) if student is TEACHER else None,
            context=context,
            macs_per_token=None if macs is None else around_macs + macs + sum(one.attention for one in counts),
            kv_bytes_per_token=sum(one.kv_numbers for one in counts) * view.dtype.itemsize / context,
        )


@dataclass(frozen=True)
class _BlockCost:
    """What one block stores and runs. ``macs`` are those of its linear maps, ``attention`` those of scores and values."""

    parameters: tuple[nn.Parameter, ...]
    macs: float | None
    idle: float | None
    attention: int
    kv_numbers: int


def _counted(view: Sized, block: Block, context: int) -> _BlockCost:
    off = _off_paths(block)
    return _BlockCost(
        tuple(p for path, p in block.module.named_parameters() if not _under(path, off)),
        macs=_map_macs(block.module, view.config, skip=off),
        idle=_idle_experts(block.module, view.config, skip=off),
        attention=_attention_macs(view, block, context),
        kv_numbers=_kv_numbers(view, block, context),
    )


def _sum_or_none(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else sum(one for one in known if one is not None)


def _file_bytes(view: Sized) -> int | None:
    folder = Path(str(getattr(view.model, "name_or_path", "") or ""))
    files = list(folder.glob("*.safetensors")) if folder.name and folder.is_dir() else []
    return sum(file.stat().st_size for file in files) or None


# -- the parts that run and are stored -----------------------------------------------------------------------------------


def _blocks(layers: nn.ModuleList, student: Student) -> Iterator[Block]:
    """``layers`` as structure: their weights may be elsewhere, their shapes are right."""
    for index in range(len(layers)):
        own = student.step(index)
        if own is not None:
            yield from (Block(source, part) for source, part in own.parts)
            if own.module is None:
                yield Block(index, layers[index], own.zeroed)
        for step in student.behind(index):
            yield Block(step.layer, layers[step.layer], step.zeroed, is_inserted=True)


def _off_paths(block: Block) -> tuple[str, ...]:
    """Paths inside the block of what removed sublayers no longer need (the output map where a sublayer has no module)."""
    paths = []
    for kind in sorted(block.off):
        inside = sublayer(block.module, kind)
        path = inside[0] if inside else output_map(block.module, kind)
        if path is not None:
            paths.append(path)
    return tuple(paths)


def _under(path: str, roots: tuple[str, ...]) -> bool:
    return any(path == root or path.startswith(root + ".") for root in roots)


def _parameters_around(model: Any, layers: nn.ModuleList) -> list[nn.Parameter]:
    inside_layers = {id(parameter) for parameter in layers.parameters()}
    return [p for p in model.parameters() if id(p) not in inside_layers]


def _once(around: list[nn.Parameter], blocks: list[Block], counts: list[_BlockCost]) -> list[nn.Parameter]:
    """Every stored parameter once, whoever shares it; those of what was put in once more."""
    found = {id(p): p for p in around}
    again: list[nn.Parameter] = []
    for block, one in zip(blocks, counts, strict=True):
        if block.is_inserted:
            again += one.parameters
        else:
            found.update((id(p), p) for p in one.parameters)
    return [*found.values(), *again]


def _weight_bytes(view: Sized, blocks: list[Block], stored: list[nn.Parameter], *, is_packed: bool) -> int:
    if not is_packed:
        return sum(parameter.numel() * parameter.element_size() for parameter in stored)
    layers = view.model.get_submodule(view.layers_path)
    run = [block.layer for block in blocks]
    return bytes_of(view.model) + sum((run.count(index) - 1) * bytes_of(layer) for index, layer in enumerate(layers))


# -- linear maps ---------------------------------------------------------------------------------------------------------


def _map_macs(module: nn.Module, config: Any, *, skip: tuple[str, ...] = ()) -> float | None:
    """MACs per token of every linear map inside a module; None if there are experts of unknown activity."""
    n_experts, n_active = (_first_of(config, names) for names in (EXPERTS, ACTIVE_EXPERTS))
    total = 0.0
    for path, part in module.named_modules():
        if isinstance(part, nn.Embedding) or _under(path, skip):
            continue
        for name, weight in part.named_parameters(recurse=False):
            if weight.ndim < 2 or "bias" in name:
                continue
            if not _is_of_an_expert(path, weight, n_experts):
                total += weight.numel()
            elif n_experts is None or n_active is None:
                return None
            else:
                total += weight.numel() * n_active / n_experts
    return total


def _idle_experts(module: nn.Module, config: Any, *, skip: tuple[str, ...] = ()) -> float | None:
    """Parameters of experts that a token does not meet, in the mean; None if how many it meets cannot be told."""
    n_experts, n_active = (_first_of(config, names) for names in (EXPERTS, ACTIVE_EXPERTS))
    stored = 0
    for path, part in module.named_modules():
        if not _under(path, skip):
            stored += sum(one.numel() for one in part.parameters(recurse=False) if _is_of_an_expert(path, one, n_experts))
    if not stored:
        return 0.0
    return None if n_experts is None or n_active is None else stored * (1 - n_active / n_experts)


def _is_of_an_expert(path: str, weight: nn.Parameter, n_experts: int | None) -> bool:
    """Whether only some tokens meet a weight: one of all experts, packed along its first dimension, or one below ``experts``.

    Args: path: of the module that holds the weight. JetMoE keeps the router, and a bias that counts for all, below ``experts``.
    """
    parts = path.split(".")
    is_packed = weight.ndim == 3 and weight.shape[0] == n_experts
    is_below = "experts" in parts and "router" not in parts and not (weight.ndim == 1 and parts[-1] == "experts")
    return is_packed or is_below


def _map_macs_around(model: Any, layers: nn.ModuleList) -> float:
    """Linear maps outside the layers: the head, and projections before or after the layers where a family has them."""
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    total = float(head.weight.numel()) if head is not None else 0.0
    inside = {id(part) for part in layers.modules()} | {id(head)}
    for part in decoder.modules():
        if isinstance(part, nn.Embedding) or id(part) in inside:
            continue
        total += sum(
            weight.numel() for name, weight in part.named_parameters(recurse=False) if weight.ndim == 2 and "bias" not in name
        )
    return total


def _first_of(config: Any, names: tuple[str, ...]) -> int | None:
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)


# -- attention -----------------------------------------------------------------------------------------------------------


def _attention(block: Block) -> nn.Module | None:
    """The softmax attention of a block, also where a replacement wraps a stock layer as ``.layer``."""
    if "attn" in block.off:
        return None
    inner = getattr(block.module, "layer", None)
    for place in (block.module, inner):
        found = sublayer(place, "attn") if isinstance(place, nn.Module) else None
        if found is not None:
            return found[1] if _has_keys(*found) else None
    return None


def _has_keys(name: str, module: nn.Module) -> bool:
    return any(hasattr(module, one) for one in KEY_MAPS) if name in MIXED else name not in STATEFUL


def n_keys(config: Any, layer: int, *, context: int) -> int:
    """Keys that a token of ``layer`` sees when ``context`` tokens, itself included, are there; 0 without softmax attention."""
    kinds = getattr(config, "layer_types", None)
    kind = kinds[layer] if kinds else "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    if kind == "sliding_attention":
        return min(context, getattr(config, "sliding_window", None) or context)
    if kind == "chunked_attention":
        return min(context, getattr(config, "attention_chunk_size", None) or context)
    return 0 if any(word in kind for word in ("linear", "mamba", "conv", "recurrent")) else context


def _head_dims(config: Any) -> tuple[int, int]:
    """Sizes of one head: of queries and keys, and of values."""
    if getattr(config, "kv_lora_rank", None):
        return config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return size, size


def _attention_macs(view: Sized, block: Block, context: int) -> int:
    module = _attention(block)
    if module is None:
        return 0
    config = getattr(module, "config", view.config)
    return config.num_attention_heads * sum(_head_dims(config)) * n_keys(view.config, block.layer, context=context)


def _kv_numbers(view: Sized, block: Block, context: int) -> int:
    """Numbers that the cache of one block holds after ``context`` tokens."""
    module = _attention(block)
    if module is None:
        return 0
    config = getattr(module, "config", view.config)
    keys = n_keys(view.config, block.layer, context=context)
    if getattr(config, "kv_lora_rank", None):
        return keys * (config.kv_lora_rank + config.qk_rope_head_dim)
    multi_query = getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False)
    n_heads = 1 if multi_query else _first_of(config, KV_HEADS) or config.num_attention_heads
    return keys * n_heads * sum(_head_dims(config))
