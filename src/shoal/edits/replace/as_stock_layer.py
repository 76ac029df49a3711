"""A module as a stock layer of its family: attention silenced by a zero output map, the MLP holding the module's own maps.

The checkpoint loads anywhere, and pays for it with the weights and the cache of an attention that adds nothing. Exact forms,
each for a width that fits:

* ``swiglu`` in a gated MLP of the same activation; ``ffn`` in a plain one.
* ``linear`` in a plain MLP: silu, gelu and relu are ``x s(x)`` with ``s(x) + s(-x) = 1``, so ``act(x) - act(-x) = x``, at two
  hidden units per rank; in a gated one with biases: the gate's weight is 0, its bias c with ``act(c)`` known.

Whether a family's layer means that is found by running it on random states (norms after the MLP, scaled residuals, norms
inside the MLP): no table of families. A constant factor on the way to the stream is divided out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from shoal.edits.replace.family_mlp import MlpForm, is_transposed, mlp_form, mlp_norm, norm_eps
from shoal.edits.replace.modules import ACTIVATIONS, Ffn, Linear, Norm, StreamModule, Swiglu
from shoal.engine.families import output_map
from shoal.engine.view import DecoderView
from shoal.words.types import Batch

# Of what a random module adds, relative to its largest entry: rounding of the stream. A wrong form is off by its whole size.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
SUM_IS_INPUT = ("silu", "gelu", "gelu_tanh", "relu")  # These activations have act(x) - act(-x) = x.
OPEN_GATE = 2.0  # Any bias will do where the activation is far from 0.


class NotStock(ValueError):
    """No stock layer of the family computes this module; the message says why."""


def why_not_stock(view: DecoderView, module: StreamModule) -> str:
    """Why no stock layer of the model can hold a module of these options, or an empty text when every one can."""
    layers = cast(nn.ModuleList, view.model.get_submodule(view.layers_path))
    if len({mlp_form(layer) for layer in layers}) != 1:
        return "its layers do not all have the same kind of MLP"
    try:
        stock_values(view, len(layers) // 2, module)
    except NotStock as reason:
        return str(reason)
    return ""


@torch.no_grad()
def stock_values(view: DecoderView, index: int, module: StreamModule) -> dict[str, Tensor]:
    """Values, by name inside the layer, with which layer ``index`` computes the module; in the layer's own dtypes.

    Raises:
        NotStock: there are none, by structure or because the layer, run on random states, does something else.
    """
    gain = _gain(view, index, module)
    with view.residency.layer(index) as layer:
        return _values(layer, module, gain=gain)


def _gain(view: DecoderView, index: int, module: StreamModule) -> float:
    """What the stream gets per unit of the MLP's output, checked on a module with random values."""
    generator = torch.Generator().manual_seed(1)
    probe = copy.deepcopy(module).to("cpu", torch.float32)
    for parameter in probe.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.5 if parameter.ndim == 1 else 0.2))
        if parameter.ndim == 2:  # Few units own the output, so its length differs from token to token and a norm on it shows.
            parameter.mul_((1.5 * torch.randn(len(parameter), 1, generator=generator)).exp())
    probe = probe.to(view.device, view.dtype)
    h_BTD = torch.randn(1, 16, view.hidden_size, generator=generator).to(view.device, view.dtype)
    reading = view.read(Batch(torch.zeros(1, 16, dtype=torch.long)))

    def change(values: dict[str, Tensor]) -> Tensor:
        with view.residency.layer(index) as layer:
            returned = reading.calls[index](lambda *a, **k: torch.func.functional_call(layer, values, a, k), h_BTD)
        return ((returned[0] if isinstance(returned, tuple) else returned) - h_BTD).double()

    with view.residency.layer(index) as layer:
        plain = _values(layer, probe, gain=1.0)
    wanted, found = probe.change(h_BTD).double(), change(plain)
    gain = float((found * wanted).sum() / wanted.square().sum())
    if not abs(gain) > 1e-3:
        raise NotStock("its layers do not pass the MLP's output on to the stream")
    with view.residency.layer(index) as layer:
        scaled = plain if abs(gain - 1) < 1e-3 else _values(layer, probe, gain=gain)
    limit = TOLERANCE.get(view.dtype, 3e-2) * float(wanted.abs().max())
    if not float((change(scaled) - wanted).abs().max()) <= limit:
        raise NotStock("its layers do more to the MLP's input or output than the module does (a norm after it, or inside)")
    return 1.0 if abs(gain - 1) < 1e-3 else gain


def _values(layer: nn.Module, module: StreamModule, *, gain: float) -> dict[str, Tensor]:
    attention, form, norm = output_map(layer, "attn"), mlp_form(layer), mlp_norm(layer)
    if attention is None:
        raise NotStock("its attention does not end in one linear map that could be silenced")
    if form is None or norm is None:
        raise NotStock("its layers hold no plain MLP behind a norm")
    own_norm = getattr(module, "norm", None)
    if own_norm is None:
        raise NotStock("the replacement reads the stream without a norm")
    values = {f"{attention}.{name}": torch.zeros_like(p) for name, p in layer.get_submodule(attention).named_parameters()}
    values.update(_norm_values(norm, own_norm))
    maps = _Maps(layer, form)
    if isinstance(module, Swiglu) and form.is_gated:
        _same_activation(form, module.activation)
        maps.gated(module.gate.weight, module.up.weight, module.down.weight / gain)
    elif isinstance(module, Ffn) and not form.is_gated:
        _same_activation(form, module.activation)
        maps.plain(module.up.weight, module.up.bias, module.down.weight / gain, _divided(module.down.bias, gain))
    elif isinstance(module, Linear):
        _linear(maps, form, module, gain=gain)
    else:
        raise NotStock(f"its MLP is {'gated' if form.is_gated else 'not gated'}, which is not the form of {module.kind!r}")
    values.update(maps.values)
    parameters = dict(layer.named_parameters())
    return {path: value.to(parameters[path].dtype) for path, value in values.items()}


class _Maps:
    """Values of a layer's MLP maps, padded with zeros to their width."""

    def __init__(self, layer: nn.Module, form: MlpForm) -> None:
        self.layer, self.form = layer, form
        self.values: dict[str, Tensor] = {}

    def gated(
        self, gate_WD: Tensor, up_WD: Tensor, down_DW: Tensor, *, gate_bias: Tensor | None = None, bias_D: Tensor | None = None
    ) -> None:
        width, (*inputs, down) = self.form.width, self.form.maps
        gate_WD, up_WD, down_DW = self._padded(gate_WD), self._padded(up_WD), self._padded(down_DW.mT).mT
        if len(inputs) == 1:
            both = None if gate_bias is None else torch.cat((_lengthened(gate_bias, width), gate_bias.new_zeros(width)))
            self._put(inputs[0], torch.cat((gate_WD, up_WD)), both)
        else:
            self._put(inputs[0], gate_WD, None if gate_bias is None else _lengthened(gate_bias, width))
            self._put(inputs[1], up_WD, None)
        self._put(down, down_DW, bias_D)

    def plain(self, up_WD: Tensor, up_bias: Tensor | None, down_DW: Tensor, bias_D: Tensor | None) -> None:
        up, down = self.form.maps
        self._put(up, self._padded(up_WD), None if up_bias is None else _lengthened(up_bias, self.form.width))
        self._put(down, self._padded(down_DW.mT).mT, bias_D)

    def _padded(self, rows_WD: Tensor) -> Tensor:
        if len(rows_WD) > self.form.width:
            raise NotStock(f"its MLP has {self.form.width} hidden units, {len(rows_WD)} are needed")
        return torch.cat((rows_WD, rows_WD.new_zeros(self.form.width - len(rows_WD), rows_WD.shape[1])))

    def _put(self, path: str, weight: Tensor, bias: Tensor | None) -> None:
        place = self.layer.get_submodule(path)
        self.values[f"{path}.weight"] = weight.mT.contiguous() if is_transposed(place) else weight.contiguous()
        if getattr(place, "bias", None) is not None:
            self.values[f"{path}.bias"] = weight.new_zeros(len(weight)) if bias is None else bias
        elif bias is not None:
            raise NotStock(f"{path!r} has no bias")


def _linear(maps: _Maps, form: MlpForm, module: Linear, *, gain: float) -> None:
    up_WD: Tensor = module.map.weight if module.rank is None else module.down.weight  # W = I W without a rank
    down_DW = (torch.eye(len(up_WD)).to(up_WD) if module.rank is None else module.up.weight) / gain
    bias_D = (module.map.bias if module.rank is None else module.up.bias) / gain
    if form.activation not in SUM_IS_INPUT:
        raise NotStock("its activation is not one that a linear map can be made of")
    if not form.is_gated:
        maps.plain(torch.cat((up_WD, -up_WD)), None, torch.cat((down_DW, -down_DW), dim=1), bias_D)
        return
    if not form.has_bias:
        raise NotStock("its gated MLP has no biases")
    act: Callable[[Tensor], Tensor] = ACTIVATIONS[form.activation]
    gate_bias = up_WD.new_full((len(up_WD),), OPEN_GATE)
    down_DW = (down_DW.double() / act(gate_bias.double())).to(down_DW.dtype)
    maps.gated(torch.zeros_like(up_WD), up_WD, down_DW, gate_bias=gate_bias, bias_D=bias_D)


def _norm_values(place: tuple[str, nn.Module], own: Norm) -> dict[str, Tensor]:
    name, norm = place
    weight = cast(Tensor, norm.weight)
    if (eps := norm_eps(norm)) is not None and eps != own.eps:
        raise NotStock(f"its norm has eps {eps:g}, the replacement's {own.eps:g}")
    silent = torch.func.functional_call(norm, {"weight": torch.zeros_like(weight)}, (torch.arange(weight.numel()).to(weight),))
    bias = getattr(norm, "bias", None)
    offset = 1.0 if torch.count_nonzero(silent if bias is None else silent - bias) else 0.0  # Gemma's gain is 1 + weight
    values = {f"{name}.weight": own.weight - offset}
    if own.bias is not None:
        if bias is None:
            raise NotStock("its norm has no bias")
        values[f"{name}.bias"] = own.bias
    return values


def _same_activation(form: MlpForm, activation: str) -> None:
    if form.activation != activation:
        raise NotStock(f"its activation is {form.activation or 'another'}, the replacement's {activation}")


def _lengthened(bias: Tensor, width: int) -> Tensor:
    return torch.cat((bias, bias.new_zeros(width - len(bias))))


def _divided(bias: Tensor | None, gain: float) -> Tensor | None:
    return None if bias is None else bias / gain
