"""v(S): what a model loses when a set of units is switched off, as a function that searches ask in batches.

Searches see this protocol alone, so that they are tested on functions written in plain Python. :class:`CountedSets` gives any such
function memory, a count, a limit and, on request, a file, so that a search which was killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from shoal.measure.value_file import ValueFile
from shoal.words.types import Unit

UnitSet = frozenset[Unit]
"""Units that are switched off together."""


class OutOfEvaluations(Exception):
    """The limit of evaluations is reached. What was measured until then is remembered, so that a search can end with its best."""


class SetFunction(Protocol):
    """What is lost without a set of units; lower is better, and values of one function can be compared with each other.

    Attributes:
        units: all units that may be switched off, in the order of the model.
        n_evaluations: sets that were measured so far. A set that is remembered costs nothing.
    """

    @property
    def units(self) -> tuple[Unit, ...]: ...

    @property
    def n_evaluations(self) -> int: ...

    def values(self, sets: Sequence[UnitSet]) -> list[float]:
        """The loss without each of the sets, in their order; sets that are asked for together share their work.

        Raises:
            OutOfEvaluations: a limit is reached before all of them are measured.
        """
        ...


class CountedSets:
    """A set function that remembers what it measured.

    Args:
        measure: losses of new sets, all different; what is expensive.
        units: units that may be switched off.
        limit: most sets to be measured, those of the file not counted; None: any number.
        file: where values are kept across processes; None: in memory alone.
    """

    def __init__(
        self,
        measure: Callable[[Sequence[UnitSet]], Sequence[float]],
        units: Sequence[Unit],
        *,
        limit: int | None = None,
        file: ValueFile | None = None,
    ) -> None:
        self.units = tuple(units)
        self.n_evaluations = 0
        self._measure = measure
        self._limit = limit
        self._file = file
        self._known: dict[UnitSet, float] = {} if file is None else file.load()
        self._allowed = frozenset(units)

    @property
    def n_left(self) -> int | None:
        """How many new sets can still be measured; None: any number."""
        return None if self._limit is None else self._limit - self.n_evaluations

    @property
    def known(self) -> dict[UnitSet, float]:
        """All that was measured, in this process or in those before it that kept the same file."""
        return dict(self._known)

    def values(self, sets: Sequence[UnitSet]) -> list[float]:
        """As :meth:`SetFunction.values`.

        Raises:
            OutOfEvaluations: as many sets as the limit allows were measured, and they are remembered.
            ValueError: a unit that this function does not have.
        """
        for one in sets:
            if not one <= self._allowed:
                raise ValueError(f"no unit {min(one - self._allowed)} here; units: {', '.join(map(str, self.units))}")
        new = [one for one in dict.fromkeys(sets) if one not in self._known]
        affordable = new if self.n_left is None else new[: self.n_left]
        if affordable:
            found = [float(value) for value in self._measure(affordable)]
            measured = dict(zip(affordable, found, strict=True))
            if self._file is not None:
                self._file.append(measured)
            self._known.update(measured)
            self.n_evaluations += len(affordable)
        if len(affordable) < len(new):
            raise OutOfEvaluations(f"{self._limit} evaluations are spent; {len(new) - len(affordable)} more were asked for")
        return [self._known[one] for one in sets]
