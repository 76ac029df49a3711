"""One decoder layer in place of a span, inherited from the span's first layer. LLM-Streamline (arXiv 2403.19135).

Its start equals removing the rest of the span: the copied layer does what the original did and the others are gone. The
result is a stock checkpoint with one layer in place of n.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from torch import nn

from shoal.decoder import DecoderView
from shoal.plan import Size
from shoal.replace.base import ExportTier
from shoal.types import Record, Span


class InheritedLayer(nn.Module):
    """A stock layer of the family, called as the family calls it; surgery puts ``layer`` into a checkpoint."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer(*args, **kwargs)


class LayerReplacement(Record):
    """One layer of the family, a copy of the span's first."""

    name: ClassVar[str] = "layer"
    export_tiers: ClassVar[tuple[ExportTier, ...]] = ("stock",)

    def build(self, view: DecoderView, span: Span) -> InheritedLayer:
        """A copy of layer ``span.start`` with parameters of its own.

        Raises:
            ValueError: its weights are quantised (packed integers), so they cannot be trained.
        """
        with view.residency.layer(span.start) as layer:
            packed = [name for name, parameter in layer.named_parameters() if not parameter.is_floating_point()]
            if packed:
                raise ValueError(
                    f"layer {span.start} of this {view.family} model is quantised ({packed[0]!r} holds integers) and cannot be "
                    "trained; use --replace none, or start from the unquantised model"
                )
            return InheritedLayer(copy.deepcopy(layer).eval())

    def args_from(self, span: Span) -> int:
        return span.start

    def size(self, view: DecoderView, span: Span) -> Size:
        with view.residency.layer(span.start) as layer:
            return Size(layers=1, parameters=sum(parameter.numel() for parameter in layer.parameters()))
