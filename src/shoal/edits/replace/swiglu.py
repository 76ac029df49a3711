"""A gated MLP, residual and pre-normed: the family's own kind of feed-forward network in place of whole layers.

LLM-Streamline (arXiv 2403.19135) names it as an alternative to its FFN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from shoal.edits.replace.contract import MOST_WIDTH, Layout
from shoal.edits.replace.described import StreamReplacement

if TYPE_CHECKING:
    from shoal.edits.replace.family_mlp import Forms
    from shoal.words.model_shape import ModelShape


class SwigluReplacement(StreamReplacement):
    """``x + down(act(gate(norm(x))) * up(norm(x)))``, no biases.

    Attributes:
        width: hidden units; None: as the family's MLP.
        activation: of the gate; None: the family's (silu makes it a SwiGLU, gelu a GeGLU).
        norm, eps: None: the family's.
    """

    name: ClassVar[str] = "swiglu"
    about: ClassVar[str] = "a gated MLP, residual and pre-normed"
    layouts: ClassVar[tuple[Layout, ...]] = ("stock", "code")

    width: int | None = Field(default=None, ge=1, le=MOST_WIDTH)
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] | None = None
    norm: Literal["rms", "layer"] | None = None
    eps: float | None = Field(default=None, ge=0)

    def with_forms(self, forms: Forms) -> Self:
        family: dict[str, Any] = {
            "width": forms.width, "activation": forms.activation, "norm": forms.norm, "eps": forms.eps,
        }  # fmt: skip
        return self.model_copy(update={name: value for name, value in family.items() if getattr(self, name) is None})

    def most_parameters(self, shape: ModelShape) -> int:
        return 3 * shape.hidden * (self.width or max(4 * shape.hidden, shape.ffn)) + 2 * shape.hidden

    def module_options(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"layout"})
