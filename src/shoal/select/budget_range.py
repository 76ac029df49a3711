"""A range of budgets, ``--drop 0..50%``: the numbers of layers that the points of a curve lack."""

import re
from collections.abc import Sequence

from shoal.select.budget import parse_budget, resolve
from shoal.select.model_size import NOTHING, ModelSize

MOST_POINTS = 16
RANGE_FORMS = "0..50% (of all parameters), 0..50%layers, 0..8 (layers), or the upper end alone"


def split_range(drop: str) -> tuple[str, str]:
    """Both ends as budgets, the lower one without unit taken in the unit of the upper one; ``0`` where only one is given.

    Raises:
        ValueError: not one of the forms.
    """
    low, dots, high = drop.strip().rpartition("..")
    unit = re.search(r"\s*%?\s*(layers?)?$", high)
    low = low.strip() if dots else "0"
    if re.fullmatch(r"\d+(\.\d+)?", low) and unit:
        low += unit[0]
    number = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%?\s*(?:layers?)?", low)
    if number is None or not high:
        raise ValueError(f"--drop {drop!r} is not a range of budgets; write {RANGE_FORMS}")
    return ("0" if float(number[1]) == 0 else low), high.strip()


def check_range(drop: str) -> None:
    """Before a model is opened. Raises ValueError: not a range of budgets."""
    ends = split_range(drop)
    if ends[1] == "0":
        raise ValueError(f"--drop {drop!r} removes nothing at its upper end; write {RANGE_FORMS}")
    for end in ends:
        try:
            _ = None if end == "0" else parse_budget(end)
        except ValueError:
            raise ValueError(f"--drop {drop!r} is not a range of budgets; write {RANGE_FORMS}, shares below 100%") from None


def counts_in(drop: str, size: ModelSize, *, protected: frozenset[int], n_points: int | None = None) -> tuple[int, ...]:
    """Numbers of layers to remove, from the lower end (at least 1; 0 is the teacher) to the upper end.

    Args:
        n_points: how many, evenly spaced; all of them up to ``MOST_POINTS`` unless given.
    Raises:
        ValueError: an end out of reach, an upper end below the lower one, fewer than one point.
    """
    if n_points is not None and n_points < 1:
        raise ValueError(f"--points {n_points} needs at least 1")
    low, high = split_range(drop)
    removable = [layer for layer in range(size.n_layers) if layer not in protected]
    n_most = min(len(removable), size.n_layers - 1)
    ends = [
        1 if end == "0" else resolve(parse_budget(end), size, put_back=NOTHING, removable=removable, n_most=n_most).n_net
        for end in (low, high)
    ]
    if ends[0] > ends[1]:
        raise ValueError(f"--drop {drop!r} runs from {ends[0]} layers down to {ends[1]}; write the smaller end first")
    return spread(range(ends[0], ends[1] + 1), n_points or MOST_POINTS)


def spread(counts: Sequence[int], n_points: int) -> tuple[int, ...]:
    """At most ``n_points`` of them, evenly spaced, both ends kept (one point: the last)."""
    if n_points >= len(counts):
        return tuple(counts)
    if n_points == 1:
        return (counts[-1],)
    last = len(counts) - 1
    return tuple(counts[round(i * last / (n_points - 1))] for i in range(n_points))
