"""A linear map behind a sublayer, folded into the maps that end it: ReplaceMe's T (arXiv 2505.02819, its least squares).

The sublayer returns m and the stream gets gain * (m + m M + b). Folding multiplies every map that ends it by I + M: the output
map, or with experts the down map of each and of the shared one. Which axis of a fused weight is the output is not read off
names: a fold is accepted only if the sublayer run with it returns what the unfolded map makes of its output.

Shapes: B samples, T positions, D hidden size, E = D + 1, X experts, F inputs of a map.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shoal.engine.families import MLP_MAPS, contribution, output_map, sublayer
from shoal.engine.view import DecoderView, Reading, Tap
from shoal.fit.sites.linear_map import find_map
from shoal.fit.sites.site import CannotRefit, MapKind, SiteForm, gain_into_stream, is_close, on_output, tolerance_of
from shoal.fit.solve import Solution, solve
from shoal.fit.sums import MapSums, no_sums


@dataclass(frozen=True)
class FoldedMapSite:
    """What a sublayer returns, with a linear map behind it.

    Attributes:
        path: path of the module whose output the tap reads: the output map, or the sublayer where that ends in several maps.
        folds: parameters that take the map, each with the axis that is its output.
        bias: the parameter that can take a constant; None: there is none, or experts share the output in unknown parts.
        gain: the stream gets this many times what the sublayer returns.
    """

    layer: int
    kind: MapKind
    path: str
    n_outputs: int
    folds: tuple[tuple[str, int], ...]
    bias: str | None
    gain: float
    form: ClassVar[SiteForm] = "output"

    @property
    def tap(self) -> Tap:
        return Tap("attn_out" if self.kind == "attn" else "mlp_out", self.layer)

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.folds)

    def inputs(self, seen_BTD: Tensor) -> Tensor:
        return seen_BTD

    def no_sums(self, device: torch.device) -> MapSums:
        return no_sums(self.n_outputs, self.n_outputs, device=device)

    def solve(self, folds: list[MapSums], *, ridge: float | None) -> Solution:
        return solve(folds, bias=self.bias is not None, ridge=ridge)

    def changed(self, parameters: Mapping[str, Tensor], change_ED: Tensor) -> dict[str, Tensor]:
        step_ED = change_ED / self.gain
        values = {}
        for name, axis in self.folds:
            before = parameters[name]
            after = before.double() + _along(before.double(), axis, step_ED[:-1].to(before.device))
            if name == self.bias:
                after = after + step_ED[-1].to(before.device)
            values[name] = after.to(before.dtype)
        return values

    def scaled(self, parameters: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
        return {name: (parameters[name].double() * factor).to(parameters[name].dtype) for name in self.parameters}


def _along(value: Tensor, axis: int, step_DD: Tensor) -> Tensor:
    """``value`` with its output axis multiplied by ``step_DD`` (rows in, columns out)."""
    return (value.movedim(axis, -1) @ step_DD).movedim(-1, axis)


@torch.no_grad()
def find_output(view: DecoderView, layer: int, kind: MapKind, *, reading: Reading, h_BTD: Tensor) -> FoldedMapSite:
    """The output of a sublayer, with the parameters a linear map behind it folds into.

    Raises:
        CannotRefit: quantised weights, a norm between sublayer and stream, or no set of parameters that takes the fold.
    """
    with view.residency.layer(layer) as module:
        if output_map(module, kind) is not None:
            found = find_map(view, layer, kind, reading=reading, h_BTD=h_BTD)
            weight, *bias = found.parameters
            folds = ((weight, 1 if found.is_transposed else 0), *((name, 0) for name in bias))
            return FoldedMapSite(layer, kind, found.path, found.n_outputs, folds, bias[0] if bias else None, found.gain)
        where = f"layer {layer} of this {view.family} model"
        path = contribution(module, kind)
        if path is None:
            raise CannotRefit(f"{where}: it has no {kind} sublayer of its own")
        gain = gain_into_stream(view, layer, kind, module.get_submodule(path), reading=reading, h_BTD=h_BTD)
        if gain is None:
            raise CannotRefit(f"{where}: what its {kind} sublayer returns is normed before it enters the stream")
        for folds in _candidates(module, kind, h_BTD.shape[-1]):
            if _folds_exactly(view, layer, path, folds, reading=reading, h_BTD=h_BTD):
                return FoldedMapSite(layer, kind, path, h_BTD.shape[-1], folds, None, gain)
        raise CannotRefit(f"{where}: no map behind its {kind} sublayer folds into the weights that end it")


def _candidates(module: nn.Module, kind: MapKind, width: int) -> list[tuple[tuple[str, int], ...]]:
    """Ways to read the last weights of experts: by the names of last maps, per fused weight either of its two axes."""
    inside = sublayer(module, kind)
    if inside is None:
        return []
    last = [
        (f"{inside[0]}.{name}", value)
        for name, value in inside[1].named_parameters()
        if any(part.removesuffix("_bias") in MLP_MAPS for part in name.split(".")) and value.is_floating_point()
    ]
    ways: list[tuple[tuple[str, int], ...]] = []
    for fused_axis in (-2, -1):
        folds = []
        for name, value in last:
            is_bias = name.endswith("bias")
            axis = -1 if is_bias else fused_axis if value.ndim == 3 else -2
            if value.shape[axis] != width:
                break
            folds.append((name, axis))
        else:
            ways.append(tuple(folds))
    return [way for way in dict.fromkeys(ways) if way]


def _folds_exactly(
    view: DecoderView, layer: int, path: str, folds: tuple[tuple[str, int], ...], *, reading: Reading, h_BTD: Tensor
) -> bool:
    draw = torch.Generator().manual_seed(0)
    width = h_BTD.shape[-1]
    turn_DD = torch.randn(width, width, generator=draw, dtype=torch.float64).to(h_BTD.device) / width**0.5
    with view.residency.layer(layer) as module:
        parameters = dict(module.named_parameters())
        folded = {name: _along(parameters[name].double(), axis, turn_DD).to(parameters[name].dtype) for name, axis in folds}
        returned: list[Tensor] = []

        def look(args: Any, output: Any) -> Any:
            returned.append((output[0] if isinstance(output, tuple) else output).clone())
            return output

        with on_output(module.get_submodule(path), look):
            view.run_layer(layer, h_BTD, reading)
            call = reading.calls[layer]
            call(lambda *args, **kwargs: torch.func.functional_call(module, folded, args, kwargs), h_BTD)
    before, after = returned
    return is_close(after.double(), before.double() @ turn_DD, tolerance_of(h_BTD))
