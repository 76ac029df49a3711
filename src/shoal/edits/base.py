"""What every edit answers, so that nobody has to ask which kind it is.

An edit is plain data and a file; what needs torch is imported where it is called. Structural edits change which slots there are
or what they leave out; the others only write values, and compose in order.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from shoal.words.records import Record
from shoal.words.structure import Structure
from shoal.words.types import Unit

if TYPE_CHECKING:
    from torch import Tensor

    from shoal.edits.student_of import Overlay
    from shoal.engine.view import DecoderView

MOST_LAYERS = 20_000
"""Layers of a plan's source at most: a damaged plan is found before anything counts its layers."""

Index = Annotated[int, Field(gt=-MOST_LAYERS, lt=MOST_LAYERS)]

Target = int | Literal["embed", "norm", "head"]
"""Where values go: a layer of the source, the embedding, the final norm or the head."""


@dataclass(frozen=True)
class Fate:
    """What became of a layer, for the picture of a plan: the look of its box, and the words."""

    look: str
    words: str


class BaseEdit(Record):
    """One change of a student. Subclasses are frozen records with a literal field ``edit`` that names their kind.

    Attributes:
        about: what the kind does, in one line for people.
    """

    about: ClassVar[str]

    def touches(self) -> frozenset[Unit]:
        """Units whose slots it changes. Two edits of a plan may not touch one unit; none where only values are written."""
        return frozenset()

    @property
    def is_structural(self) -> bool:
        """Whether it changes which slots there are or what they leave out; the others only write values."""
        return bool(self.touches())

    @abstractmethod
    def structure(self, before: Structure) -> Structure:
        """The structure it makes of another."""

    def writes(self) -> tuple[Target, ...]:
        """Where it puts new values in parts of the source that stay."""
        return ()

    def prefix(self) -> str:
        """What the names of its values beside the plan begin with; empty where it has none."""
        return ""

    def named_layers(self) -> tuple[int, ...]:
        """Every layer of the source that it names, as written; a plan refuses those that do not exist."""
        return tuple(unit.index for unit in sorted(self.touches()))

    def n_layers_needed(self) -> int:
        """Layers the source needs at least."""
        return 1 + max(self.named_layers(), default=-1)

    def derived(self, view: DecoderView) -> Mapping[str, Tensor]:
        """Values of its own that follow from the source's weights, so that they need not lie beside the plan.

        Raises:
            ValueError: the source has no such layers.
        """
        return {}

    def owns(self, name: str) -> bool:
        """Whether a value beside the plan, of that name, is its own."""
        return bool(self.prefix()) and name.startswith(self.prefix())

    @abstractmethod
    def lay_over(self, overlay: Overlay, view: DecoderView, values: Mapping[str, Tensor]) -> None:
        """Put its part into the overlay of a student.

        Args:
            values: those that it owns, under their whole names.
        Raises:
            ValueError: values are missing or of another shape.
        """

    def written(self) -> dict[int, dict[str, str | None]]:
        """Per layer of the source, names of parameters inside it to the names of their values beside the plan."""
        return {}

    def fate(self, layer: int) -> Fate | None:
        """What became of a layer through this edit; None where nothing did."""
        return None

    @property
    def is_trainable(self) -> bool:
        """Whether it puts values into the student that a polish trains: those of a repair, a replacement or a merged layer."""
        return False

    def replaces(self) -> str:
        """What it puts in the place of layers, for people; empty where it puts nothing."""
        return ""

    @abstractmethod
    def __str__(self) -> str: ...
