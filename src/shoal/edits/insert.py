"""Insert: new layers behind a layer of the source. Growing is the inverse of cutting, and goes through the same surgery.

A new layer behaves like a layer of the source: it has its arguments and its config entry. Its weights are that layer's own, a
blend of the two neighbours, or predicted; see :mod:`shoal.edits.inits`. Where the init is silent the output maps are zero, so
the layer adds nothing to the stream until it is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from shoal.edits.base import BaseEdit, Index
from shoal.edits.inits import INITS, Init
from shoal.words.structure import Slot, Structure, runs_said, with_inserted

if TYPE_CHECKING:
    from torch import Tensor

    from shoal.edits.student_of import Overlay
    from shoal.engine.view import DecoderView


class Insert(BaseEdit):
    """New layers behind ``after``.

    Attributes:
        init: its entry in :data:`~shoal.edits.inits.INITS`.
        of: for each new layer, the layer of the source that it is like, in order.
    """

    about: ClassVar[str] = "new layers behind a layer"
    edit: Literal["insert"] = "insert"
    after: Index
    init: str
    of: tuple[Index, ...] = Field(min_length=1)

    @field_validator("init")
    @classmethod
    def _known(cls, value: str) -> str:
        return INITS.named(value).name

    @model_validator(mode="after")
    def _one_is_predicted(self) -> Insert:
        if self.start.weights == "predicted" and len(self.of) > 1:
            raise ValueError(
                f"init {self.init!r} says one layer between two, and {len(self.of)} are asked for behind layer {self.after}"
            )
        return self

    @property
    def start(self) -> Init:
        """What its layers start as."""
        return INITS.named(self.init)

    @property
    def is_structural(self) -> bool:
        return True

    def named_layers(self) -> tuple[int, ...]:
        return (self.after, *self.of)

    def structure(self, before: Structure) -> Structure:
        silent = self.start.is_silent
        new = tuple(Slot(like, values=self.prefix_of(i), after=self.after, is_silent=silent) for i, like in enumerate(self.of))
        return with_inserted(before, new)

    def prefix(self) -> str:
        return "" if self.start.weights == "source" else f"insert.{self.after}."

    def prefix_of(self, number: int) -> str:
        """What the names of the values of one of its layers begin with; empty where they are the source's own."""
        return self.prefix() and f"{self.prefix()}{number}."

    def lay_over(self, overlay: Overlay, view: DecoderView, values: Mapping[str, Tensor]) -> None:
        """Values that are not given follow from the source's weights.

        Raises:
            ValueError: predicted values are missing; values of another shape; no neighbour to blend with.
        """
        from shoal.edits.inserted_layers import steps_of

        overlay.inserted[self.after] = steps_of(self, view, values or self.derived(view))

    def derived(self, view: DecoderView) -> Mapping[str, Tensor]:
        from shoal.edits.inserted_layers import blended

        return blended(self, view) if self.start.weights == "blend" else {}

    def __str__(self) -> str:
        n, like = len(self.of), f"like {runs_said(self.of)}"
        return f"behind layer {self.after}: {n} new layer{'s' * (n > 1)} {like}, {self.start.about}"
