"""How much of something a model has, and how much of it leaves with each unit: what budgets are shares of."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shoal.words.types import Unit


@dataclass(frozen=True)
class Amounts:
    """One resource of a model.

    Attributes:
        about: what it is, for people, such as ``cache of keys and values (bytes per token at 256 tokens)``.
        total: of the whole model, in any unit.
        of_unit: what leaves with each unit; a layer's is at least the sum of its sublayers'.
    """

    about: str
    total: float
    of_unit: Mapping[Unit, float]

    def of(self, units: Iterable[Unit]) -> float:
        """What leaves with some units that do not overlap."""
        return sum(self.of_unit.get(unit, 0) for unit in units)


def amount_of_layers(amounts: Amounts, layers: Iterable[int]) -> float:
    """What leaves with whole layers."""
    return amounts.of(Unit("layer", layer) for layer in layers)
