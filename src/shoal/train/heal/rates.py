"""A learning rate found by short runs on the first part of the training text."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.train.heal.config import HealConfig
from shoal.train.heal.result import RateTrial
from shoal.words.records import Record

if TYPE_CHECKING:
    from shoal.train.heal.train import Lesson, Pupil

SHARE = 0.1
FEWEST_STEPS = 20
TIMES = (1 / 3, 1.0, 3.0)
"""The rates that are tried first, in multiples of the method's own; beyond the ends while the best is at an end."""
STEP, MOST_TRIALS = 3.0, 9


class RateTrials(Record):
    """The short runs so far, so that a killed search goes on."""

    trials: tuple[RateTrial, ...] = ()


def find_rate(
    pupil: Pupil,
    config: HealConfig,
    lesson: Lesson,
    folder: Path,
    *,
    device: str,
    tell: Callable[[int, int], None] | None = None,
) -> tuple[RateTrial, ...]:
    """Train a tenth of the tokens (at least 20 steps) at several rates, each from the same start; the student is left there.

    The text of the trials is the beginning of the run's own, and they are measured on the selection text when they end.

    Returns: the trials in order of their rates.
    """
    from shoal.train.heal.arguments import warmup_steps
    from shoal.train.heal.train import steps_of, train_at
    from shoal.train.heal.trainer import DivergedError

    record = folder / "rates.json"
    own = pupil.method.learning_rate(pupil.hidden_size)
    n_steps = steps_of(config, lesson.training)
    n_trial = min(n_steps, max(FEWEST_STEPS, round(n_steps * SHARE)))
    per_step = config.n_batch * lesson.training.n_tokens // len(lesson.training)
    start = {name: value.detach().clone() for name, value in pupil.model.named_parameters() if value.requires_grad}
    zeros = {name: mask.clone() for name, mask in pupil.masks.items()}

    def told(step: int, n: int) -> None:
        if tell is not None:
            tell(len(trials) * n + step, max(len(trials) + 1, len(TIMES)) * n)

    def measure(lr: float) -> RateTrial:
        # As large a part of a trial as of the run.
        warmup = config.warmup if config.warmup < 1 else warmup_steps(config, n_steps) / n_steps
        changes = {"lr": lr, "tokens": n_trial * per_step, "eval_every": n_trial, "patience": None, "warmup": warmup}
        short = config.model_copy(update=changes)
        work = folder / "trial"
        shutil.rmtree(work, ignore_errors=True)
        try:
            done = train_at(pupil, short, lesson, work, device=device, tell=told)
            found = RateTrial(lr=lr, measure=done.curve[-1].measure(done.decided_by), n_tokens=done.n_tokens)
        except DivergedError:
            found = RateTrial(lr=lr, measure=None, n_tokens=n_trial * per_step)
        for name, value in pupil.model.named_parameters():
            if name in start:
                value.data.copy_(start[name])
        for name, mask in pupil.masks.items():  # Training may move them.
            mask.copy_(zeros[name])
        shutil.rmtree(work, ignore_errors=True)
        return found

    trials = {one.lr: one for one in (RateTrials.load(record).trials if record.exists() else ())}
    waiting = [own * one for one in TIMES]
    while waiting:
        for lr in waiting:
            if lr not in trials:
                trials[lr] = measure(lr)
                RateTrials(trials=tuple(trials.values())).save(record)
        waiting = _beyond(trials.values()) if len(trials) < MOST_TRIALS else []
    return tuple(sorted(trials.values(), key=lambda one: one.lr))


def usual_tokens(tokens: int) -> float:
    """What a search trains beside a run of so many tokens, where the best of the rates tried first is not at an end."""
    return len(TIMES) * SHARE * tokens


def _beyond(trials: Iterable[RateTrial]) -> list[float]:
    """The next rate to try where the best is at an end of those tried."""
    ordered = sorted(trials, key=lambda one: one.lr)
    good = [one for one in ordered if one.measure is not None]
    if not good:
        return [ordered[0].lr / STEP]
    best = min(good, key=lambda one: one.measure or 0.0)
    return [best.lr / STEP] if best is ordered[0] else [best.lr * STEP] if best is ordered[-1] else []


def best_rate(trials: Sequence[RateTrial]) -> float:
    """The rate of the lowest measure.

    Raises:
        DivergedError: all of them diverged.
    """
    from shoal.train.heal.trainer import DivergedError

    good = [(one.measure, one.lr) for one in trials if one.measure is not None]
    if not good:
        raise DivergedError(f"all learning rates from {trials[0].lr:.2g} to {trials[-1].lr:.2g} diverged; give --lr yourself")
    return min(good)[1]
