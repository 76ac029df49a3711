"""Layers of the family in place of a span, inherited from its first ones. LLM-Streamline (arXiv 2403.19135) has one.

Its start equals removing the rest of the span: the copied layers do what the originals did and the others are gone. The
result is a stock checkpoint with k layers in place of n.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field

from shoal.edits.replace.contract import Layout, StartsAs
from shoal.words.records import Record
from shoal.words.structure import Size
from shoal.words.types import Span

if TYPE_CHECKING:
    from torch import nn

    from shoal.edits.replace.closed_form import ClosedForm
    from shoal.engine.view import DecoderView
    from shoal.words.model_shape import ModelShape


class LayerReplacement(Record):
    """Layers of the family, copies of the span's first ones.

    Attributes:
        layers: how many; more for a longer span.
    """

    name: ClassVar[str] = "layer"
    about: ClassVar[str] = "layers of the family, copies of the span's first ones"
    layouts: ClassVar[tuple[Layout, ...]] = ("stock",)
    has_closed_form: ClassVar[bool] = False

    layers: int = Field(default=1, ge=1, le=1000)

    @property
    def starts_as(self) -> StartsAs:
        return "inherits"

    @property
    def n_inherited(self) -> int:
        return self.layers

    @property
    def n_layers(self) -> int:
        return self.layers

    @classmethod
    def closed_form(cls, module: nn.Module) -> ClosedForm | None:
        return None

    def options(self) -> dict[str, Any]:
        return {} if self.layers == 1 else {"layers": self.layers}

    def resolved(self, view: DecoderView) -> Self:
        return self

    def n_own_parameters(self, hidden_size: int) -> int:
        return 0

    def most_parameters(self, shape: ModelShape) -> int:
        return self.layers * shape.layer_parameters

    def build(self, view: DecoderView, span: Span) -> nn.Module:
        """Copies of the span's first layers with parameters of their own: an ``InheritedLayer``, or a list of them.

        Raises:
            ValueError: the span is no longer than what it inherits, or the weights are quantised (packed integers).
        """
        from torch.nn import ModuleList

        from shoal.edits.replace.inherited_layer import inherited_layer

        self._refuse_short(span)
        copies = [inherited_layer(view, span.start + i) for i in range(self.layers)]
        return copies[0] if self.layers == 1 else ModuleList(copies).eval()

    def args_from(self, span: Span) -> int:
        return span.start

    def size(self, view: DecoderView, span: Span) -> Size:
        self._refuse_short(span)
        n_parameters = 0
        for i in range(self.layers):
            with view.residency.layer(span.start + i) as layer:
                n_parameters += sum(parameter.numel() for parameter in layer.parameters())
        return Size(layers=self.layers, parameters=n_parameters)

    def _refuse_short(self, span: Span) -> None:
        if span.n < self.layers:
            raise ValueError(f"{self.layers} inherited layers do not fit in {span}; use fewer, or a longer span")
