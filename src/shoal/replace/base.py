"""What a replacement promises: a frozen description that builds a module for a span and says what it costs."""

from __future__ import annotations

from typing import ClassVar, Literal, Protocol

from torch import nn

from shoal.decoder import DecoderView
from shoal.plan import Size
from shoal.types import Span

ExportTier = Literal["stock", "heterogeneous", "bundled"]


class Replacement(Protocol):
    """Description of a module that runs in place of a span.

    Attributes:
        name: its entry in ``REPLACEMENTS``, and in a plan.
        export_tiers: ways it can be written, preferred first; ``stock`` is a plain checkpoint of the family.
    """

    name: ClassVar[str]
    export_tiers: ClassVar[tuple[ExportTier, ...]]

    def build(self, view: DecoderView, span: Span) -> nn.Module:
        """The untrained module, with parameters of its own, in the model's dtype and on its device.

        It is called ``module(h_BTD, *args, **kwargs)`` with the recorded arguments of layer ``args_from(span)`` and returns
        what the family's layers return. Building twice gives equal bits.
        """
        ...

    def args_from(self, span: Span) -> int:
        """The layer whose masks and rotary embeddings the module runs under."""
        ...

    def size(self, view: DecoderView, span: Span) -> Size:
        """Layers and parameters the module adds; a plan's budget is net of them."""
        ...
