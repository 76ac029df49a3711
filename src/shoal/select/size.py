"""Parameter counts a budget rests on: all of them, tied ones once, and what leaves with each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from shoal.plan import Size
from shoal.types import Span, spans_of

if TYPE_CHECKING:
    from torch import nn

    from shoal.decoder import DecoderView


@dataclass(frozen=True)
class ModelSize:
    """Parameters of a model.

    Attributes:
        total: every parameter of every module, tied ones once.
        layers: per layer, the parameters that leave with it (those that nothing else uses).
    """

    total: int
    layers: tuple[int, ...]

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def before(self) -> Size:
        return Size(layers=self.n_layers, parameters=self.total)

    def after(self, removed: Sequence[int], put_back: PutBack) -> Size:
        """The size without ``removed`` layers, net of what is put back in place of each of their runs."""
        spans = put_back.replaced(removed)
        gone = {layer for span in spans for layer in span.layers} | set(removed)
        returned = sum(put_back.parameters(self, span) for span in spans)
        return Size(
            layers=self.n_layers - len(gone) + put_back.layers * len(spans),
            parameters=self.total - sum(self.layers[layer] for layer in gone) + returned,
        )


@dataclass(frozen=True)
class PutBack:
    """What a replacement costs: it counts as ``layers`` layers and has ``parameters(size, span)`` parameters.

    Attributes:
        name: of the replacement; ``none`` puts nothing back.
        inherits: it starts as a copy of the first layer of its span, so at step 0 it equals removing the rest of the span;
            otherwise it starts as zero and equals removing the whole span.
    """

    name: str
    layers: int
    inherits: bool
    parameters: Callable[[ModelSize, Span], int] = field(repr=False)  # a function's address would make no two runs print alike

    def replaced(self, removed: Iterable[int]) -> tuple[Span, ...]:
        """The spans a replacement takes over so that its step 0 lacks exactly the ``removed`` layers.

        Raises:
            ValueError: it inherits a layer, and layer 0 is among the removed ones.
        """
        runs = spans_of(removed) if self.layers else ()
        if not self.inherits:
            return runs
        if runs and runs[0].start == 0:
            raise ValueError(f"replacement {self.name!r} inherits the layer before the removed ones, so layer 0 has to stay")
        return tuple(Span(run.start - 1, run.stop) for run in runs)


PUT_BACK: dict[str, PutBack] = {
    "none": PutBack("none", 0, False, lambda size, span: 0),
    "layer": PutBack("layer", 1, True, lambda size, span: size.layers[span.start]),
}


def model_size(view: DecoderView) -> ModelSize:
    """The parameters of a view's model."""
    return size_of(view.model, view.layers_path)


def size_of(model: nn.Module, layers_path: str) -> ModelSize:
    """Count parameters, also on the ``meta`` device. One that a layer shares with anything else leaves with no single layer."""
    owners: dict[int, set[str]] = {}
    prefix = layers_path + "."
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = name.removeprefix(prefix).split(".")[0] if name.startswith(prefix) else "outside"
        owners.setdefault(id(parameter), set()).add(owner)
    own = [0] * len(cast("nn.ModuleList", model.get_submodule(layers_path)))
    for parameter in model.parameters():
        (owner, *others) = owners[id(parameter)]
        if not others and owner != "outside":
            own[int(owner)] += parameter.numel()
    return ModelSize(total=sum(p.numel() for p in model.parameters()), layers=tuple(own))
