"""Merge: several layers become one, whose weights are a weighted sum of theirs. LaCo (arXiv 2402.11187), sliding merging."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from shoal.edits.base import BaseEdit, Fate, Index, Target
from shoal.edits.merge_rules import RULES, MergeRule
from shoal.words.structure import Structure, runs_said
from shoal.words.types import Unit

if TYPE_CHECKING:
    from torch import Tensor

    from shoal.edits.student_of import Overlay
    from shoal.engine.view import DecoderView


class Merge(BaseEdit):
    """Layers ``of`` go into layer ``into``, which stays in its place.

    Attributes:
        rule: its entry in :data:`~shoal.edits.merge_rules.RULES`.
        weights: of ``into`` and then of each of ``of``, for the rule ``weighted``; the others say their own.
        parameters: names inside the layer that are merged.
    """

    about: ClassVar[str] = "several layers become one, in the place of one of them"
    edit: Literal["merge"] = "merge"
    into: Index
    of: tuple[Index, ...] = Field(min_length=1)
    rule: str = "sum_diff"
    weights: tuple[float, ...] = ()
    parameters: tuple[str, ...] = Field(min_length=1)

    @field_validator("rule")
    @classmethod
    def _known(cls, value: str) -> str:
        return RULES.named(value).name

    @model_validator(mode="after")
    def _fits_together(self) -> Merge:
        needed = 1 + len(self.of) if RULES.named(self.rule).weights is None else 0
        if len(self.weights) != needed:
            raise ValueError(
                f"a merge of {1 + len(self.of)} layers by {self.rule!r} takes {needed} weights, got {len(self.weights)}"
            )
        if len({self.into, *self.of}) != 1 + len(self.of):
            raise ValueError(f"a merge into {self.into} names a layer twice in {runs_said(self.of)}")
        return self

    @property
    def how(self) -> MergeRule:
        """The rule's entry."""
        return RULES.named(self.rule)

    @property
    def all_weights(self) -> tuple[float, ...]:
        """Of ``into`` and then of each of ``of``."""
        return self.weights if self.how.weights is None else self.how.weights(len(self.of))

    def touches(self) -> frozenset[Unit]:
        return frozenset(Unit("layer", layer) for layer in (self.into, *self.of))

    def structure(self, before: Structure) -> Structure:
        return tuple(slot for slot in before if slot.like not in self.of or not slot.is_of_source)

    def writes(self) -> tuple[Target, ...]:
        return (self.into,)

    def prefix(self) -> str:
        return f"merge.{self.into}."

    @property
    def is_trainable(self) -> bool:
        return True

    def lay_over(self, overlay: Overlay, view: DecoderView, values: Mapping[str, Tensor]) -> None:
        """Values that are not given follow from the source's weights."""
        from shoal.edits.student_of import parameters_of_layer

        found = parameters_of_layer(view, self.into, self.written()[self.into], values or self.derived(view))
        overlay.overrides.setdefault(self.into, {}).update(found)
        overlay.removed |= {Unit("layer", layer) for layer in self.of}

    def written(self) -> dict[int, dict[str, str | None]]:
        return {self.into: {name: f"{self.prefix()}{name}" for name in self.parameters}}

    def derived(self, view: DecoderView) -> Mapping[str, Tensor]:
        from shoal.edits.merged_layers import merged

        return merged(self, view)

    def fate(self, layer: int) -> Fate | None:
        if layer == self.into:
            return Fate("refitted", f"kept, merged with {runs_said(self.of)} ({self.rule})")
        return Fate("gone", f"merged into {self.into}") if layer in self.of else None

    def __str__(self) -> str:
        weights = f" {', '.join(f'{one:g}' for one in self.weights)}" if self.weights else ""
        return f"layers {runs_said((self.into, *self.of))}: merged into one, {self.how.about}{weights}"
