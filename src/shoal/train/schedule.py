"""Learning rate: linear warm-up to the peak, then a cosine to the floor, counted in optimiser steps."""

import math


def n_warmup_steps(n_steps: int, warmup: float) -> int:
    """Steps of the warm-up: the share ``warmup`` of the run, rounded to nearest."""
    return round(n_steps * warmup)


def learning_rate(step: int, *, n_steps: int, lr: float, min_lr: float, warmup: float) -> float:
    """Rate of optimiser step ``step`` (0-based) of ``n_steps``.

    With w warm-up steps: ``lr (step + 1) / w`` while step < w, so step w - 1 has the peak ``lr`` exactly; afterwards
    ``min_lr + (lr - min_lr) (1 + cos(pi t)) / 2`` with ``t = (step - w) / (n_steps - 1 - w)``, so the step after the warm-up
    has the peak too and the last step has ``min_lr`` exactly. A single step after the warm-up has the peak.

    Raises:
        ValueError: step outside the run, or a floor above the peak.
    """
    if not 0 <= step < n_steps:
        raise ValueError(f"step={step} needs 0..{n_steps - 1}")
    if min_lr > lr:
        raise ValueError(f"min_lr={min_lr:g} needs to be at most lr={lr:g}")
    w = n_warmup_steps(n_steps, warmup)
    if step < w:
        return lr * (step + 1) / w
    last = n_steps - 1 - w
    t = (step - w) / last if last else 0.0
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * t)) / 2
