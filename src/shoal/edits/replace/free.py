"""A linear map of the raw stream, ``x + M x``: the best a linear module can do. Ghosted Layers (arXiv 2605.15491).

Its values have a closed form, one least-squares problem. No norm stands before it, so no stock layer can hold it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from shoal.edits.replace.contract import Layout
from shoal.edits.replace.described import StreamReplacement

if TYPE_CHECKING:
    from torch import Tensor, nn

    from shoal.edits.replace.closed_form import ClosedForm
    from shoal.edits.replace.family_mlp import Forms
    from shoal.words.model_shape import ModelShape


class FreeReplacement(StreamReplacement):
    """``x + M x``; ``bias``: ``+ b`` as well, which the paper has not."""

    name: ClassVar[str] = "free"
    about: ClassVar[str] = "a linear map of the raw stream"
    layouts: ClassVar[tuple[Layout, ...]] = ("code",)
    has_closed_form: ClassVar[bool] = True

    bias: bool = False

    @classmethod
    def closed_form(cls, module: nn.Module) -> ClosedForm:
        from shoal.edits.replace.closed_form import ClosedForm
        from shoal.edits.replace.modules import Free

        assert isinstance(module, Free)
        has_bias = module.map.bias is not None

        def values(change_ED: Tensor) -> dict[str, Tensor]:
            return {"map.weight": change_ED[:-1].mT, **({"map.bias": change_ED[-1]} if has_bias else {})}

        return ClosedForm(lambda h_BTD: h_BTD, values, bias=has_bias)

    def with_forms(self, forms: Forms) -> Self:
        return self

    def most_parameters(self, shape: ModelShape) -> int:
        return shape.hidden**2 + shape.hidden

    def module_options(self) -> dict[str, Any]:
        return {"bias": self.bias}
