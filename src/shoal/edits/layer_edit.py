"""What edits have in common that write values into one kept layer: refits and zeros."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from shoal.edits.base import BaseEdit, Index, Target
from shoal.words.structure import Structure

if TYPE_CHECKING:
    from torch import Tensor

    from shoal.edits.student_of import Overlay
    from shoal.engine.view import DecoderView


class LayerEdit(BaseEdit):
    """New values for parameters of a kept layer; ``parameters`` are names inside the layer.

    Where two such edits name one parameter, the later one's value holds.
    """

    layer: Index
    parameters: tuple[str, ...]

    def structure(self, before: Structure) -> Structure:
        return before

    def writes(self) -> tuple[Target, ...]:
        return (self.layer,)

    def named_layers(self) -> tuple[int, ...]:
        return (self.layer,)

    def owns(self, name: str) -> bool:
        return name in self.written()[self.layer].values()

    def lay_over(self, overlay: Overlay, view: DecoderView, values: Mapping[str, Tensor]) -> None:
        from shoal.edits.student_of import parameters_of_layer

        found = parameters_of_layer(view, self.layer, self.written()[self.layer], values)
        overlay.overrides.setdefault(self.layer, {}).update(found)

    def written(self) -> dict[int, dict[str, str | None]]:
        return {self.layer: {name: f"{self.prefix()}{name}" for name in self.parameters}}
