"""A site of a layer that a closed form can set: what it reads, what its change does to the stream, its new values.

Shapes: B samples, T positions, F inputs of the site, D hidden size, E = F + 1.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from shoal.engine.families import contribution
from shoal.engine.view import DecoderView, Reading, Tap
from shoal.fit.fit_result import CannotRefit as CannotRefit
from shoal.fit.solve import Solution
from shoal.fit.sums import Sums

MapKind = Literal["attn", "mlp"]

SiteForm = Literal["weight", "output", "bias", "gain", "neurons"]
"""``weight``: a linear map as a whole. ``output``: a linear map behind a sublayer. ``bias``; ``gain``: of a norm behind it.
``neurons``: all of an MLP, filled with the best of several layers."""

# Largest relative difference between what arrives and gain times what was sent. It is the rounding of the stream, far below
# the effect of a norm.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
LOW_PRECISION_TOLERANCE = 5e-2

STATED = 2e-3
"""Largest relative difference, in low precision, between a measured gain and the one of two decimals that it is taken for. A
gain is a mean, so it carries far less rounding than a single token; with the tolerance of tokens 0.125 would be 0.13."""

SomeSums = TypeVar("SomeSums", bound=Sums)


class Site(Protocol[SomeSums]):
    """What a closed form sets.

    Attributes:
        tap: what it reads; ``parameters``: names inside the layer.
    """

    form: ClassVar[SiteForm]

    @property
    def layer(self) -> int: ...
    @property
    def kind(self) -> MapKind: ...
    @property
    def tap(self) -> Tap: ...
    @property
    def parameters(self) -> tuple[str, ...]: ...

    def inputs(self, seen_BTF: Tensor) -> Tensor:
        """What the sums take, from what the tap gives."""
        ...

    def no_sums(self, device: torch.device) -> SomeSums:
        """Sums over no token."""
        ...

    def solve(self, folds: list[SomeSums], *, ridge: float | None) -> Solution:
        """The best change from the sums of the folds."""
        ...

    def changed(self, parameters: Mapping[str, Tensor], change: Tensor) -> dict[str, Tensor]:
        """New values, in the parameters' own dtype, after a change that :meth:`solve` found."""
        ...

    def scaled(self, parameters: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
        """New values with which the sublayer contributes ``factor`` times as much to the stream."""
        ...


def gain_into_stream(
    view: DecoderView, layer: int, kind: MapKind, writer: nn.Module, *, reading: Reading, h_BTD: Tensor
) -> float | None:
    """How many times what the module ``writer`` returns arrives in the stream; None: not in proportion.

    Found by running the layer with the module's output moved by a random step.
    """
    sent: list[Tensor] = []

    def move(args: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        # The step has the size of the stream: in bf16 a smaller one would be lost when it is added.
        sent.append(_step_like(first, scale=_rms(still_BTD)))
        return (first + sent[-1], *output[1:]) if isinstance(output, tuple) else first + sent[-1]

    with view.residency.layer(layer) as module, zeroed_other(module, kind):
        still_BTD = view.run_layer(layer, h_BTD, reading).double()
        with on_output(writer, move):
            moved_BTD = view.run_layer(layer, h_BTD, reading).double()
    tolerance = tolerance_of(h_BTD)
    arrived, step = (moved_BTD - still_BTD).flatten(), sent[-1].double().flatten()
    gain = float(arrived @ step / (step @ step))
    if gain == 0 or not is_close(arrived, gain * step, tolerance):
        return None
    # Families state gains such as 0.22, while the measured gain carries the rounding of the stream.
    exact = round(gain, 2)
    return exact if abs(gain - exact) <= min(tolerance, STATED) * abs(gain) else gain


def tolerance_of(h_BTD: Tensor) -> float:
    return TOLERANCE.get(h_BTD.dtype, LOW_PRECISION_TOLERANCE)


def is_close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool((found - expected).norm() <= tolerance * expected.norm())


def _step_like(output: Tensor, *, scale: float) -> Tensor:
    """A fixed random step whose length differs from token to token, so that no norm passes it on in proportion."""
    generator = torch.Generator().manual_seed(0)
    step = torch.randn(output.shape, generator=generator).to(output)
    lengths = torch.linspace(0.5, 2.0, output.shape[-2]).to(output)[:, None]
    return step * lengths * scale


def _rms(h_BTD: Tensor) -> float:
    """Root mean square of the median token. A sink would make the step so large that its rounding hides the rest."""
    return float(h_BTD.float().square().mean(-1).median().sqrt()) or 1.0


@contextmanager
def zeroed_other(module: nn.Module, kind: MapKind) -> Iterator[None]:
    """A layer whose other sublayer gives nothing. It reads the stream, so it would answer the step."""
    path = contribution(module, "mlp" if kind == "attn" else "attn")
    if path is None:
        yield
        return

    def zero(args: Any, output: Any) -> Any:
        return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)

    with on_output(module.get_submodule(path), zero):
        yield


@contextmanager
def on_output(module: nn.Module, change: Callable[[Any, Any], Any]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _, args, output: change(args, output))
    try:
        yield
    finally:
        handle.remove()
