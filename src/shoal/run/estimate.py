"""How long a run will take: what each of its stages says of itself, at the pace of this machine."""

from __future__ import annotations

from collections.abc import Iterable

from shoal.run.pace import Pace
from shoal.run.stage import Stage
from shoal.run.stages.table import STAGES
from shoal.words.records import Record


class Estimate(Record):
    """Seconds by what stages do, in the order in which it is done."""

    stages: dict[str, float]

    @property
    def seconds(self) -> float:
        return sum(self.stages.values())

    def __str__(self) -> str:
        if self.seconds < 30:
            return f"about {max(1, round(self.seconds))} s"
        parts = ", ".join(f"{name} {minutes(seconds)}" for name, seconds in self.stages.items())
        return f"about {minutes(self.seconds)} min ({parts})"


def minutes(seconds: float) -> str:
    """``0.4``, ``7``, ``130``."""
    found = seconds / 60
    return f"{found:.1f}" if found < 2 else f"{found:.0f}"


def estimate(pace: Pace, stages: Iterable[Stage] = STAGES.values()) -> Estimate:
    """The time of those of some stages that the recipe has."""
    asked = [stage for stage in stages if stage.is_asked(pace.recipe)]
    return Estimate(stages={what: seconds for stage in asked for what, seconds in stage.lasts(pace).items()})
