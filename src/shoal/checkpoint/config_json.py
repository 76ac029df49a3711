"""The config.json of a student: the source's own file, edited where the cut changes it, readable by old and new readers.

A config that transformers re-serialises loses keys: version 5 writes ``rope_parameters`` and ``dtype`` alone. A reader that
knows only ``rope_theta``, ``rope_scaling`` and ``torch_dtype`` (transformers 4, mlx-lm for Llama, the import of Ollama) then
takes its defaults without a word. So every key of the source stays as it stands there unless the cut changes it, and rotary
parameters and dtype are stated under both names. What transformers makes of the file must be the student's config.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.checkpoint.config_fields import NESTED

WHO_READ_IT = ("transformers_version", "_name_or_path")  # These keys say who read a config, and where: nothing of the model.
NOT_COMPARED = (*WHO_READ_IT, "architectures", "dtype", "torch_dtype")
ABSENT = object()
CONFIG = "config.json"

# What earlier versions call the base frequency and the rotary share of the head, by model type where it is not the usual name.
USUAL = ("rope_theta", "partial_rotary_factor")
FLAT_NAMES = {name: ("rotary_emb_base", "rotary_pct") for name in ("gpt_neox", "gpt_neox_japanese")}
# Families with rotary parameters per kind of layer that earlier versions know: base frequency of full and of window layers.
NESTED_NAMES = {
    "gemma3_text": ("rope_theta", "rope_local_base_freq"),
    "gemma3n_text": ("rope_theta", "rope_local_base_freq"),
    "modernbert-decoder": ("global_rope_theta", "local_rope_theta"),
}
SPLIT_OFF = ("rope_theta", "partial_rotary_factor")  # These keys of rope_parameters never were in rope_scaling.


def write_config(path: Path, stated: Mapping[str, Any], before: Any, after: Any) -> None:
    """Write a student's config.json, and read it back.

    Args:
        stated: content of the source's config.json.
        before: the config that transformers reads from it.
        after: the student's config.
    Raises:
        ValueError: transformers would read another config than ``after``; names the field.
    """
    from shoal.engine.open import quiet_loading

    content = edited_json(stated, before, after)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    # From the file, because the library writes numbers that JSON has not, such as infinity, in its own way.
    with quiet_loading():
        again = type(after).from_json_file(path)
    field = first_other_field(after.to_dict(), again.to_dict())
    if field is not None:
        raise ValueError(
            f"model type {after.model_type!r}: config.json of the source, edited for the cut, would be read with another "
            f"{field}; save the source again with the installed transformers and cut that"
        )


def edited_json(stated: Mapping[str, Any], before: Any, after: Any) -> dict[str, Any]:
    """The source's JSON with what differs between two configs, rotary parameters and dtype under old and new names.

    Args:
        stated, before, after: as :func:`write_config`.
    """
    content = copy.deepcopy(dict(stated))
    _carry_over(content, before.to_dict(), after.to_dict(), before)
    state_both_names(content, after.to_dict())
    return content


def state_both_names(content: dict[str, Any], full: Mapping[str, Any]) -> None:
    """Add the names that are missing of those that state one thing; what two names state must not differ.

    Args:
        content: of a config.json; edited in place.
        full: what transformers makes of it, ``PreTrainedConfig.to_dict()``.
    """
    parts = [(content, full)]
    parts += [(content[n], full[n]) for n in NESTED if isinstance(content.get(n), dict) and isinstance(full.get(n), dict)]
    for part, whole in parts:
        if part.get("dtype") or part.get("torch_dtype"):
            part["dtype"] = part["torch_dtype"] = whole.get("dtype") or part.get("dtype") or part["torch_dtype"]
        _state_rotary(part, whole)
    if "text_config" in full and "text_config" not in content:  # The text model's fields stand at the top of older wrappers.
        _state_rotary(content, full["text_config"])


def first_other_field(wanted: Mapping[str, Any], found: Any) -> str | None:
    """The first field of ``wanted`` that ``found`` states differently: ``name: this != that``, or None."""
    for key, value in sorted(wanted.items()):
        if key in NOT_COMPARED:
            continue
        other = found.get(key, ABSENT)
        if _is_config(value) and _is_config(other):
            inner = first_other_field(value, other)
            if inner is not None:
                return f"{key}.{inner}"
        elif other != value:
            return f"{key}: {value!r} != {'nothing' if other is ABSENT else repr(other)}"
    return None


def _carry_over(content: dict[str, Any], old: Mapping[str, Any], new: Mapping[str, Any], config: Any) -> None:
    aliases = getattr(config, "attribute_map", {})
    for key in {**old, **new}:
        if key in WHO_READ_IT or old.get(key, ABSENT) == new.get(key, ABSENT):
            continue
        if _is_config(old.get(key)) and _is_config(new.get(key)):
            # A model in memory states its dtype in every part of its config; a part of the source that has none needs none.
            inner = content[key] if isinstance(content.get(key), dict) else content
            has_dtype = old[key].get("dtype") is not None
            now = {name: value for name, value in new[key].items() if name != "dtype" or has_dtype}
            was = {name: value for name, value in old[key].items() if name != "dtype" or has_dtype}
            _carry_over(inner, was, now, getattr(config, key, None))
        elif key in new:
            content[key] = new[key]
            content.update({alias: new[key] for alias, name in aliases.items() if name == key and alias in content})
        else:
            content.pop(key, None)


def _is_config(value: Any) -> bool:
    """Whether a value of a config is the config of a part of the model."""
    return isinstance(value, dict) and "model_type" in value


def _state_rotary(content: dict[str, Any], full: Mapping[str, Any]) -> None:
    rotary = full.get("rope_parameters")
    if not isinstance(rotary, dict) or not rotary:
        return
    if _differs(content.get("rope_parameters"), rotary):
        content["rope_parameters"] = copy.deepcopy(rotary)
    family = str(full.get("model_type"))
    if "rope_theta" in rotary:
        theta, share = FLAT_NAMES.get(family, USUAL)
        content[theta] = _same(content.get(theta), rotary["rope_theta"])
        if rotary.get("partial_rotary_factor") is not None:
            content[share] = _same(content.get(share), rotary["partial_rotary_factor"])
        _state_scaling(content, rotary)
    elif family in NESTED_NAMES:
        for name, kind in zip(NESTED_NAMES[family], ("full_attention", "sliding_attention"), strict=True):
            if isinstance(rotary.get(kind), dict) and rotary[kind].get("rope_theta") is not None:
                content[name] = _same(content.get(name), rotary[kind]["rope_theta"])
        _state_scaling(content, rotary.get("full_attention") or {})
    elif family == "olmo3" and len({one.get("rope_theta") for one in rotary.values() if isinstance(one, dict)}) == 1:
        content["rope_theta"] = _same(content.get("rope_theta"), next(iter(rotary.values()))["rope_theta"])
        _state_scaling(content, rotary.get("full_attention") or {})


def _state_scaling(content: dict[str, Any], rotary: Mapping[str, Any]) -> None:
    """``rope_scaling`` as earlier versions read it: null for plain frequencies, because absent means yarn to gpt_oss."""
    scaling = {key: value for key, value in rotary.items() if key not in SPLIT_OFF}
    is_plain = scaling.get("rope_type", "default") == "default" and set(scaling) <= {"rope_type", "type"}
    stated = content.get("rope_scaling")
    if is_plain and not stated:
        content.setdefault("rope_scaling", None)
    elif not isinstance(stated, dict) or any(stated[key] != scaling.get(key, ABSENT) for key in _numbers(stated)):
        content["rope_scaling"] = scaling


def _numbers(scaling: Mapping[str, Any]) -> list[str]:
    """Keys that count when two statements are compared; kinds go by several names (``su`` and ``longrope``)."""
    return [key for key in scaling if key not in ("type", "rope_type", *SPLIT_OFF)]


def _differs(stated: Any, rotary: Mapping[str, Any]) -> bool:
    if not isinstance(stated, dict):
        return True
    return any(key not in ("type", "rope_type") and rotary.get(key, ABSENT) != value for key, value in stated.items())


def _same(stated: Any, value: Any) -> Any:
    """The number as the source writes it where it is this one."""
    return stated if stated == value and type(stated) is not bool else value
