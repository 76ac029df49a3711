"""What the descriptions of all modules share: options resolved by the family, a seeded start, size and layout."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

from shoal.edits.replace.contract import Layout, StartsAs
from shoal.words.records import Record
from shoal.words.structure import Size
from shoal.words.types import Span

if TYPE_CHECKING:
    from torch import nn

    from shoal.edits.replace.closed_form import ClosedForm
    from shoal.edits.replace.family_mlp import Forms
    from shoal.edits.replace.modules import StreamModule
    from shoal.engine.view import DecoderView
    from shoal.words.model_shape import ModelShape


class StreamReplacement(Record):
    """A module of the residual stream. Subclasses add fields, which are the options, and say how the family resolves them."""

    name: ClassVar[str]
    about: ClassVar[str]
    layouts: ClassVar[tuple[Layout, ...]]
    has_closed_form: ClassVar[bool] = False

    layout: Layout | None = None

    @property
    def starts_as(self) -> StartsAs:
        return "zero"

    @property
    @final
    def n_inherited(self) -> int:
        return 0

    @property
    @final
    def n_layers(self) -> int:
        return 1 if self.layout == "stock" else 0

    @classmethod
    def closed_form(cls, module: nn.Module) -> ClosedForm | None:
        return None

    @abstractmethod
    def with_forms(self, forms: Forms) -> Self:
        """Options that are None, but for the layout, as the family has them."""

    @abstractmethod
    def most_parameters(self, shape: ModelShape) -> int:
        """As in :class:`~shoal.edits.replace.contract.Replacement`."""

    @abstractmethod
    def module_options(self) -> dict[str, Any]:
        """Arguments of the module's class besides the hidden size; of a description with nothing left open."""

    @final
    def options(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True)

    @final
    def resolved(self, view: DecoderView) -> Self:
        from shoal.edits.replace.as_stock_layer import why_not_stock
        from shoal.edits.replace.family_mlp import forms_of

        settled = self.with_forms(forms_of(view))
        reason = why_not_stock(view, settled.module(view.hidden_size)) if settled.layout != "code" else ""
        if settled.layout == "stock" and reason:
            raise ValueError(
                f"replacement {self.name!r} cannot be written as a stock layer of this {view.family} model: {reason}; "
                "use layout=code, or another replacement"
            )
        return settled.model_copy(update={"layout": settled.layout or ("code" if reason else "stock")})

    @final
    def n_own_parameters(self, hidden_size: int) -> int:
        import torch

        if self.layout == "stock":
            return 0
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in self._empty(hidden_size).parameters())

    @final
    def module(self, hidden_size: int) -> StreamModule:
        """The module at its start, fp32, in memory; of a description whose options are resolved, but perhaps for the layout."""
        import torch

        with torch.device("meta"):  # The random start of torch would move the global generator.
            module = self._empty(hidden_size)
        module = module.to_empty(device="cpu")
        module.start(torch.Generator().manual_seed(0))
        return module.eval()

    @final
    def build(self, view: DecoderView, span: Span) -> StreamModule:
        from shoal.edits.replace.family_mlp import forms_of

        module = self.with_forms(forms_of(view)).module(view.hidden_size).to(device=view.device, dtype=view.dtype)
        module.layout = self.layout
        return module

    @final
    def args_from(self, span: Span) -> int:
        return span.start

    @final
    def size(self, view: DecoderView, span: Span) -> Size:
        settled = self.resolved(view)
        if settled.layout == "code":
            return Size(layers=0, parameters=settled.n_own_parameters(view.hidden_size))
        with view.residency.layer(span.start) as layer:
            return Size(layers=1, parameters=sum(parameter.numel() for parameter in layer.parameters()))

    def _empty(self, hidden_size: int) -> StreamModule:
        from shoal.edits.replace.modules import new_module

        return new_module(self.name, hidden_size, self.module_options())
