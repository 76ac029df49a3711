"""The linear maps of a layer that write into the residual stream, and whether a refit of one means what it says.

A map can be refitted in closed form where the stream gets ``gain`` times what the map returns: true of pre-norm families, also
of those that scale the residual (granite); false where a norm stands between map and stream (gemma2, olmo2) and where a
sublayer does not end in one map (experts). No table of families: the layer runs with the map's output moved, and what arrives
decides.

Shapes: B samples, T positions, F inputs of the map, D hidden size, E = F + 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shoal.decoder import DecoderView, Reading, Tap
from shoal.decoder.families import contribution, output_map

MapKind = Literal["attn", "mlp"]

# Largest relative difference of what arrives from gain times what was sent: rounding of the stream, far below a norm's effect.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
LOW_PRECISION_TOLERANCE = 5e-2


class CannotRefit(ValueError):
    """A map has no exact refit; the message says why."""


@dataclass(frozen=True)
class LinearMap:
    """The output map of a sublayer.

    Attributes:
        path: inside the layer. ``is_transposed``: its weight is (F, D), as in GPT-2, not (D, F).
        has_bias: it has one that can be refitted too.
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

    @property
    def tap(self) -> Tap:
        return Tap("attn_map_in" if self.kind == "attn" else "mlp_map_in", self.layer)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names inside the layer."""
        return (f"{self.path}.weight", f"{self.path}.bias") if self.has_bias else (f"{self.path}.weight",)


def changed(place: LinearMap, parameters: Mapping[str, Tensor], change_ED: Tensor) -> dict[str, Tensor]:
    """New values, in the parameters' own dtype, of a map whose contribution to the stream changes by ``[h, 1] @ change_ED``."""
    step_ED = change_ED / place.gain
    steps = [step_ED[:-1] if place.is_transposed else step_ED[:-1].mT, step_ED[-1]]
    return {
        name: (parameters[name].double() + step.to(parameters[name].device)).to(parameters[name].dtype)
        for name, step in zip(place.parameters, steps, strict=False)  # without a bias its step, zero, has nowhere to go
    }


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
        place = module.get_submodule(path)
        weight = place.weight
        assert isinstance(weight, Tensor)  # families.output_map asks for two dimensions
        if not weight.is_floating_point():
            raise CannotRefit(f"{where}: {path!r} is quantised")
        bias = getattr(place, "bias", None)
        is_transposed = type(place).__name__ == "Conv1D"
        n_inputs, n_outputs = weight.shape if is_transposed else weight.shape[::-1]
        tolerance = TOLERANCE.get(h_BTD.dtype, LOW_PRECISION_TOLERANCE)
        seen: dict[str, Tensor] = {}

        def look(args: Any, output: Tensor) -> Tensor:
            seen["in"], seen["out"] = args[0], output
            return output

        def move(args: Any, output: Tensor) -> Tensor:
            seen["step"] = _step_like(output, scale=_rms(h_BTD))
            return output + seen["step"]

        with _zeroed_other(module, kind):
            with _on_output(place, look):
                still_BTD = view.run_layer(layer, h_BTD, reading).double()
            with _on_output(place, move):
                moved_BTD = view.run_layer(layer, h_BTD, reading).double()
        product = seen["in"].double() @ (weight.double() if is_transposed else weight.double().mT)
        product = product if bias is None else product + bias.double()
        if not _is_close(seen["out"].double(), product, tolerance):
            raise CannotRefit(f"{where}: {path!r} ({type(place).__name__}) is not a plain linear map of its stored weight")
        arrived, sent = (moved_BTD - still_BTD).flatten(), seen["step"].double().flatten()
        gain = float(arrived @ sent / (sent @ sent))
        if gain == 0 or not _is_close(arrived, gain * sent, tolerance):
            raise CannotRefit(f"{where}: what {path!r} returns is normed before it enters the stream")
    exact = round(gain, 2)  # families state gains such as 0.22; what is measured carries the rounding of the stream
    gain = exact if abs(gain - exact) <= tolerance * abs(gain) and exact else gain
    return LinearMap(layer, kind, path, int(n_inputs), int(n_outputs), bias is not None, is_transposed, gain)


def _step_like(output: Tensor, *, scale: float) -> Tensor:
    """A fixed random step whose length differs from token to token, so that no norm passes it on in proportion."""
    generator = torch.Generator().manual_seed(0)
    step = torch.randn(output.shape, generator=generator).to(output)
    lengths = torch.linspace(0.5, 2.0, output.shape[-2]).to(output)[:, None]
    return step * lengths * scale


def _is_close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool((found - expected).norm() <= tolerance * expected.norm())


def _rms(h_BTD: Tensor) -> float:
    """Of the median token: a sink would make the step so large that its rounding hides the rest."""
    return float(h_BTD.float().square().mean(-1).median().sqrt()) or 1.0


@contextmanager
def _zeroed_other(module: nn.Module, kind: MapKind) -> Iterator[None]:
    """The other sublayer gives nothing: it reads the stream, so it would answer the step."""
    path = contribution(module, "mlp" if kind == "attn" else "attn")
    if path is None:
        yield
        return

    def zero(args: Any, output: Any) -> Any:
        return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)

    with _on_output(module.get_submodule(path), zero):
        yield


@contextmanager
def _on_output(module: nn.Module, change: Callable[[Any, Any], Any]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _, args, output: change(args, output))
    try:
        yield
    finally:
        handle.remove()
