"""Replace: a module in place of a run of layers; what the module is stands in the table of replacements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from shoal.edits.base import BaseEdit, Fate, Index
from shoal.edits.replace.contract import Replacement
from shoal.edits.replace.table import replacement_named
from shoal.words.structure import Slot, Structure
from shoal.words.types import Span, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from shoal.edits.student_of import Overlay
    from shoal.engine.view import DecoderView

HELD = {"stock": ", held by a stock layer with silent attention", "code": ", attached to the layer before by code"}


class Replace(BaseEdit):
    """Put a module in place of the layers ``start .. stop-1``. ``options`` belong to the replacement's own description."""

    about: ClassVar[str] = "a module in place of a run of layers"
    edit: Literal["replace"] = "replace"
    start: Index
    stop: Index
    replacement: str
    options: dict[str, Any] = {}

    @property
    def span(self) -> Span:
        return Span(self.start, self.stop)

    @property
    def description(self) -> Replacement:
        """Raises ValueError: no such replacement, or an option it does not have."""
        return replacement_named(self.replacement, self.options)

    def touches(self) -> frozenset[Unit]:
        return frozenset(Unit("layer", layer) for layer in self.span.layers)

    def named_layers(self) -> tuple[int, ...]:
        return (self.start, self.span.stop - 1)

    def structure(self, before: Structure) -> Structure:
        """One slot for each layer it inherits, else one module, where the span's first slot was."""
        at = next(i for i, slot in enumerate(before) if slot.like == self.start and not slot.is_inserted)
        rest = tuple(slot for slot in before if slot.is_inserted or slot.like not in self.span)
        return (*rest[:at], *self.slots(), *rest[at:])

    def slots(self) -> Structure:
        """What stands in place of the span."""
        found = self.description
        if not found.n_inherited:
            is_hosted = self.options.get("layout") == "code"
            return (Slot(self.start, "module", values=self.prefix(), is_hosted=is_hosted),)
        inner = ("layer.",) if found.n_inherited == 1 else tuple(f"{i}.layer." for i in range(found.n_inherited))
        return tuple(Slot(self.start + i, values=f"{self.prefix()}{name}") for i, name in enumerate(inner))

    def prefix(self) -> str:
        return f"replace.{self.start}-{self.stop}."

    @property
    def is_trainable(self) -> bool:
        return True

    def lay_over(self, overlay: Overlay, view: DecoderView, values: Mapping[str, Tensor]) -> None:
        """Without values the module is untrained, as it starts."""
        from shoal.edits.student_of import load_values, new_attached

        one = new_attached(view, self)
        own = {name.removeprefix(self.prefix()): value for name, value in values.items()}
        if own:
            load_values(one.module, own, where=f"values of {self.replacement!r} over {self.span}")
        overlay.attached.append(one)

    def fate(self, layer: int) -> Fate | None:
        if layer not in self.span:
            return None
        last = " last" if layer == self.stop - 1 else ""
        return Fate(f"gone module{last}", f"removed, {self.replaces()}")

    def replaces(self) -> str:
        return f"one {self.replacement!r} in place of {self.start}..{self.stop - 1}"

    def __str__(self) -> str:
        options = {name: value for name, value in self.options.items() if name != "layout"}
        said = f"one `{self.replacement}`" + (f" ({', '.join(f'{k}={v}' for k, v in options.items())})" if options else "")
        return f"layers {self.start}..{self.stop - 1}: replaced by {said}{HELD.get(str(self.options.get('layout', '')), '')}"
