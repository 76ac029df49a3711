"""The linear maps of a layer that write into the residual stream, and whether a refit of one means what it says.

A map can be refitted in closed form where the stream gets ``gain`` times what the map returns: true of pre-norm families, also
of those that scale the residual (granite); false where a norm stands between map and stream (gemma2, olmo2) and where a
sublayer does not end in one map (experts). No table of families: the layer runs with the map's output moved, and what arrives
decides.

Shapes: B samples, T positions, F inputs of the map, D hidden size, E = F + 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shoal.edits.replace.family_mlp import is_transposed
from shoal.engine.families import output_map
from shoal.engine.view import DecoderView, Reading, Tap
from shoal.fit.sites.site import (
    CannotRefit,
    MapKind,
    SiteForm,
    gain_into_stream,
    is_close,
    on_output,
    tolerance_of,
    zeroed_other,
)
from shoal.fit.solve import Solution, solve
from shoal.fit.sums import MapSums, no_sums


@dataclass(frozen=True)
class LinearMap:
    """The output map of a sublayer.

    Attributes:
        path: inside the layer. ``is_transposed``: its weight is (F, D), as in GPT-2, not (D, F).
        has_bias: the map has a bias that can be refitted too.
        gain: the stream gets this many times what the map returns.
    """

    layer: int
    kind: MapKind
    path: str
    n_inputs: int
    n_outputs: int
    has_bias: bool
    is_transposed: bool
    gain: float
    form: ClassVar[SiteForm] = "weight"

    @property
    def tap(self) -> Tap:
        return Tap("attn_map_in" if self.kind == "attn" else "mlp_map_in", self.layer)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names inside the layer."""
        return (f"{self.path}.weight", f"{self.path}.bias") if self.has_bias else (f"{self.path}.weight",)

    def inputs(self, seen_BTF: Tensor) -> Tensor:
        return seen_BTF

    def no_sums(self, device: torch.device) -> MapSums:
        return no_sums(self.n_inputs, self.n_outputs, device=device)

    def solve(self, folds: list[MapSums], *, ridge: float | None) -> Solution:
        return solve(folds, bias=self.has_bias, ridge=ridge)

    def changed(self, parameters: Mapping[str, Tensor], change_ED: Tensor) -> dict[str, Tensor]:
        step_ED = change_ED / self.gain
        steps = [step_ED[:-1] if self.is_transposed else step_ED[:-1].mT, step_ED[-1]]
        return {
            name: (parameters[name].double() + step.to(parameters[name].device)).to(parameters[name].dtype)
            # Without a bias the step of the bias, which is zero, has nowhere to go.
            for name, step in zip(self.parameters, steps, strict=False)
        }

    def scaled(self, parameters: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
        return {name: (parameters[name].double() * factor).to(parameters[name].dtype) for name in self.parameters}


@torch.no_grad()
def find_map(view: DecoderView, layer: int, kind: MapKind, *, reading: Reading, h_BTD: Tensor) -> LinearMap:
    """The output map of a sublayer, checked by running the layer on ``h_BTD``.

    Raises:
        CannotRefit: no single linear map, quantised weights, or a norm between map and stream.
    """
    where = f"layer {layer} of this {view.family} model"
    with view.residency.layer(layer) as module:
        path = output_map(module, kind)
        if path is None:
            raise CannotRefit(f"{where}: its {kind} sublayer does not end in one linear map")
        linear = module.get_submodule(path)
        weight_DF, bias_D = weight_and_bias(linear, where=f"{where}: {path!r}")
        seen: dict[str, Tensor] = {}

        def look(args: Any, output: Tensor) -> Tensor:
            seen["in"], seen["out"] = args[0], output
            return output

        # Falcon adds the output of one sublayer to that of the other in place, so the other one is silent here.
        with zeroed_other(module, kind), on_output(linear, look):
            view.run_layer(layer, h_BTD, reading)
        product = seen["in"].double() @ weight_DF.double().mT
        product = product if bias_D is None else product + bias_D.double()
        if not is_close(seen["out"].double(), product, tolerance_of(h_BTD)):
            raise CannotRefit(f"{where}: {path!r} ({type(linear).__name__}) is not a plain linear map of its stored weight")
        gain = gain_into_stream(view, layer, kind, linear, reading=reading, h_BTD=h_BTD)
        if gain is None:
            raise CannotRefit(f"{where}: what {path!r} returns is normed before it enters the stream")
    n_outputs, n_inputs = weight_DF.shape
    return LinearMap(layer, kind, path, n_inputs, n_outputs, bias_D is not None, is_transposed(linear), gain)


def weight_and_bias(linear: nn.Module, *, where: str) -> tuple[Tensor, Tensor | None]:
    """(D, F) weight and (D,) bias of a linear module.

    Raises:
        CannotRefit: its weight is quantised.
    """
    weight = linear.weight
    assert isinstance(weight, Tensor), "the search for output maps asks for a weight of two dimensions"
    if not weight.is_floating_point():
        raise CannotRefit(f"{where} is quantised")
    bias = getattr(linear, "bias", None)
    return (weight.mT if is_transposed(linear) else weight), bias if isinstance(bias, Tensor) else None
