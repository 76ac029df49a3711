"""What a family's layers are made of, read from their structure: norm, MLP, activation. A module's options default to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn

from shoal.edits.replace.modules import ACTIVATIONS
from shoal.engine.families import MLP_NAMES
from shoal.engine.view import DecoderView

# (gate, up, down), (gate and up fused, down), (up, down)
GATED = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
FUSED = (("gate_up_proj", "down_proj"),)
PLAIN = (
    ("up_proj", "down_proj"), ("fc1", "fc2"), ("c_fc", "c_proj"), ("dense_h_to_4h", "dense_4h_to_h"), ("fc_in", "fc_out"),
)  # fmt: skip
ACTIVATION_NAMES = ("act_fn", "act", "activation_fn", "gelu_impl", "activation")
# The norm the MLP reads, the surest name first; whether it does is found by running the layer (padded.py).
MLP_NORMS = (
    "pre_feedforward_layernorm", "ln_mlp", "ln_2", "norm_2", "final_layer_norm", "post_attention_layernorm",
    "input_layernorm", "ln_1",
)  # fmt: skip
EPS_NAMES = ("variance_epsilon", "eps", "epsilon")


@dataclass(frozen=True)
class MlpForm:
    """A layer's MLP: ``down(act(gate(x)) * up(x))`` where it is gated, else ``down(act(up(x)))``.

    Attributes:
        maps: paths inside the layer; gate, up, down, or fused gate and up, down, or up, down.
        activation: one of ``ACTIVATIONS``; None: another.
    """

    maps: tuple[str, ...]
    is_gated: bool
    width: int
    has_bias: bool
    activation: str | None


@dataclass(frozen=True)
class Forms:
    """What is common to all layers of a model.

    Attributes:
        norm, eps: kind of the norm in front of the MLP.
        mlp: None where layers differ or hold no plain MLP (experts).
        width, activation: for a module: those of the MLP, or of the config where there is no one MLP.
    """

    hidden_size: int
    norm: Literal["rms", "layer"]
    eps: float
    mlp: MlpForm | None
    width: int
    activation: str


def forms_of(view: DecoderView) -> Forms:
    """The forms of a view's layers; weights are not read."""
    layers = cast(nn.ModuleList, view.model.get_submodule(view.layers_path))
    found = {mlp_form(layer) for layer in layers}
    mlp = found.pop() if len(found) == 1 else None
    norm = mlp_norm(layers[len(layers) // 2])
    kind: Literal["rms", "layer"] = "layer" if norm is not None and "rms" not in type(norm[1]).__name__.lower() else "rms"
    eps = None if norm is None else norm_eps(norm[1])
    width = mlp.width if mlp is not None else getattr(view.config, "intermediate_size", None) or 4 * view.hidden_size
    activation = (mlp.activation if mlp is not None else None) or "silu"
    return Forms(view.hidden_size, kind, 1e-6 if eps is None else eps, mlp, width, activation)


def mlp_form(layer: nn.Module) -> MlpForm | None:
    """The MLP of one layer, or None."""
    name = next((name for name in MLP_NAMES if isinstance(getattr(layer, name, None), nn.Module)), None)
    place: Any = layer if name is None else getattr(layer, name)
    for is_gated, names in [(True, n) for n in GATED + FUSED] + [(False, n) for n in PLAIN]:
        maps = [getattr(place, one, None) for one in names]
        if not all(is_map(one) for one in maps):
            continue
        down = cast(nn.Linear, maps[-1])
        return MlpForm(
            maps=tuple(one if name is None else f"{name}.{one}" for one in names),
            is_gated=is_gated,
            width=down.weight.shape[0 if is_transposed(down) else 1],
            has_bias=down.bias is not None,
            activation=_activation(place),
        )
    return None


def mlp_norm(layer: nn.Module) -> tuple[str, nn.Module] | None:
    """Name and module of the norm that (by its name) stands in front of the MLP, or None."""
    for name in MLP_NORMS:
        norm = getattr(layer, name, None)
        if isinstance(norm, nn.Module) and getattr(norm, "weight", None) is not None:
            return name, norm
    return None


def norm_eps(norm: nn.Module) -> float | None:
    """The number a norm adds under its root; None where it has none by a known name."""
    return next((float(value) for name in EPS_NAMES if (value := getattr(norm, name, None)) is not None), None)


def is_map(module: Any) -> bool:
    """A linear map: a module whose weight has two dimensions."""
    weight = getattr(module, "weight", None)
    return isinstance(module, nn.Module) and isinstance(weight, torch.Tensor) and weight.ndim == 2


def is_transposed(module: nn.Module) -> bool:
    """GPT-2's maps have weights (inputs, outputs), all others (outputs, inputs)."""
    return type(module).__name__ == "Conv1D"


def _activation(place: Any) -> str | None:
    """The known activation that agrees with the MLP's own on a grid, to fp32 rounding."""
    act = next((value for name in ACTIVATION_NAMES if callable(value := getattr(place, name, None))), None)
    if act is None:
        return None
    grid = torch.linspace(-6, 6, 97)
    with torch.no_grad():
        ours = act(grid)
    return next((name for name, one in ACTIVATIONS.items() if torch.allclose(one(grid), ours, rtol=1e-5, atol=1e-6)), None)
