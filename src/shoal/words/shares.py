"""A budget divided among parts of different size by water-filling: no part leaves its limits, the whole meets the budget.

Parts are layers or maps; what is divided is zeros, or ranks of adapters.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)

N_STEPS = 200
"""Of the bisection; far more than the bits of a double."""


def allocate(
    sizes: Mapping[Key, int], scores: Mapping[Key, float], budget: float, spread: float, *, most: float = 1.0
) -> dict[Key, float]:
    """The share of each part, so that the parts together have ``budget``: the higher its score, the smaller its share.

    The scores are stretched over a range of ``2 * spread``, and the shares are moved up or down together until their mean,
    weighted by size, is the budget; a share that would leave 0..``most`` stays at the limit, and the others make up for it.
    Equal scores, or a spread of 0, give every part the budget. (OWL, arXiv 2310.05175, with the mean weighted by parameters.)

    Args:
        sizes: of the parts, in parameters; their keys are those of the scores.
        budget: share of all parameters together, 0..``most``.
        spread: shares differ by twice as much at most.
    Raises:
        ValueError: a budget out of reach, a negative spread, or a score that is no number.
    """
    if not spread >= 0:
        raise ValueError(f"spread {spread:g} needs to be at least 0")
    low, high = min(scores.values()), max(scores.values())
    if not -float("inf") < low <= high < float("inf"):
        raise ValueError("a score is infinite or no number; the text or the weights are damaged")
    stretch = 2 * spread / (high - low) if high > low else 0.0
    wanted = {key: -stretch * (scores[key] - low) for key in sizes}
    return shifted(sizes, wanted, budget, most=most)


def shifted(sizes: Mapping[Key, int], wanted: Mapping[Key, float], budget: float, *, most: float = 1.0) -> dict[Key, float]:
    """``wanted`` plus one constant for all, kept in 0..``most``, such that the mean weighted by size is the budget."""
    return _filled(sizes, budget, lambda key, level: min(most, max(0.0, wanted[key] + level)), most=most, around=wanted)


def scaled(
    sizes: Mapping[Key, int], weights: Mapping[Key, float], budget: float, *, least: float = 0.0, most: float = 1.0
) -> dict[Key, float]:
    """``weights`` (at least 0) times one constant for all, kept in ``least``..``most``; their weighted mean is the budget."""
    highest = max(weights.values())
    if not highest > 0:
        raise ValueError("every weight is 0; there is nothing to divide the budget by")
    unit = {key: weight / highest for key, weight in weights.items()}
    return _filled(
        sizes,
        budget,
        lambda key, level: min(most, max(least, unit[key] * level)),
        most=most,
        around={key: most / one for key, one in unit.items() if one > 0} | {None: 0.0},
    )


def _filled(
    sizes: Mapping[Key, int],
    budget: float,
    share: Callable[[Key, float], float],
    *,
    most: float,
    around: Mapping[Key, float] | Mapping[Key | None, float],
) -> dict[Key, float]:
    """Shares at the level where their weighted mean is the budget; they rise with the level.

    Args:
        around: values whose range, with ``most`` beside it, holds the level.
    """
    total = sum(sizes.values())
    target = budget * total

    def held(level: float) -> float:
        return sum(size * share(key, level) for key, size in sizes.items())

    low, high = -max(around.values()) - most, max(abs(one) for one in around.values()) + most
    if not held(low) - 1e-9 * total <= target <= held(high) + 1e-9 * total:
        reach = f"{held(low) / total:.4g}..{held(high) / total:.4g}"
        raise ValueError(f"a share of {budget:g} is out of reach; these parts allow {reach}")
    for _ in range(N_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if held(middle) < target else (low, middle)
    found = {key: share(key, high) for key in sizes}
    # The last digits: what the bisection left goes to the parts that are free to move.
    free = [key for key in sizes if share(key, high) != share(key, high + 1e-6)]
    left = target - sum(sizes[key] * one for key, one in found.items())
    n_free = sum(sizes[key] for key in free)
    return {key: one + left / n_free if key in free and n_free else one for key, one in found.items()}
