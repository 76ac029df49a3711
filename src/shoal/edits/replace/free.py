"""A linear map of the raw stream, ``x + M x``: the best a linear patch can do. Ghosted Layers (arXiv 2605.15491).

Its values have a closed form. No norm stands before it, so no stock layer can hold it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from shoal.edits.replace.contract import Layout
from shoal.edits.replace.described import PatchReplacement

if TYPE_CHECKING:
    from shoal.edits.replace.family_mlp import Forms


class FreeReplacement(PatchReplacement):
    """``x + M x``; ``bias``: ``+ b`` as well, which the paper has not."""

    name: ClassVar[str] = "free"
    about: ClassVar[str] = "a linear map of the raw stream"
    layouts: ClassVar[tuple[Layout, ...]] = ("code",)

    bias: bool = False

    def with_forms(self, forms: Forms) -> Self:
        return self

    def module_options(self) -> dict[str, Any]:
        return {"bias": self.bias}
