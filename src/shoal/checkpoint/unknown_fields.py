"""Values of config fields that nobody here knows: which of them may speak of single layers, at any depth.

A field that is not understood would be copied into the student's config as it stands, where the number of a layer means another
layer. So whatever looks like one entry per layer, numbers of layers or something keyed by them is refused by name; the rest
stays.
"""

import re
from collections.abc import Iterator
from typing import Any

LOOKS_PER_LAYER = re.compile(r"layers?(_|$)|_idxs?$|indices|per_layer|period|interval")
# A single number under such a name is that of a layer, and no count.
ONE_LAYER = re.compile(r"(?:^|_)(?:exit|start|end|first|last|skip|stop|from|until)_layer$|(?:^|_)layer_(?:idx|index|id)$")
SPEAKS_OF_LAYERS = re.compile(r"(?:^|_)layers?(?:_|$)")
NUMBERS = re.compile(r"\s*\d+(?:\s*(?:[,;: ]|-|\.{2,3})\s*\d+)+\s*")  # "3,4,5", "7-9" and "7..9" are such texts.
INDEX = re.compile(r"\d+")
# Names of lists and dicts that have nothing to do with layers, whatever their length, at any depth.
NEVER_PER_LAYER = ("id2label", "label2id", "long_factor", "short_factor", "mrope_section", "weight_block_size")
LONGEST_SHAPE = 4  # A list inside a section that is no longer than this is a shape, a block or a pair.


def may_speak_of_layers(field: str, value: Any, n_layers: int) -> Iterator[tuple[str, str]]:
    """Each part of a field's value that may depend on layer numbers: its path, and what it looks like.

    Args:
        field: name of an unknown field at the top of the decoder's config.
    """
    if _is_per_layer(field, value, n_layers, shortest=1):
        yield field, "a list that looks per-layer"
    else:
        yield from _inside(field, field, value, n_layers)


def _inside(path: str, name: str, value: Any, n_layers: int) -> Iterator[tuple[str, str]]:
    """As :func:`may_speak_of_layers`, without the value's own length."""
    if name in NEVER_PER_LAYER:
        return
    if isinstance(value, dict):
        if any(INDEX.fullmatch(str(key)) for key in value):
            yield path, "a dict keyed by index"
            return
        for key, one in value.items():
            inner = f"{path}.{key}"
            if str(key) not in NEVER_PER_LAYER and _is_per_layer(str(key), one, n_layers, shortest=LONGEST_SHAPE + 1):
                yield inner, "a list that looks per-layer"
            else:
                yield from _inside(inner, str(key), one, n_layers)
    elif isinstance(value, list):
        for one in value:
            if isinstance(one, (dict, list)):
                yield from _inside(path, name, one, n_layers)
    elif isinstance(value, str):
        if SPEAKS_OF_LAYERS.search(name) and NUMBERS.fullmatch(value):
            yield path, "a text of numbers that look like those of layers"
    elif type(value) is int and 0 <= value < n_layers and ONE_LAYER.search(name):
        yield path, "what looks like the number of a layer"


def _is_per_layer(name: str, value: Any, n_layers: int, *, shortest: int) -> bool:
    """Whether a list has one entry per layer, or a name that says so.

    Args:
        shortest: a list below this length says nothing by its length.
    """
    if not isinstance(value, list) or not value:
        return False
    if shortest > 1 and all(isinstance(one, str) and not INDEX.fullmatch(one) for one in value):
        return False  # Texts inside a section may name modules; they are matched against the names.
    return LOOKS_PER_LAYER.search(name) is not None or len(value) == n_layers >= shortest
