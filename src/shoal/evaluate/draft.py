"""A student as the draft of its teacher: how many times as fast greedy decoding would be. Computed, not run.

Of k drafted tokens the first n are accepted with probability a^n, where a is the share of positions at which student and
teacher have the same most likely token. One round costs the teacher one step and the student k steps of cost c each, in steps
of the teacher: speed = (1 - a^(k+1)) / ((1 - a) (1 + k c)). Source: speculative decoding, arXiv 2211.17192.
"""

from typing import NamedTuple

MOST_DRAFTED = 8


class Draft(NamedTuple):
    """The number of drafted tokens that pays most, and what it pays; below 1 the teacher alone is faster."""

    n_drafted: int
    speed: float


def draft_speed(acceptance: float, cost: float, n_drafted: int) -> float:
    """Times as fast as the teacher alone.

    Args:
        acceptance: in 0..1.
        cost: a step of the student in steps of the teacher.
        n_drafted: tokens per round, at least 1.
    """
    accepted = sum(acceptance**n for n in range(n_drafted + 1))  # The geometric sum has no pole at 1.
    return accepted / (1.0 + n_drafted * cost)


def best_draft(acceptance: float, cost: float) -> Draft:
    """The best number of drafted tokens among 1..8; ties to fewer."""
    tried = [Draft(n, draft_speed(acceptance, cost, n)) for n in range(1, MOST_DRAFTED + 1)]
    return max(tried, key=lambda one: (one.speed, -one.n_drafted))
