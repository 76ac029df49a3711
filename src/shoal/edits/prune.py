"""Prune: weights of a kept layer set to zero, perhaps others changed; shapes stay, so the checkpoint stays a stock one.

The values are whole weights with their zeros, so the mask is what is zero in them and is stored nowhere else.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from shoal.edits.base import Fate
from shoal.edits.layer_edit import LayerEdit


class Prune(LayerEdit):
    """Values with zeros; ``method`` says who chose them."""

    about: ClassVar[str] = "weights of a layer that stays become zero"
    edit: Literal["prune"] = "prune"
    method: str = ""

    def prefix(self) -> str:
        return f"prune.{self.layer}."

    def fate(self, layer: int) -> Fate | None:
        return Fate("refitted", "kept, with zeros in its maps") if layer == self.layer else None

    def __str__(self) -> str:
        by = f" by {self.method}" if self.method else ""
        return f"layer {self.layer}: zeros{by} in {len(self.parameters)} weights"
