"""One number per rotated channel, ``H diag(s) H^T x``: LinearPatch (arXiv 2505.24680).

Its values have a closed form. For hidden sizes that are no power of two see :class:`shoal.edits.replace.modules.Hadamard`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from shoal.edits.replace.contract import Layout
from shoal.edits.replace.described import PatchReplacement

if TYPE_CHECKING:
    from shoal.edits.replace.family_mlp import Forms


class HadamardReplacement(PatchReplacement):
    """``H diag(1 + delta) H^T x``; no options."""

    name: ClassVar[str] = "hadamard"
    about: ClassVar[str] = "one scale per Hadamard-rotated channel of the stream"
    layouts: ClassVar[tuple[Layout, ...]] = ("code",)

    def with_forms(self, forms: Forms) -> Self:
        return self

    def module_options(self) -> dict[str, Any]:
        return {}
