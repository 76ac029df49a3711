"""A model spread over several cards: whole layers on each, in order, by a device map and the hooks of accelerate.

A hook of accelerate moves a layer's arguments to its card before it runs. The engine brings the state of the stream back to the
device of the embeddings behind every layer, so that whatever measures it finds all tensors in one place. What is spread is read
and trained as it is; values that an edit puts in are made for one device, so cutting and repairing are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from shoal.engine.families import find_layers
from shoal.words.numbers import in_bytes

AUTO = "auto"
SHARE_OF_A_CARD = 0.9  # Weights take at most this share of the free memory; the rest is for what runs through them.


def is_spread(device: str) -> bool:
    """Whether a device names several cards, or leaves it to what is here."""
    return device == AUTO or "," in device


def devices_of(device: str) -> tuple[str, ...]:
    """The devices that are meant: ``cuda:0,1`` names two cards, ``auto`` every card that is here, or the CPU.

    Raises:
        ValueError: no list of cards, one twice, or one that is not here.
    """
    if not is_spread(device):
        return (device,)
    n_here = torch.cuda.device_count()
    if device == AUTO:
        return tuple(f"cuda:{i}" for i in range(n_here)) or ("cpu",)
    if re.fullmatch(r"cuda:\d+(,(cuda:)?\d+)+", device) is None:
        raise ValueError(f"device {device!r} is no list of cards; give one such as cuda:0,1, or auto")
    cards = [int(one) for one in re.findall(r"\d+", device)]
    if len(set(cards)) < len(cards):
        raise ValueError(f"device {device!r} names a card twice; name each once")
    if max(cards) >= n_here:
        raise ValueError(f"device {device!r} cannot be used here: cards here: {n_here}; name those, or use auto or cpu")
    return tuple(f"cuda:{card}" for card in cards)


def home_of(device: str) -> str:
    """The device where a spread model takes its tokens and gives its logits: the first."""
    return devices_of(device)[0]


def device_map(model: nn.Module, devices: Sequence[str], *, dtype: torch.dtype | None = None) -> dict[str, str]:
    """Which part of a model lives on which card: whole layers, in order, as even as they come.

    Args:
        model: in memory or on ``meta``.
        devices: cards, as :func:`devices_of` gives them.
        dtype: that the weights will have; the model's unless given.
    Raises:
        ValueError: the weights do not fit on these cards.
    """
    from accelerate import infer_auto_device_map

    layers = find_layers(model)[1]
    free = {int(device.removeprefix("cuda:")): torch.cuda.mem_get_info(device)[0] for device in devices}
    total, largest = _n_bytes(model, dtype), max(_n_bytes(layer, dtype) for layer in layers)
    even = total // len(devices) + 2 * largest  # accelerate keeps room for one more layer on the first card.
    room = {card: min(even, int(SHARE_OF_A_CARD * n)) for card, n in free.items()}
    names = sorted({type(layer).__name__ for layer in layers})
    found = infer_auto_device_map(model, max_memory=dict(room), no_split_module_classes=names, dtype=dtype)
    if not set(found.values()) <= set(free):
        said = ", ".join(f"cuda:{card} {in_bytes(n)}" for card, n in free.items())
        raise ValueError(
            f"weights of {in_bytes(total)} do not fit on these cards ({said} free, of which {SHARE_OF_A_CARD:.0%} for them); "
            "give more cards, or --dtype bfloat16"
        )
    return {name: f"cuda:{card}" for name, card in found.items()}


def put(model: Any, device: str) -> Any:
    """A model in memory on its device, or spread over its devices."""
    devices = devices_of(device)
    if len(devices) == 1:
        return model.to(devices[0])
    from accelerate import dispatch_model

    return dispatch_model(model, device_map=device_map(model, devices))


def placement(model: nn.Module) -> Mapping[str, Any]:
    """The parts of a spread model with their devices; empty for one that is in one place."""
    found: Mapping[str, Any] = getattr(model, "hf_device_map", None) or {}
    return found if len(set(found.values())) > 1 else {}


def _n_bytes(module: nn.Module, dtype: torch.dtype | None) -> int:
    """Bytes of the parameters, tied ones once, in ``dtype`` where they are floating point."""
    size = None if dtype is None else torch.empty(0, dtype=dtype).element_size()
    return sum(p.numel() * (size if size and p.is_floating_point() else p.element_size()) for p in module.parameters())
