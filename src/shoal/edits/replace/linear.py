"""An affine map of the normed stream, ``x + W norm(x) + b``; with a rank W is a product of two thin maps.

Its values have a closed form (least squares on the change of the span).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from shoal.edits.replace.contract import MOST_WIDTH, Layout
from shoal.edits.replace.described import PatchReplacement

if TYPE_CHECKING:
    from shoal.edits.replace.family_mlp import Forms


class LinearReplacement(PatchReplacement):
    """``x + W norm(x) + b``.

    Attributes:
        rank: of W; None: full, one square map.
        norm, eps: None: the family's.
    """

    name: ClassVar[str] = "linear"
    about: ClassVar[str] = "an affine map of the normed stream, of full or low rank"
    layouts: ClassVar[tuple[Layout, ...]] = ("stock", "code")

    rank: int | None = Field(default=None, ge=1, le=MOST_WIDTH)
    norm: Literal["rms", "layer"] | None = None
    eps: float | None = Field(default=None, ge=0)

    def with_forms(self, forms: Forms) -> Self:
        if self.rank is not None and self.rank > forms.hidden_size:
            raise ValueError(f"rank={self.rank} is above the hidden size {forms.hidden_size}; leave it out for a full map")
        family: dict[str, Any] = {"norm": forms.norm, "eps": forms.eps}
        return self.model_copy(update={name: value for name, value in family.items() if getattr(self, name) is None})

    def module_options(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"layout"})
