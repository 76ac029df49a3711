"""Policy gradient: every unit is kept with a probability of its own, and the probabilities follow the loss of drawn sets.

Source: Bypass Back-propagation (arXiv 2406.10576): Bernoulli masks, a moving average as baseline, and the projection of the
probabilities onto the budget. The gradient of the expected loss by the probability s of a unit is the mean of
(loss - baseline) (m - s) / (s (1 - s)) over masks m. As in the released code a step uses it times the root of s (1 - s), which
is large where a unit is undecided. The paper draws tens of thousands of masks for channels; for layers a thousand are enough.
A loss that is not finite has no mean: the largest finite one that was drawn until then stands for it.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.measure.set_function import UnitSet
from shoal.select.search.quotas import Quota
from shoal.select.search.search_contract import Aim, Ledger, first_that_may_go
from shoal.words.types import Unit

UNDECIDED = 1e-6
"""Closest that a probability comes to 0 or 1 inside a quotient."""


@dataclass(frozen=True)
class PolicyGradient:
    """Attributes:
    n_steps: updates of the probabilities.
    n_masks: sets drawn for each, measured together.
    rate: step size, for losses in units of their own spread.
    memory: share of the old baseline that a new mean of losses leaves.
    """

    n_steps: int = 250
    n_masks: int = 4
    rate: float = 0.02
    memory: float = 0.8

    def __call__(self, ledger: Ledger, aim: Aim) -> None:
        """Draw, measure and move the probabilities; in the end switch off the units that are least likely to be kept."""
        draw = random.Random(aim.seed)
        units = ledger.units
        budgets = [_kept_at_most(quota, units) for quota in aim.goal.quotas]
        kept = [max(0.0, min(most / sum(held) for held, most in budgets))] * len(units)
        baseline = spread = None
        largest = -math.inf
        for _ in range(self.n_steps):
            masks = [[draw.random() < s for s in kept] for _ in range(self.n_masks)]
            drawn = ledger.values([off_by(units, mask) for mask in masks])
            largest = max([largest, *filter(math.isfinite, drawn)])
            if largest == -math.inf:
                continue
            losses = [min(loss, largest) for loss in drawn]
            mean = sum(losses) / len(losses)
            apart = sum(abs(loss - (mean if baseline is None else baseline)) for loss in losses) / len(losses)
            spread = apart if spread is None else self.memory * spread + (1 - self.memory) * apart
            if baseline is not None and spread > 0:
                slopes = estimated_gradient(losses, masks, kept, baseline=baseline)
                steps = [slope * math.sqrt(s * (1 - s)) / spread for slope, s in zip(slopes, kept, strict=True)]
                kept = within([s - self.rate * step for s, step in zip(kept, steps, strict=True)], budgets)
            baseline = mean if baseline is None else self.memory * baseline + (1 - self.memory) * mean
        order = sorted(range(len(units)), key=lambda i: (kept[i], -i))
        ledger.values([first_that_may_go([units[i] for i in order], aim)])

    def n_evaluations(self, n_units: int, n: int) -> int:
        """Most sets that are asked for: all drawn ones and the choice, or all sets that there are."""
        return min(2**n_units, self.n_steps * self.n_masks + 1)


Kept = tuple[list[float], float]
"""What every unit holds of something, and how much of it may be kept."""


def _kept_at_most(quota: Quota, units: Sequence[Unit]) -> Kept:
    held = [quota.of(unit) for unit in units]
    return held, sum(held) - quota.wanted


def off_by(units: Sequence[Unit], mask: Sequence[bool]) -> UnitSet:
    """The units that a mask does not keep."""
    return frozenset(unit for unit, is_kept in zip(units, mask, strict=True) if not is_kept)


def estimated_gradient(
    losses: Sequence[float], masks: Sequence[Sequence[bool]], kept: Sequence[float], *, baseline: float
) -> list[float]:
    """Slope of the expected loss by each probability, from masks that were drawn with these probabilities.

    Its mean over draws is the exact slope whatever the baseline, as long as that does not depend on the masks.
    """
    slopes = []
    for u, s in enumerate(kept):
        s = min(max(s, UNDECIDED), 1 - UNDECIDED)
        scores = [(mask[u] - s) / (s * (1 - s)) for mask in masks]
        slopes.append(sum((loss - baseline) * score for loss, score in zip(losses, scores, strict=True)) / len(losses))
    return slopes


def within(values: Sequence[float], budgets: Sequence[Kept]) -> list[float]:
    """Probabilities within every budget: projected onto one after the other until all hold."""
    found = list(values)
    for _ in range(100 if len(budgets) > 1 else 1):
        for held, most in budgets:
            found = projected(found, most=most, held=held)
        if all(_sum(found, held) <= most + 1e-9 * abs(most) for held, most in budgets):
            break
    return found


def projected(values: Sequence[float], *, most: float, held: Sequence[float] | None = None) -> list[float]:
    """The nearest probabilities whose sum, weighted with ``held`` (1 unless given), is at most ``most``.

    All are shifted by one amount times their weight, then held between 0 and 1; also where the sum is small enough already: a
    step may have left that range.
    """
    weights = [1.0] * len(values) if held is None else held
    scale = max(weights)  # The shift is found on weights up to 1, whatever their unit.

    def shifted(by: float) -> list[float]:
        return [min(max(value - by * w / scale, 0.0), 1.0) for value, w in zip(values, weights, strict=True)]

    if _sum(shifted(0.0), weights) <= most:
        return shifted(0.0)
    smallest = min(w for w in weights if w > 0) / scale
    low, high = 0.0, max(values) / smallest  # The sum is too large at low, and 0 at high.
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _sum(shifted(middle), weights) > most else (low, middle)
    return shifted(high)


def _sum(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(value * w for value, w in zip(values, weights, strict=True))
