"""Fields of a config.json that transformers turns into others when it reads the file, and that other readers still read.

``hybrid_override_pattern`` of Nemotron-H (one letter per layer) becomes ``layer_types``, ``first_k_dense_replace`` becomes
``mlp_layer_types`` in some families. The student's file states the new field; an old one that stayed as it was would tell
vLLM or llama.cpp of layers that are gone. So an old field is edited as its form says, and taken out where that form cannot
describe the cut.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from shoal.checkpoint.config_fields import COUNTS, DEFAULT_OF, HARMLESS, INDICES, NESTED, PATTERNS, pattern_after
from shoal.checkpoint.unknown_fields import LOOKS_PER_LAYER

PER_LAYER = re.compile(r"layers?(?:_|$)|pattern|_types?$|_freq$|per_layer")
PREFIX_COUNT = re.compile(r"^(?:num|n)_(?!hidden_|nextn_)\w+_layers$")  # So many of the first layers are of a kind.


def edited_consumed(stated: Mapping[str, Any], config: Any, order: Sequence[int], n_layers: int) -> dict[str, Any]:
    """The content of a source's config.json, its consumed fields in the student's layers.

    Args:
        config: what transformers reads from it.
        order: source layer of each layer of the student.
    """
    content = copy.deepcopy(dict(stated))
    if list(order) == list(range(n_layers)):
        return content
    parts = [(content, config), *((content.get(name), getattr(config, name, None)) for name in NESTED)]
    for part, read in parts:
        if not isinstance(part, dict) or not hasattr(read, "to_dict"):
            continue
        kept = {*read.to_dict(), *getattr(read, "attribute_map", {}), *COUNTS, *HARMLESS, *DEFAULT_OF, *NESTED}
        consumed = {field: value for field, value in part.items() if field not in kept}
        after = {**consumed, **_patterns(consumed, order, n_layers)}
        for field, value in consumed.items():
            new = after[field] if after[field] != value else _edited(field, value, order, n_layers)
            if new is None and value is not None:
                del part[field]
            else:
                part[field] = new
    return content


def _patterns(consumed: Mapping[str, Any], order: Sequence[int], n_layers: int) -> dict[str, Any]:
    """The fields of patterns after the cut; None where they cannot describe it."""
    edited: dict[str, Any] = {}
    for pattern in PATTERNS:
        if type(consumed.get(pattern.fields[0])) is not int:
            continue
        values = pattern_after(consumed, pattern, order, n_layers)
        for field in pattern.fields:
            if field in consumed:
                edited[field] = None if values is None else values[field]
    return edited


def _edited(field: str, value: Any, order: Sequence[int], n_layers: int) -> Any:
    """A value in the student's layers; None where that cannot be said."""
    if isinstance(value, (list, str)) and len(value) == n_layers and PER_LAYER.search(field):
        entries = [value[layer] for layer in order]
        return "".join(entries) if isinstance(value, str) else entries
    if isinstance(value, list) and value and field in INDICES:
        return [j for j, layer in enumerate(order) if layer in value]
    if isinstance(value, dict) and value and all(re.fullmatch(r"\d+", str(key)) for key in value):
        entries_of = {str(key): one for key, one in value.items()}
        return {str(j): entries_of[str(layer)] for j, layer in enumerate(order) if str(layer) in entries_of}
    if type(value) is int and PREFIX_COUNT.search(field) and value <= n_layers:
        return sum(layer < value for layer in order)
    if isinstance(value, list) and value and LOOKS_PER_LAYER.search(field):
        return None
    return value
