"""What a rule of allocation may look at, and what its entry in the table says of itself. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

MapKey = tuple[int, str]
"""A map of the source: its layer, and its name inside the layer."""


@dataclass(frozen=True)
class ThinEvidence:
    """The maps that are thinned, and what can be asked about them. Nothing is measured before a rule asks for it.

    Attributes:
        shapes: of every map, (outputs, inputs).
        weights: goes through all maps, (outputs, inputs) each; may be asked more than once.
        outliers: of every layer, the share of its weights whose ``|w| * ||x||`` is above that many times the layer's mean, in
            the model as it is before any weight is set to zero.
    """

    shapes: Mapping[MapKey, tuple[int, int]]
    weights: Callable[[], Iterable[tuple[MapKey, Tensor]]]
    outliers: Callable[[float], Mapping[int, float]]

    @property
    def sizes(self) -> dict[MapKey, int]:
        """Weights of every map."""
        return {key: outputs * inputs for key, (outputs, inputs) in self.shapes.items()}

    @property
    def layer_sizes(self) -> dict[int, int]:
        """Weights of the maps of every layer."""
        found: dict[int, int] = {}
        for (layer, _), size in self.sizes.items():
            found[layer] = found.get(layer, 0) + size
        return found


Divide = Callable[..., dict[MapKey, float]]
"""``divide(evidence, budget, spread=..., outlier=...)``: the share of zeros of every map; all maps together have the budget."""


@dataclass(frozen=True)
class Allocator:
    """An entry of :data:`shoal.prune.table.ALLOCATORS`.

    Attributes:
        name, about: the name in recipes and on the command line, and one line for people.
        reads: what it looks at: shapes alone, weights, or the inputs of every map.
        divide: the rule.
        papers: arXiv numbers.
        options: fields of the config that only some rules read, those that this one does.
    """

    name: str
    about: str
    reads: Literal["shapes", "weights", "inputs"]
    divide: Divide
    papers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
