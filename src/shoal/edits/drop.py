"""Drop: units whose contribution to the residual stream becomes zero; whole layers are gone, sublayers are off."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from shoal.edits.base import BaseEdit, Fate, Index
from shoal.words.structure import SUBLAYERS, Structure, runs_said, without_sublayer
from shoal.words.types import Unit, UnitKind, whole_layers

if TYPE_CHECKING:
    from torch import Tensor

    from shoal.edits.student_of import Overlay
    from shoal.engine.view import DecoderView


class Drop(BaseEdit):
    """Remove units of one kind: zero their contribution to the residual stream."""

    about: ClassVar[str] = "layers or sublayers give nothing to the stream any more"
    edit: Literal["drop"] = "drop"
    kind: UnitKind = "layer"
    indices: tuple[Index, ...]

    def touches(self) -> frozenset[Unit]:
        return frozenset(Unit(self.kind, index) for index in self.indices)

    def structure(self, before: Structure) -> Structure:
        if self.kind == "layer":
            gone = set(self.indices)
            return tuple(slot for slot in before if slot.like not in gone or not slot.is_of_source)
        return without_sublayer(before, self.kind, self.indices)

    def lay_over(self, overlay: Overlay, view: DecoderView, values: Mapping[str, Tensor]) -> None:
        overlay.removed |= self.touches()

    def fate(self, layer: int) -> Fate | None:
        return Fate("gone", "removed") if self.kind == "layer" and layer in self.indices else None

    def __str__(self) -> str:
        what = "layers" if self.kind == "layer" else f"{SUBLAYERS[self.kind]} of layers"
        return f"{what} {runs_said(self.indices)}: removed"


def drops_of(units: Iterable[Unit]) -> tuple[Drop, ...]:
    """The edits that remove exactly these units, one for each kind; a layer that loses both sublayers goes as a whole."""
    gone = whole_layers(units)
    found = ((kind, tuple(sorted(unit.index for unit in gone if unit.kind == kind))) for kind in ("layer", *SUBLAYERS))
    return tuple(Drop(kind=kind, indices=indices) for kind, indices in found if indices)
