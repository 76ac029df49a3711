"""The linear maps of a decoder by role, its final norm and its head; found by structure, as everywhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from shoal.engine.families import find_layers, sublayer


@dataclass(frozen=True, eq=False)
class TargetMap:
    """One linear map inside a layer.

    Attributes:
        name: its path in the model.
        layer: the layer's index.
        n_in, n_out: its width at both ends.
    """

    name: str
    layer: int
    module: nn.Module
    n_in: int
    n_out: int


def is_linear(module: nn.Module) -> bool:
    """True for linear maps of torch, for GPT-2's transposed ones and for quantised ones that stand for them."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def linear_maps(model: Any, targets: str) -> list[TargetMap]:
    """The linear maps of all layers: ``all``, those of the ``mlp``, or those of the ``attention``.

    Raises:
        ValueError: there are none of this kind.
    """
    path, layers = find_layers(model)
    found: list[TargetMap] = []
    for index, layer in enumerate(layers):
        for inside, module in _chosen(layer, targets):
            weight: Any = module.weight
            if type(module).__name__ == "Conv1D":
                n_in, n_out = weight.shape
            else:  # The weight of a 4-bit map is packed, its widths are not.
                n_in, n_out = module.in_features, module.out_features
            found.append(TargetMap(f"{path}.{index}.{inside}", index, module, int(n_in), int(n_out)))
    if not found:
        raise ValueError(
            f"this {model.config.model_type!r} model has no linear maps for targets={targets!r}; use targets all, mlp or "
            "attention, or a method without adapters (norms, full)"
        )
    return found


def _chosen(layer: nn.Module, targets: str) -> list[tuple[str, nn.Module]]:
    if targets == "all":
        return [(name, module) for name, module in layer.named_modules() if is_linear(module)]
    attention = sublayer(layer, "attn")
    if targets == "attention":
        place = attention
    else:
        place = sublayer(layer, "mlp")
        if place is None:  # The maps fc1 and fc2 belong to the layer itself.
            own = [(name, module) for name, module in layer.named_modules() if is_linear(module)]
            return [(name, module) for name, module in own if attention is None or not name.startswith(f"{attention[0]}.")]
    if place is None:
        return []
    return [(f"{place[0]}.{name}", module) for name, module in place[1].named_modules() if is_linear(module)]


def costs(maps: Sequence[TargetMap], n_layers: int) -> tuple[int, ...]:
    """Parameters that one rank costs in each layer: inputs and outputs of its maps."""
    return tuple(sum(one.n_in + one.n_out for one in maps if one.layer == layer) for layer in range(n_layers))


def final_norm(model: Any) -> nn.Module | None:
    """The norm behind the last layer; None in a family without one."""
    path, _ = find_layers(model)
    decoder = model.get_submodule(path.rpartition(".")[0]) if "." in path else model
    norms = [
        module for name, module in decoder.named_children() if ("norm" in type(module).__name__.lower()) and "emb" not in name
    ]
    return norms[-1] if norms else None


def is_tied(model: Any) -> bool:
    """True where the output head and the input embedding are one tensor."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and head.weight is embedding.weight
