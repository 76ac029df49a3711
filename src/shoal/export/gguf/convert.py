"""A checkpoint folder as a GGUF file, for families whose layers are plain: Llama, Mistral, Qwen2, Qwen3 and Gemma 3.

Keys and names are those of the format's own converters; the tensors were compared with theirs, and the logits of llama.cpp with
those of transformers. Other families: graft onto the teacher's file, or the converter of a llama.cpp checkout.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shoal.engine.gguf_head import BOOL, FLOAT32, INT32, STRING, UINT32, Value
from shoal.export.gguf.blocks import encoded, fitting_kind, kind_number, n_bytes_of
from shoal.export.gguf.cut_file import KEPT
from shoal.export.gguf.layers import ARCHITECTURES, PATTERN, has_window
from shoal.export.gguf.stored_weights import StoredWeights
from shoal.export.gguf.tokenizer import SQUEEZED, tokenizer_keys
from shoal.export.gguf.write_file import Outgoing, write_gguf

ARCHITECTURE_OF = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3"}
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "bf16": 32}
ROTATED = re.compile(r"\.(q|k)_proj\.")
ACTIVATIONS = {"gemma3_text": "gelu_pytorch_tanh"}
"""What llama.cpp computes in the MLP of a family; silu in that of the others."""
YARN = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": True,
    "mscale": 0.0,
    "mscale_all_dim": 0.0,
    "partial_rotary_factor": 1.0,
}
"""Parameters of YaRN that no key is written for, and the values that llama.cpp takes then."""
WRITTEN = ("rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings")
CHECKOUT = "python convert_hf_to_gguf.py FOLDER of a llama.cpp checkout, or --like TEACHER.gguf"


@dataclass(frozen=True)
class Rotary:
    """Rotary parameters of the layers with full attention, and the base of those with a window."""

    base: float
    scaling: Mapping[str, Any]
    base_of_windows: float | None = None


def why_not(config: Mapping[str, Any]) -> str | None:
    """Why a config cannot be written by hand here, or None."""
    family = config.get("model_type")
    if family not in ARCHITECTURE_OF:
        return f"model type {family!r} is not among those written here ({', '.join(ARCHITECTURE_OF)}); use {CHECKOUT}"
    if config.get("quantization_config"):
        return "its weights are quantised; shoal export plain first, or cut its GGUF file with shoal cut"
    kinds = set(config.get("layer_types") or ()) - {"full_attention"}
    if family != "gemma3_text" and (kinds or family == "qwen2" and config.get("use_sliding_window")):
        return f"llama.cpp knows no sliding windows of {family!r}; use another engine"
    activation, computed = config.get("hidden_activation") or config.get("hidden_act"), ACTIVATIONS.get(family, "silu")
    if activation not in (None, computed):
        return f"llama.cpp runs the MLP of {family!r} with {computed}, this model has {activation!r}; use another engine"
    try:
        scaling = rotary_of(config).scaling
    except ValueError as error:
        return str(error)
    if scaling.get("rope_type", "default") not in ("default", "linear", "yarn", "llama3"):
        return f"rotary scaling {scaling.get('rope_type')!r} is not written here; use {CHECKOUT}"
    if scaling.get("rope_type") == "yarn" and (others := _other_yarn(scaling)):
        return f"rotary scaling 'yarn' with {others} is not written here; use {CHECKOUT}"
    return _why_no_gemma(config) if family == "gemma3_text" else None


def _other_yarn(scaling: Mapping[str, Any]) -> str:
    """Parameters that are neither written nor what llama.cpp takes by itself, with their values; empty: none."""
    usual = {**YARN, "attention_factor": 0.1 * math.log(max(1.0, float(scaling["factor"]))) + 1.0}
    stated = {name: value for name, value in scaling.items() if name not in WRITTEN and value is not None}
    others = [
        (name, value)
        for name, value in stated.items()
        if not isinstance(value, int | float) or not math.isclose(value, usual.get(name, math.nan))
    ]
    return ", ".join(f"{name}={value}" for name, value in others)


def _why_no_gemma(config: Mapping[str, Any]) -> str | None:
    if config["num_hidden_layers"] in ARCHITECTURES["gemma3"].switches:
        return "llama.cpp scales the attention of a Gemma 3 of 62 layers otherwise"
    if config.get("query_pre_attn_scalar", 256) != config.get("head_dim", 256):
        return "llama.cpp scales attention by the head's width, this model by another number"
    if config.get("attn_logit_softcapping"):
        return "llama.cpp caps no attention of Gemma 3"
    if config.get("use_bidirectional_attention"):
        return "llama.cpp runs Gemma 3 causally"
    return None


def rotary_of(config: Mapping[str, Any]) -> Rotary:
    """Rotary parameters of a config.json, in either form. Raises ValueError where they differ by kind of layer otherwise."""
    stated = config.get("rope_parameters")
    if isinstance(stated, dict) and stated:
        if "full_attention" in stated:
            full, windows = stated["full_attention"], stated.get("sliding_attention") or {}
            if windows.get("rope_type", "default") != "default":
                raise ValueError("layers with a window have rotary scaling of their own, which GGUF has no key for")
            return Rotary(float(full["rope_theta"]), full, float(windows.get("rope_theta", full["rope_theta"])))
        return Rotary(float(stated.get("rope_theta", 10000.0)), stated)
    scaling = dict(config.get("rope_scaling") or {})
    scaling.setdefault("rope_type", scaling.get("type", "default"))
    local = config.get("rope_local_base_freq")
    return Rotary(float(config.get("rope_theta", 10000.0)), scaling, None if local is None else float(local))


def convert(
    folder: Path,
    config: Mapping[str, Any],
    out: Path,
    *,
    name: str,
    kept: Sequence[int] = (),
    kind: str = "f16",
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write a GGUF file of a checkpoint folder.

    Args:
        config: what its config.json states, with every default.
        name: for people who look into the file.
        kept: the layers of the teacher, where they are known.
        kind: of the matrices; vectors stay fp32.
    Returns: notes for whoever serves it.
    Raises:
        ValueError: see :func:`why_not`; a tensor that the format has no name for; a tokenizer that cannot be written.
    """
    refusal = why_not(config)
    if refusal is not None:
        raise ValueError(refusal)
    weights = StoredWeights(folder)
    architecture, n_vocab = ARCHITECTURE_OF[config["model_type"]], config["vocab_size"]
    tokens = tokenizer_keys(folder, n_vocab)
    keys = {
        "general.architecture": Value.of(architecture, STRING),
        "general.type": Value.of("model", STRING),
        "general.name": Value.of(name, STRING),
        "general.file_type": Value.of(FILE_TYPES[kind], UINT32),
        "general.quantization_version": Value.of(2, UINT32),
        **{f"{architecture}.{key}": value for key, value in model_keys(config).items()},
        **tokens,
        **({KEPT: Value.of_list(list(kept), INT32)} if kept else {}),
    }
    write_gguf(out, keys, folder_tensors(weights, config, architecture, kind), overwrite=overwrite)
    notes = []
    window = config.get("sliding_window")
    if config["model_type"] == "mistral" and window and window < config["max_position_embeddings"]:
        notes.append(f"llama.cpp has no sliding window for Mistral; the context is set to the window, {window} tokens")
    if tokens[next(iter(tokens))].value == "none":
        notes.append("the folder has no tokenizer, so engines can run this file on token ids only")
    if SQUEEZED in tokens and tokens[SQUEEZED].value:
        notes.append(
            "the tokenizer makes one space of several, llama.cpp keeps all, so texts with such spaces get other tokens"
        )
    return tuple(notes)


def head_size(config: Mapping[str, Any]) -> int:
    """Width of one attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def model_keys(config: Mapping[str, Any]) -> dict[str, Value]:
    """The keys that follow the architecture's name."""
    size, rotary = head_size(config), rotary_of(config)
    context = config["max_position_embeddings"]
    if config["model_type"] == "mistral" and config.get("sliding_window"):
        context = min(context, config["sliding_window"])
    counts = {
        "block_count": config["num_hidden_layers"],
        "context_length": context,
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config.get("num_key_value_heads") or config["num_attention_heads"],
        "attention.key_length": size,
        "attention.value_length": size,
        "rope.dimension_count": size,
        "vocab_size": config["vocab_size"],
    }
    keys = {name: Value.of(int(n), UINT32) for name, n in counts.items()}
    keys["attention.layer_norm_rms_epsilon"] = Value.of(float(config["rms_norm_eps"]), FLOAT32)
    keys["rope.freq_base"] = Value.of(rotary.base, FLOAT32)
    kind = rotary.scaling.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        keys["rope.scaling.type"] = Value.of(kind, STRING)
        keys["rope.scaling.factor"] = Value.of(float(rotary.scaling["factor"]), FLOAT32)
        original = rotary.scaling.get("original_max_position_embeddings")
        if original:
            keys["rope.scaling.original_context_length"] = Value.of(int(original), UINT32)
    if config["model_type"] == "gemma3_text":
        keys |= _gemma_keys(config, rotary)
    return keys


def _gemma_keys(config: Mapping[str, Any], rotary: Rotary) -> dict[str, Value]:
    keys = {"attention.sliding_window": Value.of(int(config["sliding_window"]), UINT32)}
    if rotary.base_of_windows is not None:
        keys["rope.freq_base_swa"] = Value.of(rotary.base_of_windows, FLOAT32)
    if config.get("final_logit_softcapping"):
        keys["final_logit_softcapping"] = Value.of(float(config["final_logit_softcapping"]), FLOAT32)
    n, period = config["num_hidden_layers"], ARCHITECTURES["gemma3"].window_period
    assert period is not None
    usual = [has_window(layer, period, is_full_first=False) for layer in range(n)]
    kinds = config.get("layer_types")
    windows = usual if kinds is None else [one == "sliding_attention" for one in kinds]
    if windows != usual:
        keys[PATTERN] = Value.of_list(windows, BOOL)
    return keys


def llama3_factors(rotary: Rotary, size: int) -> np.ndarray[Any, Any]:
    """Divisors of the rotary frequencies, (size / 2,), of Llama 3: long waves are stretched, short ones are not."""
    scaling = rotary.scaling
    factor, original = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    waves = 2 * math.pi * rotary.base ** (np.arange(0, size, 2, dtype=np.float64) / size)
    smooth = np.clip((original / waves - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)


def folder_tensors(
    weights: StoredWeights, config: Mapping[str, Any], architecture: str, kind: str, *, names: Sequence[str] | None = None
) -> list[Outgoing]:
    """The tensors of a folder under the names and in the order of the format.

    Args:
        names: those to write; None: all.
    Raises:
        ValueError: a tensor that the format has no name for.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    number = next(one for one, name in MODEL_ARCH_NAMES.items() if name == architecture)
    known = get_tensor_name_map(number, config["num_hidden_layers"])
    found: list[Outgoing] = []
    rotary = rotary_of(config)
    if rotary.scaling.get("rope_type") == "llama3":
        found.append(outgoing("rope_freqs.weight", llama3_factors(rotary, head_size(config)), "f32"))
    for name in weights.names if names is None else names:
        if name == "lm_head.weight" and config.get("tie_word_embeddings", architecture == "gemma3"):
            continue
        given = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if given is None:
            raise ValueError(f"the tensor {name!r} has no name in a GGUF file of {architecture!r}; use {CHECKOUT}")
        found.append(_from_folder(given, name, weights, config, architecture, kind))
    return found


def _from_folder(
    given: str, name: str, weights: StoredWeights, config: Mapping[str, Any], architecture: str, kind: str
) -> Outgoing:
    shape = weights.shape(name)
    as_kind = fitting_kind(kind, shape)

    def chunks() -> list[bytes]:
        return [encoded(as_stored(name, weights.values(name), config, architecture), as_kind)]

    return Outgoing(given, tuple(reversed(shape)), kind_number(as_kind), n_bytes_of(as_kind, shape), chunks)


def outgoing(name: str, values: np.ndarray[Any, Any], kind: str) -> Outgoing:
    """A tensor whose values are at hand."""
    raw = encoded(values, kind)
    return Outgoing(name, tuple(reversed(values.shape)), kind_number(kind), len(raw), lambda: [raw])


def as_stored(name: str, values: np.ndarray[Any, Any], config: Mapping[str, Any], architecture: str) -> np.ndarray[Any, Any]:
    """Values in the order of the format: rotated rows interleaved for ``llama``, one added to the norms of Gemma."""
    rotated = ROTATED.search(name)
    if architecture == "llama" and rotated is not None:
        n_kv = config.get("num_key_value_heads") or config["num_attention_heads"]
        return interleaved(values, config["num_attention_heads"] if rotated[1] == "q" else n_kv)
    if architecture == "gemma3" and name.endswith("norm.weight"):
        return values + 1
    return values


def interleaved(values: np.ndarray[Any, Any], n_heads: int) -> np.ndarray[Any, Any]:
    """Rows ``i`` and ``i + half`` of each head, which are rotated together, next to each other."""
    halves = values.reshape(n_heads, 2, values.shape[0] // n_heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)
