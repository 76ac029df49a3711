"""Text layers at which a model adds features of an image (DeepStack, arXiv 2406.04334): which cuts leave them in place.

Qwen3-VL and its kin add the features of as many vision layers as ``deepstack_visual_indexes`` names, by position: the first
behind text layer 0, the second behind text layer 1, and so on. So these layers have to stay the first.

Granite 4 Vision names the text layer before which features are added, in ``deepstack_layer_map`` (pairs of a vision layer and a
text layer) and in ``spatial_target_layers``. So these layers have to stay, under their new numbers.

A text alone computes the same after any cut, so no measurement of the text decoder would show the difference.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from shoal.words.structure import runs_said

COUNTED = "deepstack_visual_indexes"
NAMED = PAIRS, TARGETS = "deepstack_layer_map", "spatial_target_layers"


def edit_image_layers(config: dict[str, Any], order: Sequence[int], n: int, where: str) -> None:
    """Renumber the text layers at which a config says that features of an image are added.

    Args:
        config: the whole of it, with what is around the text decoder's part; edited in place.
        order: source layer of each layer of the student.
        n: layers of the source.
    Raises:
        ValueError: such a layer would go, or would no longer be where its features are added; names all of them.
    """
    vision = config.get("vision_config")
    first = list(range(len((vision.get(COUNTED) if isinstance(vision, Mapping) else None) or ())))
    if list(order[: len(first)]) != first:
        raise ValueError(
            f"{where}: features of an image are added behind its first {len(first)} layers ({COUNTED}), so they have to stay "
            f"the first; {_keep(first[:n])}"
        )
    pairs, targets = config.get(PAIRS) or [], config.get(TARGETS) or []
    if not all(isinstance(pair, (list, tuple)) and [type(layer) for layer in pair] == [int, int] for pair in pairs):
        raise ValueError(f"{where}: config field {PAIRS} needs pairs of a vision layer and a text layer; mend config.json")
    if not all(type(layer) is int for layer in targets):
        raise ValueError(f"{where}: config field {TARGETS} needs numbers of text layers; mend config.json")
    named = sorted({layer for layer in (*(layer for _, layer in pairs), *targets) if 0 <= layer < n})
    if not set(named) <= set(order):
        raise ValueError(
            f"{where}: features of an image are added before its layers {runs_said(named)} ({', '.join(NAMED)}), so they have "
            f"to stay; {_keep(named)}"
        )

    def at(layer: int) -> int:
        """Where a layer stands in the student; a number beyond the layers names none, and stays beyond them."""
        if layer in named:
            return list(order).index(layer)
        return max(layer, len(order)) if layer >= n else layer

    if pairs:
        config[PAIRS] = [type(pair)((pair[0], at(pair[1]))) for pair in pairs]
    if targets:
        config[TARGETS] = [at(layer) for layer in targets]


def _keep(layers: Sequence[int]) -> str:
    return f"keep {'layer' if len(layers) == 1 else 'layers'} {runs_said(layers)} (--protect {','.join(map(str, layers))})"
