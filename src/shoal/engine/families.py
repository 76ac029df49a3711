"""Where a decoder keeps its layers and sublayers, found by structure; no table of architectures.

What cannot be replayed or cut is refused here by name (design: layers that feed each other outside the stream).
"""

from typing import Any

from torch import nn

ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention", "linear_attn", "mixer", "temporal_block")
MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")
# The linear map that writes a sublayer's result into the residual stream. Zeroing *its* output is right in every family,
# also where the sublayer adds the residual itself (bloom, mpt), where zeroing the sublayer's output would be wrong.
ATTENTION_MAPS = ("o_proj", "out_proj", "dense", "c_proj", "wo")
MLP_MAPS = ("down_proj", "c_proj", "fc2", "fc_out", "dense_4h_to_h", "w2", "wo")
# Maps of modules that write into the stream beside a sublayer, or in its place: state spaces (Falcon-H1, Granite 4), short
# convolutions (LFM2) and shared experts (Granite 4), inside the layer.
FURTHER_MAPS = {"attn": ("mamba.out_proj", "conv.out_proj"), "mlp": ("shared_mlp.output_linear",)}


def text_config(config: Any) -> Any:
    """The config that describes the decoder (the nested one of a multimodal model)."""
    return config.get_text_config(decoder=True)


def find_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Path and list of decoder layers: the shallowest ``ModuleList`` of the configured length inside the decoder.

    Raises:
        ValueError: none, or more than one at the shallowest depth.
    """
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise ValueError(f"{type(model).__name__} is not a Hugging Face model; pass an AutoModelForCausalLM model or its path")
    n_layers = getattr(text_config(config), "num_hidden_layers", None)
    if n_layers is None:
        raise ValueError(f"model type {config.model_type!r} states no num_hidden_layers; it has no decoder that can be cut")
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if get_decoder else model
    found = _lists_of(n_layers, decoder, model) or _lists_of(n_layers, model, model)
    if not found:
        raise ValueError(
            f"no list of {n_layers} layers inside {type(decoder).__name__} (model type {config.model_type!r}); "
            "this architecture cannot be replayed layer by layer"
        )
    depth = min(path.count(".") for path, _ in found)
    shallowest = [(path, module) for path, module in found if path.count(".") == depth]
    if len(shallowest) > 1:
        names = ", ".join(path for path, _ in shallowest)
        raise ValueError(
            f"several lists of {n_layers} layers ({names}) in model type {config.model_type!r}; cannot tell which to cut"
        )
    return shallowest[0]


def _lists_of(n: int, inside: nn.Module, model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    prefix = next((name for name, module in model.named_modules() if module is inside), "")
    return [
        (f"{prefix}.{name}".strip("."), module)
        for name, module in inside.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n
    ]


def refuse_two_stacks(config: Any) -> None:
    """Raises ValueError for encoder-decoder models."""
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"model type {config.model_type!r} is an encoder-decoder; Shoal cuts decoder-only causal language models"
        )


FILE_TO_FILE = (
    "its layers cannot be run one by one, so nothing of it can be measured or repaired here; it can be cut file to file: shoal "
    "apply MODEL --layers LIST, or shoal plan MODEL --recipe uidl-simple --drop N and shoal apply"
)


def refuse_coupled_layers(config: Any) -> None:
    """Refuse to run the layers of families that feed each other outside the residual stream.

    Raises:
        ValueError: shared key/value layers, per-layer input embeddings, encoder-decoder models.
    """
    decoder = text_config(config)
    refuse_two_stacks(config)
    if getattr(decoder, "num_kv_shared_layers", 0):
        raise ValueError(
            f"model type {decoder.model_type!r} shares keys and values between layers (num_kv_shared_layers="
            f"{decoder.num_kv_shared_layers}); {FILE_TO_FILE}"
        )
    sources = getattr(decoder, "kv_source_layers", None)
    if sources and list(sources) != list(range(len(sources))):
        raise ValueError(
            f"model type {decoder.model_type!r} shares keys and values between layers (kv_source_layers={sources}); "
            f"{FILE_TO_FILE}"
        )
    if getattr(decoder, "hidden_size_per_layer_input", 0):
        raise ValueError(
            f"model type {decoder.model_type!r} feeds token embeddings to every layer (hidden_size_per_layer_input="
            f"{decoder.hidden_size_per_layer_input}); {FILE_TO_FILE}"
        )


def sublayer(layer: nn.Module, kind: str) -> tuple[str, nn.Module] | None:
    """Name and module of a layer's attention or MLP, or None when the layer has none as one module."""
    for name in ATTENTION_NAMES if kind == "attn" else MLP_NAMES:
        module = getattr(layer, name, None)
        if isinstance(module, nn.Module):
            return name, module
    return None


def output_map(layer: nn.Module, kind: str) -> str | None:
    """Path (inside the layer) of the linear map that ends a sublayer; None where there is no single one (experts)."""
    inside = sublayer(layer, kind)
    names = ATTENTION_MAPS if kind == "attn" else MLP_MAPS
    place, prefix = (layer, "") if inside is None and kind == "mlp" else (inside[1], inside[0] + ".") if inside else (None, "")
    for name in names:
        module = getattr(place, name, None)
        if isinstance(module, nn.Module) and getattr(module, "weight", None) is not None and module.weight.ndim == 2:
            return prefix + name
    return None


def silent_parameters(layer: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that write into the stream: where all are zero, both sublayers should give exactly nothing.

    They are those of the output map of each sublayer and of what writes beside it; of experts, those of every map that ends one
    of them. Empty where a sublayer is not found, or has no such map. Whether a layer is the identity then, running it says.
    """
    found: list[str] = []
    for kind in ("attn", "mlp"):
        path = output_map(layer, kind)
        inside = sublayer(layer, kind)
        further = [one for one in FURTHER_MAPS[kind] if one in dict(layer.named_modules())]
        if path is not None:
            names = _of_map(layer, path)
        elif inside is not None:
            names = [f"{inside[0]}.{name}" for name, _ in inside[1].named_parameters() if _ends_an_expert(name)]
        else:
            names = [] if not further else _of_map(layer, further.pop(0))
        if not names:
            return ()
        found += names + [name for one in further for name in _of_map(layer, one)]
    return tuple(found)


def _of_map(layer: nn.Module, path: str) -> list[str]:
    return [f"{path}.{name}" for name, _ in layer.get_submodule(path).named_parameters(recurse=False)]


def _ends_an_expert(name: str) -> bool:
    """Whether a parameter inside experts is that of an output map: ``experts.down_proj``, ``experts.0.w2.weight``, ..."""
    return any(part.removesuffix("_bias") in MLP_MAPS for part in name.split("."))


def contribution(layer: nn.Module, kind: str) -> str | None:
    """Path of the module whose zeroed output removes a sublayer from the stream: the output map, else the sublayer itself."""
    path = output_map(layer, kind)
    if path is not None:
        return path
    inside = sublayer(layer, kind)
    return None if inside is None else inside[0]
