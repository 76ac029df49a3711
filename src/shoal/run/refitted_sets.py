"""v(S) in a student that is refitted as it shrinks: what a greedy search with a repair inside asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from shoal.measure.removals import RemovalLosses
from shoal.measure.set_function import CountedSets, UnitSet
from shoal.measure.value_file import ValueFile
from shoal.words.types import Unit

RefitOf = Callable[[UnitSet], Mapping[int, Mapping[str, "Tensor"]]]
"""Units that are gone to new parameters, by layer and by name inside the layer."""


class RefittedSets:
    """A set function that settles (:class:`~shoal.select.search.greedy_refit.Settles`).

    Args:
        measure: losses of sets; its ``overrides`` are set by what ``refit`` finds.
        units: units that may be switched off.
        limit: most sets that may be asked for, over all rounds; None: any number.
        file_of: the file of values in a student that was refitted without some units.
    """

    def __init__(
        self,
        measure: RemovalLosses,
        units: Sequence[Unit],
        *,
        refit: RefitOf,
        limit: int | None,
        file_of: Callable[[UnitSet], ValueFile],
    ) -> None:
        self.units = tuple(units)
        self._measure, self._refit, self._limit, self._file_of = measure, refit, limit, file_of
        self._asked: dict[UnitSet, float] = {}
        self._n_before = 0
        self._round = self._sets(frozenset())

    def _sets(self, off: UnitSet) -> CountedSets:
        limit = None if self._limit is None else self._limit - self._n_before
        return CountedSets(self._measure, self.units, limit=limit, file=self._file_of(off))

    @property
    def n_evaluations(self) -> int:
        """Sets that were asked for in all rounds; one that two rounds ask for counts twice."""
        return self._n_before + self._round.n_evaluations

    @property
    def n_left(self) -> int | None:
        """How many more sets can be asked for in all rounds together; None: any number."""
        return self._round.n_left

    @property
    def asked(self) -> dict[UnitSet, float]:
        """All sets that were asked for, in that order, with the loss in the student of their round."""
        return {**self._asked, **self._round.asked}

    def values(self, sets: Sequence[UnitSet]) -> list[float]:
        """As :meth:`~shoal.measure.set_function.SetFunction.values`, in the student as it is refitted by now."""
        return self._round.values(sets)

    def settle(self, off: UnitSet) -> None:
        """Refit the student without these units; later values are of sets in it."""
        self._asked = self.asked
        self._n_before = self.n_evaluations
        self._measure.overrides = self._refit(off)
        self._round = self._sets(off)
