"""Refit: new values for parameters of a kept layer; nothing is added, so the checkpoint stays a stock one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from shoal.edits.base import BaseEdit, Fate, Index, Target
from shoal.words.structure import Structure

if TYPE_CHECKING:
    from torch import Tensor

    from shoal.edits.student_of import Overlay
    from shoal.engine.view import DecoderView


class Refit(BaseEdit):
    """New values for parameters of a kept layer; ``parameters`` are names inside the layer."""

    edit: Literal["refit"] = "refit"
    layer: Index
    parameters: tuple[str, ...]

    def structure(self, before: Structure) -> Structure:
        return before

    def writes(self) -> tuple[Target, ...]:
        return (self.layer,)

    def prefix(self) -> str:
        return f"refit.{self.layer}."

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

    def fate(self, layer: int) -> Fate | None:
        return Fate("refitted", "kept, with new values") if layer == self.layer else None

    def __str__(self) -> str:
        return f"layer {self.layer}: new values for {', '.join(f'`{name}`' for name in self.parameters)}"
