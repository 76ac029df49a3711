"""Two linear maps with an activation between, residual and pre-normed. LLM-Streamline's FFN (arXiv 2403.19135).

The paper's own form has no norm and no residual and starts at random, so it must learn the identity of a heavy-tailed stream
first; ``form: paper`` is there for comparison.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from shoal.edits.replace.contract import MOST_WIDTH, Layout, StartsAs
from shoal.edits.replace.described import StreamReplacement

if TYPE_CHECKING:
    from shoal.edits.replace.family_mlp import Forms
    from shoal.words.model_shape import ModelShape


class FfnReplacement(StreamReplacement):
    """``x + down(act(up(norm(x))))``.

    Attributes:
        width: hidden units; None: as the family's MLP, 4 x the hidden size for ``form: paper``.
        activation: None: the family's; relu for ``form: paper``.
        bias: None: as the family's MLP where it has these two maps, else True.
        norm, eps: None: the family's.
    """

    name: ClassVar[str] = "ffn"
    about: ClassVar[str] = "two linear maps with an activation, residual and pre-normed (form: paper = neither, random start)"
    layouts: ClassVar[tuple[Layout, ...]] = ("stock", "code")

    form: Literal["residual", "paper"] = "residual"
    width: int | None = Field(default=None, ge=1, le=MOST_WIDTH)
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] | None = None
    bias: bool | None = None
    norm: Literal["rms", "layer"] | None = None
    eps: float | None = Field(default=None, ge=0)

    @property
    def starts_as(self) -> StartsAs:
        return "zero" if self.form == "residual" else "random"

    def with_forms(self, forms: Forms) -> Self:
        paper = self.form == "paper"
        family: dict[str, Any] = {
            "width": 4 * forms.hidden_size if paper else forms.width,
            "activation": "relu" if paper else forms.activation,
            "bias": True if paper or forms.mlp is None or forms.mlp.is_gated else forms.mlp.has_bias,
            "norm": forms.norm,
            "eps": forms.eps,
        }
        return self.model_copy(update={name: value for name, value in family.items() if getattr(self, name) is None})

    def most_parameters(self, shape: ModelShape) -> int:
        width = self.width or max(4 * shape.hidden, shape.ffn)
        return 2 * shape.hidden * width + width + 3 * shape.hidden

    def module_options(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"layout"})
