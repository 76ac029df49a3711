"""Edits: what a plan does to layers of the source, as plain data.

Edits name layers of the teacher, 0-based. Their values (refitted tensors, trained replacements) live beside the plan.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from shoal.words.records import Record
from shoal.words.types import Span, UnitKind


class Drop(Record):
    """Remove units of one kind: zero their contribution to the residual stream."""

    edit: Literal["drop"] = "drop"
    kind: UnitKind = "layer"
    indices: tuple[int, ...]


class Replace(Record):
    """Put a module in place of the layers ``start .. stop-1``. ``options`` belong to the replacement's own description."""

    edit: Literal["replace"] = "replace"
    start: int
    stop: int
    replacement: str
    options: dict[str, Any] = {}

    @property
    def span(self) -> Span:
        return Span(self.start, self.stop)


class Refit(Record):
    """New values for parameters of a kept layer; ``parameters`` are names inside the layer."""

    edit: Literal["refit"] = "refit"
    layer: int
    parameters: tuple[str, ...]


Edit = Annotated[Drop | Replace | Refit, Field(discriminator="edit")]
