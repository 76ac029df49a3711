"""v(S): what a model loses when a set of units is switched off, as a function that searches ask in batches.

Searches see this protocol alone, so that they are tested on functions written in plain Python. :class:`CountedSets` gives any
such function memory, a count, a limit and, on request, a file, so that a search which was killed goes on where it was.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from shoal.measure.value_file import ValueFile
from shoal.words.types import Unit

UnitSet = frozenset[Unit]
"""Units that are switched off together."""


def as_compared(loss: float) -> float:
    """A loss as searches compare it: one that is not finite, as of a student that overflows, is worse than any other."""
    return loss if math.isfinite(loss) else math.inf


class OutOfEvaluations(Exception):
    """The limit of evaluations is reached. What was measured is remembered, so that a search can end with its best.

    Attributes:
        known: losses of those of the sets which could still be measured, or were known.
    """

    def __init__(self, message: str, known: Mapping[UnitSet, float]) -> None:
        super().__init__(message)
        self.known = known


class SetFunction(Protocol):
    """What is lost without a set of units; lower is better, and values of one function can be compared with each other.

    Attributes:
        units: all units that may be switched off, in the order of the model.
        n_evaluations: different sets that were asked for so far; asking for one again costs nothing.
        n_left: how many more sets can be asked for; None: any number.
        asked: all sets that were asked for, in that order, with their losses.
    """

    @property
    def units(self) -> tuple[Unit, ...]: ...

    @property
    def n_evaluations(self) -> int: ...

    @property
    def n_left(self) -> int | None: ...

    @property
    def asked(self) -> Mapping[UnitSet, float]: ...

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
        limit: most different sets that may be asked for; None: any number.
        file: where values are kept across processes; None: in memory alone.

    ``n_evaluations`` counts sets that come from the file like those that are measured, so that a search which is taken up again
    ends where it would have ended; ``n_measured`` counts the latter alone.
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
        self.n_measured = 0
        self._measure = measure
        self._limit = limit
        self._file = file
        self._known: dict[UnitSet, float] = {} if file is None else file.load()
        self._asked: dict[UnitSet, None] = {}
        self._allowed = frozenset(units)

    @property
    def n_evaluations(self) -> int:
        """Different sets that were asked for."""
        return len(self._asked)

    @property
    def n_left(self) -> int | None:
        """How many more sets can be asked for; None: any number."""
        return None if self._limit is None else self._limit - self.n_evaluations

    @property
    def known(self) -> dict[UnitSet, float]:
        """All that was measured, in this process or in those before it that kept the same file."""
        return dict(self._known)

    @property
    def asked(self) -> dict[UnitSet, float]:
        """All sets that were asked for in this process, in that order."""
        return {one: self._known[one] for one in self._asked}

    def values(self, sets: Sequence[UnitSet]) -> list[float]:
        """As :meth:`SetFunction.values`.

        Raises:
            OutOfEvaluations: as many sets as the limit allows were measured, and they are remembered.
            ValueError: a unit that this function does not have.
        """
        for one in sets:
            if not one <= self._allowed:
                raise ValueError(f"no unit {min(one - self._allowed)} here; units: {', '.join(map(str, self.units))}")
        new = [one for one in dict.fromkeys(sets) if one not in self._asked]
        affordable = new if self.n_left is None else new[: self.n_left]
        unknown = [one for one in affordable if one not in self._known]
        if unknown:
            measured = dict(zip(unknown, (float(value) for value in self._measure(unknown)), strict=True))
            if self._file is not None:
                self._file.append(measured)
            self._known.update(measured)
            self.n_measured += len(unknown)
        self._asked.update(dict.fromkeys(affordable))
        if len(affordable) < len(new):
            message = f"{self._limit} evaluations are spent; {len(new) - len(affordable)} more were asked for"
            raise OutOfEvaluations(message, {one: self._known[one] for one in sets if one in self._asked})
        return [self._known[one] for one in sets]
