"""Edits: what a plan does to layers of the source, as plain data.

Edits name layers of the teacher, 0-based. Their values (refitted tensors, trained replacements) live beside the plan.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from shoal.words.records import Record
from shoal.words.types import Span, UnitKind

MOST_LAYERS = 20_000  # a plan is bounded before anything counts its layers
Index = Annotated[int, Field(gt=-MOST_LAYERS, lt=MOST_LAYERS)]


class Drop(Record):
    """Remove units of one kind: zero their contribution to the residual stream."""

    edit: Literal["drop"] = "drop"
    kind: UnitKind = "layer"
    indices: tuple[Index, ...]


class Replace(Record):
    """Put a module in place of the layers ``start .. stop-1``. ``options`` belong to the replacement's own description."""

    edit: Literal["replace"] = "replace"
    start: Index
    stop: Index
    replacement: str
    options: dict[str, Any] = {}

    @property
    def span(self) -> Span:
        return Span(self.start, self.stop)


class Refit(Record):
    """New values for parameters of a kept layer; ``parameters`` are names inside the layer."""

    edit: Literal["refit"] = "refit"
    layer: Index
    parameters: tuple[str, ...]


Edit = Annotated[Drop | Replace | Refit, Field(discriminator="edit")]
