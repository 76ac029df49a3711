"""Numbers of layers in a generation_config.json: where a draft leaves the model early, and which layers DoLa contrasts.

``assistant_early_exit`` (LayerSkip, arXiv 2404.16710) counts the first layers that the draft runs. ``dola_layers`` (DoLa, arXiv
2309.03883) numbers the states between layers: 0 is the embedding, ``i`` what layer ``i - 1`` left.
"""

from collections.abc import Mapping, Sequence
from typing import Any

FILE = "generation_config.json"


def edited_generation(stated: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """The content in the student's layers; what the cut leaves nothing of is taken out.

    Args:
        order: source layer of each layer of the student.
    """
    edited = dict(stated)
    early, states = edited.get("assistant_early_exit"), edited.get("dola_layers")
    if type(early) is int:
        edited["assistant_early_exit"] = sum(layer < early for layer in order)
    if isinstance(states, list) and all(type(state) is int for state in states):
        edited["dola_layers"] = sorted({sum(layer < state for layer in order) for state in states})
    return {field: value for field, value in edited.items() if value or field not in ("assistant_early_exit", "dola_layers")}
