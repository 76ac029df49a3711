"""The bias of an output map in closed form: the mean of what the stream misses.

A constant cannot be met by the sinks and by all others at once, so sinks stay out and no constraint binds them.
Shapes: B samples, T positions, D hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from shoal.engine.view import DecoderView, Reading, Tap
from shoal.fit.sites.linear_map import LinearMap, find_map
from shoal.fit.sites.site import CannotRefit, MapKind, SiteForm
from shoal.fit.solve import Solution, solve
from shoal.fit.sums import MapSums, no_sums


@dataclass(frozen=True)
class BiasSite:
    """The bias of an output map. Nothing is read but the constant 1."""

    map: LinearMap
    form: ClassVar[SiteForm] = "bias"

    @property
    def layer(self) -> int:
        return self.map.layer

    @property
    def kind(self) -> MapKind:
        return self.map.kind

    @property
    def tap(self) -> Tap:
        return self.map.tap

    @property
    def parameters(self) -> tuple[str, ...]:
        return self.map.parameters[1:]

    def inputs(self, seen_BTF: Tensor) -> Tensor:
        return seen_BTF[..., :0]

    def no_sums(self, device: torch.device) -> MapSums:
        return no_sums(0, self.map.n_outputs, device=device)

    def solve(self, folds: list[MapSums], *, ridge: float | None) -> Solution:
        return solve(folds, bias=True, ridge=ridge)

    def changed(self, parameters: Mapping[str, Tensor], change_1D: Tensor) -> dict[str, Tensor]:
        (name,) = self.parameters
        before = parameters[name]
        return {name: (before.double() + change_1D[0].to(before.device) / self.map.gain).to(before.dtype)}

    def scaled(self, parameters: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
        return self.map.scaled(parameters, factor)


def find_bias(view: DecoderView, layer: int, kind: MapKind, *, reading: Reading, h_BTD: Tensor) -> BiasSite:
    """The bias of a sublayer's output map.

    Raises:
        CannotRefit: it has none, or its map cannot be refitted.
    """
    found = find_map(view, layer, kind, reading=reading, h_BTD=h_BTD)
    if not found.has_bias:
        raise CannotRefit(f"layer {layer} of this {view.family} model: {found.path!r} has no bias")
    return BiasSite(found)
