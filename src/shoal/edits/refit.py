"""Refit: new values for parameters of a kept layer; nothing is added, so the checkpoint stays a stock one."""

from __future__ import annotations

from typing import ClassVar, Literal

from shoal.edits.base import Fate
from shoal.edits.layer_edit import LayerEdit


class Refit(LayerEdit):
    """Values that a repair found."""

    about: ClassVar[str] = "new values for maps of a layer that stays"
    edit: Literal["refit"] = "refit"

    def prefix(self) -> str:
        return f"refit.{self.layer}."

    @property
    def is_trainable(self) -> bool:
        return True

    def fate(self, layer: int) -> Fate | None:
        return Fate("refitted", "kept, with new values") if layer == self.layer else None

    def __str__(self) -> str:
        return f"layer {self.layer}: new values for {', '.join(f'`{name}`' for name in self.parameters)}"
