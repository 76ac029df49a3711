"""The weights of a merged layer, and which of its parameters a rule writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from shoal.edits.inserted_layers import alike
from shoal.edits.merge_rules import MergeRule
from shoal.engine.view import DecoderView

if TYPE_CHECKING:
    from shoal.edits.merge_edit import Merge


def merge_of(view: DecoderView, layers: Sequence[int], rule: MergeRule, weights: Sequence[float] | None = None) -> Merge:
    """The edit that merges some layers into the first of them.

    Args:
        weights: where they are not those of the rule; the first layer's first.
    Raises:
        ValueError: layers of different kinds, quantised weights.
    """
    from shoal.edits.merge_edit import Merge

    own = rule.weights(len(layers) - 1) if rule.weights is not None else None
    is_own = weights is None or (own is not None and tuple(weights) == own)
    kind = rule.name if is_own else "weighted"
    names = merged_parameters(view, layers, rule)
    given = () if is_own else tuple(weights or ())
    return Merge(into=layers[0], of=tuple(layers[1:]), rule=kind, weights=given, parameters=names)


def merged_parameters(view: DecoderView, layers: Sequence[int], rule: MergeRule) -> tuple[str, ...]:
    """Names inside the layer of what a rule writes.

    Raises:
        ValueError: layers of different kinds; weights that are no floats.
    """
    modules = view.model.get_submodule(view.layers_path)
    other = next((layer for layer in layers[1:] if not alike(modules[layers[0]], modules[layer])), None)
    if other is not None:
        raise ValueError(
            f"layers {layers[0]} and {other} of this {view.family} model differ in their parts; they cannot be merged"
        )
    first = modules[layers[0]]
    packed = next((name for name, one in first.named_parameters() if not one.is_floating_point()), None)
    if packed is not None:
        raise ValueError(
            f"layer {layers[0]} of this {view.family} model is quantised ({packed!r} holds integers); it cannot be "
            "merged: start from the unquantised checkpoint, or from what shoal export plain makes of this one"
        )
    return tuple(name for name, _ in first.named_parameters() if not rule.maps_alone or _is_of_a_map(first, name))


def _is_of_a_map(layer: nn.Module, name: str) -> bool:
    """Whether a parameter is a matrix, or the bias of a module that has one."""
    module = layer.get_submodule(name.rpartition(".")[0])
    return any(one.ndim >= 2 for one in module.parameters(recurse=False))


@torch.no_grad()
def merged(edit: Merge, view: DecoderView) -> dict[str, Tensor]:
    """Values of a merge: the weighted sums, in fp32 at least, rounded once. Layers of weight 0 are not read."""
    total: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for layer, weight in zip((edit.into, *edit.of), edit.all_weights, strict=True):
        if not weight:
            continue
        with view.residency.layer(layer) as module:
            parameters = dict(module.named_parameters())
            for name in edit.parameters:
                if name not in parameters:
                    raise ValueError(f"layer {layer} of this {view.family} model has no parameter {name!r}")
                value = parameters[name].detach()
                dtypes[name] = value.dtype
                term = weight * value.to(torch.promote_types(value.dtype, torch.float32))
                total[name] = total[name] + term if name in total else term
    return {f"{edit.prefix()}{name}": value.to(dtypes[name]) for name, value in total.items()}
