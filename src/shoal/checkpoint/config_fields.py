"""Edit a model's config for the layers that stay: count, per-layer lists, index lists, patterns.

Works on the JSON dict of a config, nested text configs included; in-memory models go through the same function. Fields are an
allow-list. A field that looks per-layer and is not on it is refused by name, and so is a pattern that cannot describe what is
left: a config that is silently out of step with its layers gives wrong masks without an error.

``order`` is the list of source layers of the new model, one per new layer: normally the kept layers in increasing order; a
layer that was put in place of a span counts as the layer it inherits its arguments from.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.checkpoint import image_layers, shared_keys
from shoal.checkpoint.unknown_fields import may_speak_of_layers

COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
NESTED = ("text_config", "llm_config", "language_config")

# One entry per layer: filtered by ``order``. Some of them are scalars in most families.
PER_LAYER = (
    "layer_types",
    "mlp_layer_types",
    "layers_block_type",
    "no_rope_layers",
    "attention_layers",
    "indexer_types",
    "layer_rope_theta",
    "activation_sparsity_pattern",
    "intermediate_size",
    "num_attention_heads_per_layer",
    "num_experts",
    "moe_topk",
)
# Lists of layer indices: filtered and renumbered.
INDICES = ("moe_layers", "full_attn_idxs", "attn_layer_indices", "ple_layer_ids", "rope_scaling_layers", "local_layer_ids")
# The pattern is only the default of an explicit per-layer list; inert where that list is present.
DEFAULT_OF = {
    "no_rope_layer_interval": "no_rope_layers",
    "interleave_moe_layer_step": "moe_layers",
    "sliding_window_pattern": "layer_types",
    "_sliding_window_pattern": "layer_types",
    "layer_group_size": "layer_types",
    "global_attn_every_n_layers": "layer_types",
    "index_topk_freq": "indexer_types",
}
# Lists and int-keyed dicts that have nothing to do with layers, whatever their length.
HARMLESS = (
    "architectures",
    "begin_suppress_tokens",
    "bos_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "id2label",
    "keys_to_ignore_at_inference",
    "languages",
    "mlp_multipliers",
    "mtp_layer_types",
    "mtp_layers_block_type",
    "mtp_local_layer_ids",
    "mtp_mlp_layer_types",
    "pad_token_id",
    "pruned_heads",
    "ssm_multipliers",
    "stop_words_ids",
    "suppress_tokens",
    "time_step_limit",
)
# Fields around the text decoder that speak of the vision layers, or of neither.
AROUND = (
    "image_grid_pinpoints",
    "insert_layer_id",
    "projector_patch_to_query_dict",
    "spatial_vision_layer",
    "vision_feature_layer",
    "vision_feature_layers",
)
SHARED = ("num_kv_shared_layers", "hidden_size_per_layer_input")  # The families of ``shared_keys`` may state these.
# Any value but these makes layers depend on each other, or on where they stand.
NEEDED: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(SHARED, (0, None)),
    "scale_attn_by_inverse_layer_idx": (False, None),
    "cross_attention_layers": ((), [], None),
    "hybrid_layer_ids": ((), [], None),
}
RECURRENT = ("linear_attention", "conv", "mamba", "mamba2", "recurrent", "short_conv", "moe", "mlp")
LAST_IS_FULL = ("gemma4_text", "gemma4_unified_text")  # The library makes the last layer of these one of full attention.
LENGTH_FROM_FIRST = ("minimax",)  # Cached generation is wrong, without an error, when the first layer has no key-value cache.


@dataclass(frozen=True)
class Pattern:
    """Scalars that say what layer ``i`` of ``n`` is.

    ``kind(values, i, n)`` is what the model makes of them; ``propose(kinds)`` gives values that should describe a list of
    kinds. The proposal is checked against ``kind``, so it may be wrong where no values exist.
    """

    fields: tuple[str, ...]
    kind: Callable[[tuple[Any, ...], int, int], bool]
    propose: Callable[[Sequence[bool]], tuple[Any, ...]]


def _sparse_step(values: tuple[Any, ...], i: int, n: int) -> bool:
    step, dense = values
    return i not in (dense or ()) and (i + 1) % (step or 1) == 0


def _ernie_moe(values: tuple[Any, ...], i: int, n: int) -> bool:
    interval, start, end = values
    return (i + 1) % interval == 0 and start <= i <= (n - 1 if end == -1 else end)


def _propose_prefix(kinds: Sequence[bool]) -> tuple[Any, ...]:
    return (len(kinds) - sum(kinds),)


def _propose_period(kinds: Sequence[bool]) -> tuple[Any, ...]:
    at = [i for i, yes in enumerate(kinds) if yes]
    period = at[1] - at[0] if len(at) > 1 else len(kinds) + 1
    return period, at[0] if at else len(kinds)


def _propose_ernie(kinds: Sequence[bool]) -> tuple[Any, ...]:
    at = [i for i, yes in enumerate(kinds) if yes]
    return (1, at[0], at[-1]) if at else (1, len(kinds), len(kinds))


def _prefix(field: str) -> Pattern:
    return Pattern((field,), lambda values, i, n: i >= values[0], _propose_prefix)


def _period(name: str) -> Pattern:
    return Pattern((f"{name}_period", f"{name}_offset"), lambda values, i, n: i % values[0] == values[1], _propose_period)


PATTERNS = (
    _prefix("first_k_dense_replace"),
    _prefix("num_dense_layers"),
    _prefix("max_window_layers"),
    Pattern(
        ("decoder_sparse_step", "mlp_only_layers"),
        _sparse_step,
        lambda kinds: (1, [i for i, sparse in enumerate(kinds) if not sparse]),
    ),
    Pattern(("moe_layer_interval", "moe_layer_start_index", "moe_layer_end_index"), _ernie_moe, _propose_ernie),
    _period("attn_layer"),
    _period("expert_layer"),
)


def decoder_dict(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config dict that describes the decoder (the dict itself, or its nested text config)."""
    for name in NESTED:
        nested = config.get(name)
        if isinstance(nested, dict) and any(field in nested for field in COUNTS):
            return nested
    return config


def count_layers(config: dict[str, Any]) -> int:
    """Decoder layers a config dict states. Raises ValueError when it states none."""
    decoder = decoder_dict(config)
    for field in COUNTS:
        if isinstance(decoder.get(field), int):
            return int(decoder[field])
    if isinstance(decoder.get("layers_block_type"), list):
        return len(decoder["layers_block_type"])
    raise ValueError(f"the config of model type {config.get('model_type')!r} states no number of layers ({', '.join(COUNTS)})")


def edited_config_dict(config: dict[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """Config of the model whose layer ``j`` is layer ``order[j]`` of the model ``config`` describes.

    Raises:
        ValueError: an index out of range, a coupling between layers, an unknown field that looks per-layer, a pattern that
            cannot describe the kept layers, a hybrid that would lose its last attention layer.
    """
    edited = copy.deepcopy(config)
    decoder = decoder_dict(edited)
    n = count_layers(config)
    family = decoder.get("model_type") or config.get("model_type")
    where = f"model type {family!r}"
    if not order:
        raise ValueError("no layer is kept; keep at least one")
    outside = [layer for layer in order if not 0 <= layer < n]
    if outside:
        raise ValueError(f"layer {outside[0]} is not in 0..{n - 1}")
    if list(order) == list(range(n)):
        return edited
    _refuse_coupled(decoder, where)
    _edit_around(edited, order, n, where)
    shared_keys.edit_shared(decoder, order, n, where)
    shared_keys.edit_listed(decoder, order, n, where)
    _refuse_last_attention(decoder, order, where)
    known = {*COUNTS, *PER_LAYER, *INDICES, *HARMLESS, *DEFAULT_OF, *NEEDED}
    for pattern in PATTERNS:
        known.update(pattern.fields)
        _edit_pattern(decoder, pattern, order, n, where)
    for field in PER_LAYER:
        value = decoder.get(field)
        if isinstance(value, list) and len(value) == n:
            decoder[field] = [value[layer] for layer in order]
        elif isinstance(value, list) and value:
            raise ValueError(f"{where}: config field {field} has {len(value)} entries for {n} layers; mend config.json first")
        elif isinstance(value, (dict, str)) and value:
            raise ValueError(f"{where}: config field {field} is {_form(value)}; it is not known how to cut it")
    for field in INDICES:
        value = decoder.get(field)
        if value and not (isinstance(value, list) and all(type(layer) is int and layer >= 0 for layer in value)):
            raise ValueError(
                f"{where}: config field {field} is {_form(value)}, and a list of layers 0..{n - 1} is needed; mend config.json"
            )
        if value:
            decoder[field] = [j for j, layer in enumerate(order) if layer in value]
    known.update(_edit_special(decoder, order, n, where))
    if edited.get("replacements"):  # Modules of a checkpoint with our code go and move with the layer they follow.
        modules = edited["replacements"]
        edited["replacements"] = {str(j): modules[str(layer)] for j, layer in enumerate(order) if str(layer) in modules}
        known.add("replacements")
    _refuse_unknown(decoder, known, n, where)
    for field in COUNTS:
        if decoder.get(field) == n:
            decoder[field] = len(order)
    return edited


def _refuse_coupled(decoder: dict[str, Any], where: str) -> None:
    knows = SHARED if decoder.get("model_type") in shared_keys.FAMILIES else ()
    for field, allowed in NEEDED.items():
        if field in decoder and decoder[field] not in allowed and field not in knows:
            raise ValueError(
                f"{where}: {field}={decoder[field]!r} ties layers to each other or to their position; "
                "it cannot be cut layer by layer"
            )
    if "shared" in (decoder.get("indexer_types") or ()):
        raise ValueError(f"{where}: indexer_types has 'shared' layers, which reuse another layer's choice; it cannot be cut")


def _edit_around(config: dict[str, Any], order: Sequence[int], n: int, where: str) -> None:
    """What a config says of the text layers outside its part for them; the parts of other stacks have layers of their own."""
    image_layers.edit_image_layers(config, order, n, where)
    if decoder_dict(config) is not config:
        own = {field: value for field, value in config.items() if not (isinstance(value, dict) and "model_type" in value)}
        _refuse_unknown(own, {*NESTED, *HARMLESS, *AROUND, *image_layers.NAMED, "replacements"}, n, where)


def _refuse_last_attention(decoder: dict[str, Any], order: Sequence[int], where: str) -> None:
    """Hybrids read the sequence length from an attention layer's cache; without one, cached generation fails. Other families
    need a layer of a kind in a certain place."""
    for field in ("layer_types", "layers_block_type"):
        kinds = decoder.get(field)
        if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
            continue
        attention = [i for i, kind in enumerate(kinds) if kind.endswith("attention") and not kind.startswith("linear")]
        if decoder.get("model_type") in LENGTH_FROM_FIRST and order[0] not in attention:
            raise ValueError(f"{where} reads the sequence length from its first layer, which must be one of {attention}")
        full = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
        if decoder.get("model_type") in LAST_IS_FULL and order[-1] not in full:
            raise ValueError(f"{where} ends in a layer of full attention, and layer {order[-1]} is none; end in one of {full}")
        if 0 < len(attention) < len(kinds) and not set(attention) & set(order) and any(kinds[i] in RECURRENT for i in order):
            raise ValueError(
                f"{where} mixes attention and recurrent layers and would lose its last attention layer; keep one of {attention}"
            )


def _edit_pattern(decoder: dict[str, Any], pattern: Pattern, order: Sequence[int], n: int, where: str) -> None:
    values = tuple(decoder.get(field) for field in pattern.fields)
    if values[0] is None:
        return
    for field, value in zip(pattern.fields, values, strict=True):
        is_numbers = isinstance(value, list) and all(type(one) is int for one in value)
        if not (value is None or type(value) is int or (is_numbers and field != pattern.fields[0])):
            raise ValueError(f"{where}: config field {field} is {_form(value)}; it is not known how to cut it")
    after = pattern_after(decoder, pattern, order, n)
    if after is None:
        stated = ", ".join(f"{field}={value}" for field, value in zip(pattern.fields, values, strict=True))
        raise ValueError(f"{where}: {stated} cannot describe the kept layers {list(order)}; remove whole periods")
    decoder.update({field: value for field, value in after.items() if field in decoder or value})


def pattern_after(fields: Mapping[str, Any], pattern: Pattern, order: Sequence[int], n: int) -> dict[str, Any] | None:
    """The values of a pattern's fields that describe the layers of ``order``; None where no values do."""
    values = tuple(fields.get(field) for field in pattern.fields)
    kinds = [pattern.kind(values, layer, n) for layer in order]
    proposed = pattern.propose(kinds)
    if any(pattern.kind(proposed, j, len(order)) != kind for j, kind in enumerate(kinds)):
        return None
    return dict(zip(pattern.fields, proposed, strict=True))


def _edit_special(decoder: dict[str, Any], order: Sequence[int], n: int, where: str) -> set[str]:
    """Fields with a form of their own. Returns their names."""
    if decoder.get("attention_types"):  # gpt_neo has [[kinds, repeats], ...], from which loading derives attention_layers.
        kinds = [kind for some, repeats in decoder["attention_types"] for _ in range(repeats) for kind in some]
        decoder["attention_types"] = [[[kinds[layer]], 1] for layer in order]
    if decoder.get("block_types"):  # recurrent_gemma has a cycle; an explicit cycle as long as the model describes anything.
        cycle = decoder["block_types"]
        decoder["block_types"] = [cycle[layer % len(cycle)] for layer in order]
    if decoder.get("per_layer_config"):
        by_layer = {int(key): value for key, value in decoder["per_layer_config"].items()}
        decoder["per_layer_config"] = {str(j): by_layer[layer] for j, layer in enumerate(order) if layer in by_layer}
    if decoder.get("scale_depth"):  # Layers of minicpm3 use scale_depth / sqrt(n).
        decoder["scale_depth"] = _scaled(decoder["scale_depth"], n, len(order))
    for field, listed in DEFAULT_OF.items():
        if decoder.get(field) not in (None, 0, 1) and not decoder.get(listed) and listed != "indexer_types":
            raise ValueError(f"{where}: {field}={decoder[field]} without an explicit {listed} cannot describe a gap")
    return {"attention_types", "block_types", "per_layer_config", "kv_source_layers", "scale_depth"}


def _scaled(value: float, n: int, n_new: int) -> float:
    """``v`` with ``v / sqrt(n_new) == value / sqrt(n)`` exactly, searched among the neighbours of the rounded product."""
    wanted, near = value / math.sqrt(n), value / math.sqrt(n) * math.sqrt(n_new)
    for candidate in (near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf)):
        if candidate / math.sqrt(n_new) == wanted:
            return candidate
    return near


def _refuse_unknown(decoder: dict[str, Any], known: set[str], n: int, where: str) -> None:
    for field, value in decoder.items():
        for path, what in () if field in known else may_speak_of_layers(field, value, n):
            raise ValueError(
                f"{where}: unknown config field {path}, {what}; take it out of config.json where nothing reads it, else teach "
                "shoal.checkpoint.config_fields this field"
            )


def _form(value: Any) -> str:
    """What a value is, with as much of it as a message takes."""
    kind = {"dict": "an object", "list": "a list", "str": "a text"}.get(type(value).__name__, f"a {type(value).__name__}")
    said = repr(value)
    return f"{kind} ({said if len(said) <= 60 else said[:57] + '...'})"
