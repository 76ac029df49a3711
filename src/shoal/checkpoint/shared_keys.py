"""Layers that read another layer's keys and values: which cuts leave every layer its own source.

Gemma 3n and Gemma 4 count them: the last ``num_kv_shared_layers`` layers compute no keys and values. Each reads those of the
last layer of its kind (full or window attention) before the first of them. So a layer among them may go, and the count falls; a
layer before them may go unless one that stays reads it, for the layer of its kind before it would be read in its place, without
an error.

Mistral Large 4 lists them: ``kv_source_layers`` names for every layer the one that it reads, itself unless it shares another's.
What runs reads the last layer before it that shares its keys and is of its kind (with rotary embedding or without), so that is
what the list has to name. Any cut which keeps the sources of its layers can be stated.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from shoal.words.structure import runs_said

FIELD, LISTED = "num_kv_shared_layers", "kv_source_layers"
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
    _refuse_lost(sources, order, where)
    if decoder.get(FIELD):
        decoder[FIELD] = sum(sources[layer] != layer for layer in order)


def edit_listed(decoder: dict[str, Any], order: Sequence[int], n: int, where: str) -> None:
    """The list of sources for the kept layers, where a config has one.

    Args:
        decoder, order: as for :func:`edit_shared`.
    Raises:
        ValueError: a list that names no sources of ``n`` layers; layers that share are repeated or moved; a layer that stays
            would lose the keys and values that it reads.
    """
    sources = decoder.get(LISTED)
    if not sources:
        return
    is_list = isinstance(sources, list) and len(sources) == n and all(type(one) is int for one in sources)
    if not is_list or any(sources[layer] not in (layer, _last_shared(decoder, sources, layer)) for layer in range(n)):
        raise ValueError(
            f"{where}: {LISTED} has to name for each of its {n} layers itself, or the last layer of its kind before it that "
            "shares its keys and values; mend config.json"
        )
    if sources == list(range(n)):
        decoder[LISTED] = list(range(len(order)))
        return
    if any(after <= before for before, after in zip(order, order[1:], strict=False)):
        raise ValueError(f"{where}: layers share keys and values, so none can be repeated or moved; remove layers only")
    _refuse_lost(sources, order, where)
    decoder[LISTED] = [list(order).index(sources[layer]) for layer in order]


def _last_shared(decoder: Mapping[str, Any], sources: Sequence[int], layer: int) -> int | None:
    """The last layer of the same kind before this one that computes keys and values which another reads, if there is one."""
    kinds = decoder.get("no_rope_layers") or [1] * len(sources)
    shared = [one for one in range(layer) if sources[one] == one and one in sources[one + 1 :] and kinds[one] == kinds[layer]]
    return shared[-1] if shared else None


def _refuse_lost(sources: Sequence[int], order: Sequence[int], where: str) -> None:
    """Raises ValueError where a layer that stays reads the keys and values of a layer that goes."""
    for layer in order:
        if sources[layer] not in order:
            readers = [one for one in order if sources[one] == sources[layer]]
            who = f"layer {readers[0]} reads" if len(readers) == 1 else f"layers {runs_said(readers)} read"
            raise ValueError(
                f"{where}: {who} the keys and values of layer {sources[layer]}; keep it, or remove its readers, too"
            )
