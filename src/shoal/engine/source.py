"""What a model source is, and everything that can be wrong with it before any weight is loaded.

A source is a local folder, a hub id or a GGUF file; all end as a local folder of config, safetensors and tokenizer files.
"""

import json
from pathlib import Path
from typing import Any

from shoal.engine.beside import refuse_adapter, refuse_damaged_texts, refuse_irregular_files
from shoal.engine.gguf_source import dequantised, gguf_in
from shoal.engine.hub import fetched, is_hub_id
from shoal.engine.shards import Shard, read_shards
from shoal.words.reading import at_home, read_json, reason_of, shortened
from shoal.words.records import nearest, stable_hash

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")
CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel")
FIELD_TYPES: tuple[tuple[str, type, str], ...] = (
    ("model_type", str, "a text"),
    ("architectures", list, "a list of class names"),
    ("auto_map", dict, "an object"),
    ("text_config", dict, "an object"),
    ("quantization_config", dict, "an object"),
)
WHOLE_BYTES = 256 * 2**20  # Checkpoints up to this size are hashed whole.
SAMPLE_BYTES = 4096  # Larger ones are hashed by this much at the start, middle and end of every tensor.


def resolve_source(source: str | Path, *, trust_remote_code: bool = False) -> Path:
    """The local folder of a source; a hub id is fetched or found in the cache, a GGUF file is dequantised into one of ours.

    Raises:
        ValueError: no such folder; a hub id that cannot be reached and is not in the cache; a GGUF file that cannot be read.
    """
    place = local_place(source)
    if place is None:
        return fetched(str(source), trust_remote_code=trust_remote_code)
    packed = gguf_in(place)
    return place if packed is None else dequantised(packed)


def local_place(source: str | Path) -> Path | None:
    """The folder or GGUF file that a source names, or None where it is a hub id; neither is looked into.

    Raises:
        ValueError: neither is there, a file of another kind, a name that no file can have.
    """
    folder, text = at_home(Path(source)), str(source)
    try:
        is_folder, is_there, is_file = folder.is_dir(), folder.exists(), folder.is_file()
    except (OSError, ValueError) as error:  # No file can have such a name.
        raise ValueError(f"no such model folder: {shortened(repr(text))} ({reason_of(error)})") from None
    if is_folder or (is_file and folder.suffix.lower() == ".gguf"):
        return folder
    if is_there:
        raise ValueError(
            f"model {text!r} is a file; pass the folder that holds config.json and the safetensors, or a .gguf file"
        )
    if folder.suffix.lower() == ".gguf":
        raise ValueError(f"no such GGUF file: {shortened(repr(text))}; give the path of one, or of a folder that holds one")
    if isinstance(source, Path) or not is_hub_id(text):
        raise ValueError(
            f"no such model folder: {shortened(repr(text))}; pass a folder with config.json and safetensors, or a hub id like "
            "org/name or org/name@revision"
        )
    return None


def check_source(path: Path, *, trust_remote_code: bool = False) -> list[Shard]:
    """Refuse a folder that cannot be opened as a causal language model; nothing is loaded.

    Returns: its safetensors shards, checked.
    Raises:
        ValueError: one line: no such folder, no config, not a causal language model, unknown model type, remote code without
            the flag, an adapter, no weights, pickled weights only, truncated or corrupt safetensors, missing shards.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"no such model folder: {str(path)!r}; pass a folder with config.json and safetensors")
    refuse_irregular_files(path)
    refuse_adapter(path)
    refuse_damaged_texts(path)
    if not (path / "config.json").exists():
        raise ValueError(f"{path} has no config.json; it is not a Hugging Face model folder")
    check_architecture(read_json(path / "config.json"), str(path), trust_remote_code=trust_remote_code)
    return read_shards(path)


def refuse_wrong_types(config: dict[str, Any], where: str) -> None:
    """Raises ValueError where a field of a ``config.json`` that is read here holds another kind of value than it has to."""
    for field, kind, needed in FIELD_TYPES:
        value = config.get(field)
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{where}: config.json states {field}={shortened(repr(value), 40)}, {needed} is needed; mend it")


def check_architecture(config: dict[str, Any], where: str, *, trust_remote_code: bool = False) -> None:
    """Refuse a ``config.json`` that is not a decoder-only causal language model known to transformers.

    Raises:
        ValueError: see :func:`check_source`.
    """
    refuse_wrong_types(config, where)
    heads = config.get("architectures") or []
    if not all(isinstance(head, str) for head in heads):
        raise ValueError(
            f"{where}: config.json states architectures={shortened(repr(heads), 40)}, class names are needed; mend it"
        )
    stated = config.get("quantization_config")
    if stated is not None and not (stated and isinstance(stated.get("quant_method", ""), str)):
        raise ValueError(
            f"{where}: config.json states quantization_config={shortened(repr(stated), 40)}, which names no method; state its "
            "quant_method, or take the entry out where nothing is quantised"
        )
    remote = config.get("auto_map") or {}
    family = config.get("model_type")
    if config.get("is_encoder_decoder"):
        raise ValueError(
            f"{where}: model type {family!r} is an encoder-decoder; Shoal cuts decoder-only causal language models"
        )
    if trust_remote_code and "AutoModelForCausalLM" in remote:
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if not family:
        raise ValueError(f"{where}: config.json states no model_type; add it, or save the model again with transformers")
    if family not in CONFIG_MAPPING_NAMES:
        if remote:
            raise ValueError(
                f"{where}: model type {family!r} comes with its own code; read that code, then pass --trust-remote-code"
            )
        hint = nearest(family, CONFIG_MAPPING_NAMES).split("known:")[0].strip()
        raise ValueError(
            f"{where}: transformers does not know the model type {family!r}; {hint or 'check config.json or upgrade'}"
        )
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(family) or wrapper_class(config)
    if causal is None:
        raise ValueError(f"{where}: model type {family!r} has no causal language model in transformers; Shoal cuts only those")
    known = causal if isinstance(causal, (tuple, list)) else (causal,)
    if heads and not any(head in known or head.endswith(CAUSAL_ENDINGS) for head in heads):
        raise ValueError(f"{where}: {heads[0]} (model type {family!r}) is not a causal language model; {known[0]} is needed")


def wrapper_class(config: Any) -> str | None:
    """Name of the class of a model with images whose text decoder is wrapped, where transformers has no causal model of it.

    Args:
        config: content of a config.json, or a config.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    stated = config if isinstance(config, dict) else {"model_type": getattr(config, "model_type", None)}
    family = stated.get("model_type")
    if family is None or family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return None
    found = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(family)
    return found if isinstance(found, str) else found[0] if found else None


def auto_class(config: Any) -> Any:
    """The class of transformers that opens a model of this config: causal, or with images around its text decoder."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if wrapper_class(config) else AutoModelForCausalLM


def needs_code(config: dict[str, Any]) -> bool:
    """Whether transformers knows a model by the code that comes with it alone."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return bool(config.get("auto_map")) and config.get("model_type") not in CONFIG_MAPPING_NAMES


def quantisation(config: dict[str, Any]) -> str | None:
    """Name of the quantisation method a ``config.json`` states, or None."""
    stated = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
    return str(stated.get("quant_method", "unnamed")) if isinstance(stated, dict) else None


def fingerprint(path: Path) -> str:
    """Identity of a checkpoint folder: 16 hex digits of config, tensor names, dtypes, shapes and weight bytes.

    The config counts as parsed JSON without the version of the library that wrote it. Weight bytes: all of them up to
    256 MiB in total, else 4 KiB at the start, middle and end of every tensor. How tensors are spread over shards does not
    count.
    Raises:
        ValueError: as :func:`shoal.engine.shards.read_shards`.
    """
    shards = read_shards(path)
    config = read_json(path / "config.json")
    config.pop("transformers_version", None)
    whole = sum(slot.n_bytes for shard in shards for slot in shard.slots.values()) <= WHOLE_BYTES
    parts: list[tuple[str, str]] = []
    for shard in shards:
        with shard.path.open("rb") as file:
            for name, slot in shard.slots.items():
                pieces = [(slot.start, slot.n_bytes)] if whole else sampled_ranges(slot.start, slot.stop)
                read: list[bytes] = []
                for start, n_bytes in pieces:
                    file.seek(shard.data_start + start)
                    read.append(file.read(n_bytes))
                parts.append((name, stable_hash([slot.dtype, list(slot.shape)], *read)))
    return stable_hash(json.dumps(config, sort_keys=True), sorted(parts))


def sampled_ranges(start: int, stop: int) -> list[tuple[int, int]]:
    """(offset, length) of the bytes of a tensor that a sampled fingerprint reads."""
    if stop - start <= 3 * SAMPLE_BYTES:
        return [(start, stop - start)]
    return [(offset, SAMPLE_BYTES) for offset in (start, (start + stop) // 2, stop - SAMPLE_BYTES)]
