"""Layer numbers in the names of tensors on disk: which prefix the decoder's layers have, and what lies behind the last one."""

import re
from collections.abc import Iterable

# The groups are the prefix up to the first part of digits alone, the index, and the rest.
NUMBERED = re.compile(r"^((?:[^.]*[^.\d][^.]*\.)*)(\d+)\.(.+)$")
MOST_DIGITS = 7  # A layer number has at most so many digits; longer ones are names, not numbers.


def layer_of(name: str, prefix: str) -> int | None:
    """The layer that a tensor belongs to under a decoder's prefix, or None. Its first number counts, not an expert's."""
    match = NUMBERED.match(name) if name.startswith(prefix) else None
    return int(match[2]) if match is not None and match[1] == prefix and len(match[2]) <= MOST_DIGITS else None


def numbers_by_prefix(names: Iterable[str]) -> dict[str, set[int]]:
    """The numbers that follow each prefix of tensor names."""
    found: dict[str, set[int]] = {}
    for name in names:
        match = NUMBERED.match(name)
        if match is not None and len(match[2]) <= MOST_DIGITS:
            found.setdefault(match[1], set()).add(int(match[2]))
    return found


def decoder_prefix(names: Iterable[str], n_layers: int, path_in_memory: str) -> str:
    """What stands before the layer number in the names on disk, e.g. ``model.layers.``.

    Numbers from ``n_layers`` on (prediction layers that are not part of the decoder) are allowed.
    Raises:
        ValueError: no prefix has every number 0..n-1, or several do and none is the path of the layers in memory.
    """
    numbers = numbers_by_prefix(names)
    whole = sorted(prefix for prefix, seen in numbers.items() if len(seen) >= n_layers and seen.issuperset(range(n_layers)))
    if not whole:
        raise ValueError(f"no tensor names numbered 0..{n_layers - 1} in the weights; they are not those of this config")
    if len(whole) == 1:
        return whole[0]
    # On loading transformers renames, e.g. language_model.model.layers to model.language_model.layers: the same words; or some
    # of them, where the text model was not wrapped when it was stored (Qwen2.5-VL: model.layers).
    words = set(path_in_memory.split("."))
    same = [prefix for prefix in whole if sorted(prefix.split(".")) == sorted(f"{path_in_memory}.".split("."))]
    some = [prefix for prefix in whole if words.issuperset(prefix.rstrip(".").split("."))]
    found = same or some
    if len(found) != 1:
        raise ValueError(f"several lists of {n_layers} layers in the weights ({', '.join(whole)}); cannot tell which to cut")
    return found[0]
