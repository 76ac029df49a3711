"""What a merging search may ask: rows of merged layers, and how much each differs from the source."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from shoal.edits.merge_rules import MergeRule, joined_weights
from shoal.edits.table import Edit


@dataclass(frozen=True)
class MergedGroup:
    """One layer of a student: layers of the source, ascending, with their weights in it."""

    layers: tuple[int, ...]
    weights: tuple[float, ...] = (1.0,)


Row = tuple[MergedGroup, ...]
"""The layers of a student, front to back."""


class RowTrial(Protocol):
    """Runs students of merged layers."""

    def losses(self, rows: Sequence[Row]) -> list[float]:
        """1 minus the similarity to the source of each row, in order, in one reading of the text."""
        ...

    def are_alike(self, layers: Sequence[int]) -> bool:
        """Whether layers have the same parts, so that they can be merged."""
        ...

    def chose(self, similarity: float, threshold: float) -> None:
        """Told what the row that is proposed reaches, and above which threshold its merges were kept."""
        ...

    def edits(self, row: Row) -> tuple[Edit, ...]:
        """The edits that make the row of the source."""
        ...


Track = Generator[Row, float, Row]
"""A merging on its way: yields the row it wants to try, is sent its similarity, returns the row it ends with."""


@dataclass(frozen=True)
class MergeRules:
    """What a merging must keep to.

    Attributes:
        rule: of the weights.
        free: layers that may take part.
        alike: whether layers can be merged.
        most: most layers that may go.
    """

    rule: MergeRule
    free: frozenset[int]
    alike: Callable[[Sequence[int]], bool]
    most: int

    def joined(self, row: Row, start: int, stop: int) -> Row | None:
        """The row with ``start .. stop-1`` as one layer; None where they may not be merged, or too many would be gone."""
        layers = tuple(layer for group in row[start:stop] for layer in group.layers)
        gone = n_gone(row) + stop - start - 1
        if stop - start < 2 or gone > self.most or not self.free.issuperset(layers) or not self.alike(layers):
            return None
        weights = joined_weights(self.rule, [group.weights for group in row[start:stop]])
        return (*row[:start], MergedGroup(layers, weights), *row[stop:])


def whole_row(n_layers: int) -> Row:
    """The source itself."""
    return tuple(MergedGroup((layer,)) for layer in range(n_layers))


def n_gone(row: Row) -> int:
    """Layers that the row has fewer than the source."""
    return sum(len(group.layers) - 1 for group in row)
