"""The weights of new layers: blends of two neighbours, zero output maps, and the steps of a student that run them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from shoal.engine.families import silent_parameters
from shoal.engine.student import Step
from shoal.engine.view import DecoderView
from shoal.words.types import Batch

if TYPE_CHECKING:
    from shoal.edits.insert import Insert


def steps_of(edit: Insert, view: DecoderView, values: Mapping[str, Tensor]) -> tuple[Step, ...]:
    """The new layers of an edit, in order.

    Args:
        values: under their whole names; without those of zero output maps.
    Raises:
        ValueError: values are missing, unknown or of another shape; the layer cannot be made silent.
    """
    return tuple(_step(edit, number, like, view, values) for number, like in enumerate(edit.of))


def _step(edit: Insert, number: int, like: int, view: DecoderView, values: Mapping[str, Tensor]) -> Step:
    prefix = edit.prefix_of(number)
    with view.residency.layer(like) as layer:
        state = layer.state_dict()
    overrides = silent_values(view, like) if edit.start.is_silent else {}
    zero = tuple(overrides)
    if prefix:
        own = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
        for name in sorted(set(own) ^ (set(state) - set(zero))):
            fault = "unknown" if name in own else "missing"
            raise ValueError(f"{prefix}{name} is {fault}; plan and values do not match")
        for name, value in own.items():
            if value.shape != state[name].shape:
                got, needed = tuple(value.shape), tuple(state[name].shape)
                raise ValueError(f"{prefix}{name} has shape {got}, {needed} is needed; plan and values do not match")
            overrides[name] = value.to(device=view.device, dtype=state[name].dtype)
    return Step(like, overrides=overrides or None)


def silenced(layer: nn.Module, family: str) -> tuple[str, ...]:
    """Names of the parameters that make a layer add nothing to the stream when they are zero.

    That they do is for :func:`silent_values` to see, which can run the layer.
    Raises:
        ValueError: a sublayer without output maps that are known.
    """
    names = silent_parameters(layer)
    if not names:
        raise ValueError(
            f"model type {family!r}: it is not known which weights make a layer silent; use --init copy, mean or interpolate"
        )
    return names


@torch.no_grad()
def silent_values(view: DecoderView, like: int) -> dict[str, Tensor]:
    """The zeros, by name inside the layer, with which a layer of the source adds nothing to the stream.

    The layer runs with them on random states, since it may write into the stream, or rescale it, in a way that is not known.
    Raises:
        ValueError: a sublayer without output maps that are known; the states that come out differ in a bit.
    """
    with view.residency.layer(like) as layer:
        state = layer.state_dict()
        names = silenced(layer, view.family)
    zeros = {name: torch.zeros(state[name].shape, device=view.device, dtype=state[name].dtype) for name in names}
    reading = view.read(Batch(torch.zeros(1, 3, dtype=torch.long)))
    h_BTD = torch.randn(reading.h_BTD.shape, generator=torch.Generator().manual_seed(0)).to(reading.h_BTD)
    if not torch.equal(view.run_step(Step(like, overrides=zeros), h_BTD, reading), h_BTD):
        raise ValueError(
            f"model type {view.family!r}: layer {like} is not the identity where its output maps are zero, so it cannot be "
            "made silent; use --init copy, mean or interpolate"
        )
    return zeros


@torch.no_grad()
def blended(edit: Insert, view: DecoderView) -> dict[str, Tensor]:
    """Values of an edit's layers between their neighbours: layer ``like`` and the next one of its kind, in the source.

    Of n new layers number i has ``(1 - t) a + t b``, t = (i + 1) / (n + 1) for ``interpolate`` and 1/2 for the others; computed
    in fp32 and rounded once. What is no float (counters, packed weights) is the first one's.
    Raises:
        ValueError: no layer of its kind comes behind it.
    """
    found: dict[str, Tensor] = {}
    n = len(edit.of)
    for number, like in enumerate(edit.of):
        t = (number + 1) / (n + 1) if edit.init == "interpolate" else 0.5
        other = next_of_kind(view, like)
        with view.residency.layer(like) as layer:
            near = {name: value.detach().clone() for name, value in layer.state_dict().items()}
        zero = set(silent_values(view, like)) if edit.start.is_silent else set()
        with view.residency.layer(other) as layer:
            far = layer.state_dict()
            for name, value in near.items():
                if name not in zero:
                    found[f"{edit.prefix_of(number)}{name}"] = _between(value, far[name], t)
    return found


def _between(near: Tensor, far: Tensor, t: float) -> Tensor:
    if not near.is_floating_point():
        return near
    exact = torch.promote_types(near.dtype, torch.float32)
    return torch.lerp(near.to(exact), far.detach().to(exact), t).to(near.dtype)


def next_of_kind(view: DecoderView, layer: int) -> int:
    """The nearest layer behind another that has its parameters, shapes and settings.

    Raises:
        ValueError: there is none.
    """
    layers = view.model.get_submodule(view.layers_path)
    for other in range(layer + 1, view.n_layers):
        if alike(layers[layer], layers[other]):
            return other
    raise ValueError(
        f"no layer behind layer {layer} is of its kind, so there is nothing to blend it with; insert before layer "
        f"{view.n_layers - 1}, or use --init copy or identity"
    )


def alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two layers have the same parameters by name and shape, and modules of the same classes."""
    shapes = [{name: tuple(value.shape) for name, value in layer.state_dict().items()} for layer in (one, other)]
    classes = [[(path, type(module)) for path, module in layer.named_modules()] for layer in (one, other)]
    return shapes[0] == shapes[1] and classes[0] == classes[1]
