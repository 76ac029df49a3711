"""Layers that read another layer's keys and values (Gemma 3n, Gemma 4): which cuts leave every layer its own source.

The last ``num_kv_shared_layers`` layers compute no keys and values. Each reads those of the last layer of its kind (full or
window attention) before the first of them. So a layer among them may go, and the count falls; a layer before them may go unless
one that stays reads it, for the layer of its kind before it would be read in its place, without an error.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from shoal.words.structure import runs_said

FIELD = "num_kv_shared_layers"
FAMILIES = ("gemma3n_text", "gemma4_text", "gemma4_unified_text")
"""Model types that follow this rule, and whose tables of embeddings per layer have a block for each layer."""


def key_sources(decoder: Mapping[str, Any], n: int) -> tuple[int, ...]:
    """For each layer the one whose keys and values it reads: itself, unless it shares another's.

    Args:
        decoder: a config with ``layer_types`` and ``num_kv_shared_layers``.
        n: layers that it describes.
    Raises:
        ValueError: more shared layers than there are, or a kind of layer that no layer before them has.
    """
    n_shared, kinds = decoder.get(FIELD) or 0, decoder.get("layer_types") or ["full_attention"] * n
    if not 0 <= n_shared < n:
        raise ValueError(f"{FIELD}={n_shared} needs 0..{n - 1} of {n} layers; mend config.json")
    first, sources = n - n_shared, list(range(n))
    for layer in range(first, n):
        same = [before for before in range(first) if kinds[before] == kinds[layer]]
        if not same:
            raise ValueError(f"layer {layer} shares keys and values, and no {kinds[layer]} stands before layer {first}")
        sources[layer] = same[-1]
    return tuple(sources)


def edit_shared(decoder: dict[str, Any], order: Sequence[int], n: int, where: str) -> None:
    """State how many of the kept layers share keys and values.

    Args:
        decoder: the config's part for the decoder, before its lists of layers are cut; its count is edited.
        order: source layer of each layer of the student.
    Raises:
        ValueError: a layer that stays would read other keys and values than in the source; names what has to stay.
    """
    if decoder.get("model_type") not in FAMILIES or not (decoder.get(FIELD) or decoder.get("hidden_size_per_layer_input")):
        return
    if any(after <= before for before, after in zip(order, order[1:], strict=False)):
        raise ValueError(f"{where}: its layers are tied to their place, so none can be repeated or moved; remove layers only")
    sources = key_sources(decoder, n)
    for layer in order:
        if sources[layer] not in order:
            readers = [one for one in order if sources[one] == sources[layer]]
            who = f"layer {readers[0]} reads" if len(readers) == 1 else f"layers {runs_said(readers)} read"
            raise ValueError(
                f"{where}: {who} the keys and values of layer {sources[layer]}; keep it, or remove its readers, too"
            )
    if decoder.get(FIELD):
        decoder[FIELD] = sum(sources[layer] != layer for layer in order)
