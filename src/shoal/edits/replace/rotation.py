"""A scaled rotation of the stream, ``scale * Q x``: orthogonal Procrustes in closed form. Training may leave the rotations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from shoal.edits.replace.contract import Layout
from shoal.edits.replace.described import PatchReplacement

if TYPE_CHECKING:
    from shoal.edits.replace.family_mlp import Forms


class RotationReplacement(PatchReplacement):
    """``scale * Q x``; no options."""

    name: ClassVar[str] = "rotation"
    about: ClassVar[str] = "a scaled rotation of the stream"
    layouts: ClassVar[tuple[Layout, ...]] = ("code",)

    def with_forms(self, forms: Forms) -> Self:
        return self

    def module_options(self) -> dict[str, Any]:
        return {}
