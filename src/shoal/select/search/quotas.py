"""When enough is off: the goal of a search, as a number of units or as quotas of what they hold.

Units may differ: an MLP holds several times the parameters of an attention, which alone holds keys and values. A quota is met
when what is off lies within half of the smallest unit of what is wanted, so for equal units it is the nearest number of them,
ties to fewer. Until then a unit may follow only if it does not overshoot by more than that; where none is small enough, the
smallest one that brings the sum nearer. Of several quotas each has to be met: units that overshoot none go first, then those
that still meet one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from shoal.measure.set_function import UnitSet
from shoal.words.types import Unit


@dataclass(frozen=True)
class Quota:
    """So much of something has to go.

    Attributes:
        of_unit: what each unit holds of it; None: one, whatever the unit.
        wanted: how much has to go in all.
        name: for messages.
        whole: how much of it the model has, for messages; 0: what the units hold.
    """

    wanted: float
    of_unit: Mapping[Unit, float] | None = None
    name: str = "units"
    whole: float = 0.0

    def of(self, unit: Unit) -> float:
        return 1.0 if self.of_unit is None else self.of_unit.get(unit, 0.0)

    def lacks(self, off: UnitSet) -> float:
        """What has to go beyond what is off; below 0 where too much is."""
        return self.wanted - (len(off) if self.of_unit is None else sum(map(self.of, sorted(off))))

    @cached_property
    def slack(self) -> float:
        """Half of the smallest unit that holds anything: nearer than that no set need come."""
        held = [] if self.of_unit is None else [one for one in self.of_unit.values() if one > 0]
        return min(held, default=1.0) / 2

    @cached_property
    def most_over(self) -> float:
        """Half of the largest unit: where no smaller one is left, the last may overshoot by so much."""
        return max(self.of_unit.values() if self.of_unit else [], default=1.0) / 2


@dataclass(frozen=True)
class Quotas:
    """All quotas that have to be met."""

    quotas: tuple[Quota, ...] = field(default=())

    def candidates(self, off: UnitSet, units: Sequence[Unit]) -> list[Unit]:
        """Units that may follow, in their order; none where the goal is met."""
        lacking = [(quota, lacks) for quota in self.quotas if (lacks := quota.lacks(off)) > quota.slack]
        if not lacking:
            return []
        free = [unit for unit in units if unit not in off]
        useful = [unit for unit in free if any(quota.of(unit) > 0 for quota, _ in lacking)]
        for fits in (self._fits_all(off), _fits_one(lacking)):
            found = [unit for unit in useful if fits(unit)]
            if found:
                return found
        nearer = [unit for unit in useful if any(0 < quota.of(unit) < 2 * lacks for quota, lacks in lacking)]
        smallest = min((max(quota.of(unit) for quota, _ in lacking) for unit in nearer), default=0.0)
        return [unit for unit in nearer if max(quota.of(unit) for quota, _ in lacking) == smallest]

    def _fits_all(self, off: UnitSet) -> Callable[[Unit], bool]:
        room = [(quota, quota.lacks(off) + quota.slack) for quota in self.quotas]
        return lambda unit: all(quota.of(unit) <= left for quota, left in room)

    def is_met(self, off: UnitSet, units: Sequence[Unit]) -> bool:
        """Whether a set is one that a search may answer with.

        Nothing has to follow, and it does not hold more than was wanted by over half of the largest unit.
        """
        return not self.candidates(off, units) and any(quota.lacks(off) >= -quota.most_over for quota in self.quotas)

    def can_spare(self, off: UnitSet, unit: Unit) -> bool:
        """Whether all quotas are met without a unit, too."""
        return all(quota.lacks(off - {unit}) <= quota.slack for quota in self.quotas)

    def most(self, units: Sequence[Unit]) -> int:
        """Most units that a set which meets it can hold."""
        found = 0
        for quota in self.quotas:
            held = sorted(amount for unit in units if (amount := quota.of(unit)) > 0)
            sums, n = 0.0, 0
            while n < len(held) and quota.wanted - sums > quota.slack:
                sums, n = sums + held[n], n + 1
            found += n
        return min(found, len(units))

    def refuse_impossible(self, units: Sequence[Unit]) -> None:
        """Raises ValueError: nothing is to go, or more than all units hold."""
        for quota in self.quotas:
            held = [amount for unit in units if (amount := quota.of(unit)) > 0]
            if quota.slack < quota.wanted <= sum(held) + quota.slack:
                continue
            if quota.of_unit is None:
                raise ValueError(f"{quota.wanted:.0f} units to switch off need 1..{len(units)}: so many may be")
            whole = quota.whole or sum(held) or 1.0
            raise ValueError(
                f"{quota.wanted / whole:.1%} of {quota.name} is to go; the {len(units)} units that may go hold "
                f"{min(held, default=0.0) / whole:.1%}..{sum(held) / whole:.1%} of it"
            )

    def __str__(self) -> str:
        (first, *others) = self.quotas
        return f"a set of {first.wanted:.0f} units" if first.of_unit is None and not others else "a set that is large enough"


def _fits_one(lacking: Sequence[tuple[Quota, float]]) -> Callable[[Unit], bool]:
    return lambda unit: any(0 < quota.of(unit) <= lacks + quota.slack for quota, lacks in lacking)


def count(n: int) -> Quotas:
    """So many units, whatever they hold."""
    return Quotas((Quota(n),))
