"""How what a plan put in is trained. Plain data, free of torch, so that recipes load fast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from shoal.train.objectives import ObjectiveNeed, weighted_sum
from shoal.words.counts import SampleCount, SeedNumber, StepCount, TokenCount
from shoal.words.records import Record, refuse

Beta = Annotated[float, Field(ge=0, lt=1)]  # The number is the share of an average that stays from step to step.

# Training tokens where none are asked for, and the text holds as many.
DEFAULT_TOKENS = 1_000_000

# A bound for very narrow models, where the rule below would leave the range that was tried.
MOST_LR = 8e-3

RATE_TIMES_WIDTH = 2e-4 * 4096
"""Of the usual peak learning rate: 2e-4 at a hidden size of 4096, and in inverse proportion to it."""

DEFAULT_OBJECTIVE = "hidden_mse"

POLISH = {"hidden": DEFAULT_OBJECTIVE, "kl": "forward_kl"}
"""What ``--polish`` trains for. docs/repair.md has the figures behind it."""


def _known(value: str) -> str:
    weighted_sum(value)
    return value


ObjectiveSum = Annotated[str, AfterValidator(_known)]
"""A name of ``train.objectives.OBJECTIVES``, or a weighted sum of names."""


class TrainingPhase(Record):
    """One stretch of training: an objective, its text and its learning rates.

    Attributes:
        objective: name, or weighted sum of names such as ``hidden_mse + 0.1*forward_kl``; see ``train.objectives``.
        tokens, lr, min_lr: as of the whole training.
        share: of the run's tokens, instead of ``tokens``.
        rate: times the run's ``lr``, or that which follows from the width, instead of ``lr``.
    """

    objective: ObjectiveSum = DEFAULT_OBJECTIVE
    tokens: TokenCount | None = None
    share: float | None = Field(default=None, gt=0, le=1)
    rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    lr: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    min_lr: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _floor_below_peak(self) -> TrainingPhase:
        refuse(self._conflicts())
        return self

    def _conflicts(self) -> Iterator[str]:
        if self.lr is not None and self.min_lr is not None and self.min_lr > self.lr:
            yield f"min_lr={self.min_lr:g} needs to be at most lr={self.lr:g}"
        if self.tokens is not None and self.share is not None:
            yield f"tokens={self.tokens} and share={self.share:g} are two answers; give one of them"
        if self.lr is not None and self.rate is not None:
            yield f"lr={self.lr:g} and rate={self.rate:g} are two answers; give one of them"

    def rates(self, hidden_size: int, *, base: float | None = None, floor: float | None = None) -> tuple[float, float]:
        """Peak and final learning rate for a model of this width; ``rate`` multiplies ``base`` and ``floor`` where given.

        The step of Adam on a d x d matrix moves the layer's output in proportion to d, so one rate for all widths would be
        too small for narrow models or too large for wide ones (arXiv 2203.03466). The anchor is LLM-Streamline's 2e-4, used
        on models of width 4096.

        Raises:
            ValueError: the configured floor is above the peak that follows from the width.
        """
        times = self.rate or 1.0
        lr = (base or min(MOST_LR, RATE_TIMES_WIDTH / hidden_size)) * times if self.lr is None else self.lr
        min_lr = self.min_lr if self.min_lr is not None else lr / 10 if floor is None else floor * times
        if min_lr > lr:
            raise ValueError(f"min_lr={min_lr:g} needs to be at most lr={lr:g} (of hidden size {hidden_size}); give lr as well")
        return lr, min_lr


class TrainConfig(Record):
    """Options of the training loop; counts of steps are optimiser steps.

    Attributes:
        objective: what is trained for; None: as ``polish`` says, else ``hidden_mse``.
        tokens: training tokens in all, one pass over the text; the steps follow from it. None: 1 M, fewer where the text
            holds fewer.
        lr, min_lr: peak and final learning rate (AdamW, linear warm-up, cosine). None: 2e-4 at a hidden size of 4096 and in
            inverse proportion to it, at most 8e-3; a tenth of the peak.
        stages: instead of the four above: several, one after the other on the same values, each reading on in the text where
            the one before stopped, each with its own warm-up, cosine and fresh moments. Each states its tokens, or each its
            share of ``tokens``; its learning rates, or its ``rate`` times those of the run.
        several: how a plan with several refits or replacements is trained. ``joint``: all at once, gradients running through
            all of them. ``sequential``: front to back, each with the student's own input, the tokens once for each.
            ``teacher_forced``: each in the teacher, on one reading of the text.
        warmup: share of a stage's steps that warm up.
        weight_decay, betas, clip: AdamW's, and the largest gradient norm.
        batch: samples per optimiser step; ``micro_batch``: most samples per forward (gradients accumulate in between).
        dtype: ``float32``, or ``bfloat16`` autocast over float32 master weights.
        eval_every: optimiser steps between validations; None: about twenty in the run, fewer where the selection text is long.
        seed: order of the samples; the recipe's, where that is given and this is not.
    """

    objective: ObjectiveSum | None = None
    tokens: TokenCount | None = None
    lr: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    min_lr: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    stages: tuple[TrainingPhase, ...] = ()
    several: Literal["joint", "sequential", "teacher_forced"] = "joint"
    warmup: float = Field(default=0.05, ge=0, le=1)
    weight_decay: float = Field(default=1e-3, ge=0, allow_inf_nan=False)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    clip: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    batch: SampleCount = 4
    micro_batch: SampleCount = 4
    dtype: Literal["float32", "bfloat16"] = "float32"
    eval_every: StepCount | None = None
    seed: SeedNumber = 0

    @model_validator(mode="after")
    def _one_answer(self) -> TrainConfig:
        self.schedule()  # The call checks the rates.
        single = {"objective": self.objective, "tokens": self.tokens, "lr": self.lr, "min_lr": self.min_lr}
        if self.has_shares:
            del single["tokens"]
        if self.has_rates:
            del single["lr"], single["min_lr"]
        given = [name for name, value in single.items() if value is not None]
        if self.stages and given:
            raise ValueError(f"stages say all of {', '.join(single)}; leave out {', '.join(given)}, or the stages")
        shares = [stage.share for stage in self.stages]
        if len(self.stages) > 1 and any(stage.tokens is None for stage in self.stages) and None in shares:
            raise ValueError("each of several stages needs its own tokens, or each its share of them")
        if sum(share or 0 for share in shares) > 1 + 1e-9:
            raise ValueError(f"the shares of the stages add up to {sum(share or 0 for share in shares):g}; at most 1")
        return self

    @property
    def has_shares(self) -> bool:
        """The stages divide the tokens of the run among them."""
        return bool(self.stages) and all(stage.share is not None for stage in self.stages)

    def schedule(self) -> tuple[TrainingPhase, ...]:
        """The stages in order; one where none are listed."""
        one = TrainingPhase(objective=self.objective or DEFAULT_OBJECTIVE, tokens=self.tokens, lr=self.lr, min_lr=self.min_lr)
        return self.stages or (one,)

    def needs(self) -> frozenset[ObjectiveNeed]:
        """What the objectives of all stages read."""
        return frozenset().union(*(weighted_sum(stage.objective).needs for stage in self.schedule()))

    @property
    def has_rates(self) -> bool:
        """The stages multiply the learning rate of the run."""
        return bool(self.stages) and all(stage.rate is not None for stage in self.stages)

    def stage_tokens(self, available: int) -> tuple[int, ...]:
        """Training tokens of each stage where the text holds ``available``."""
        whole = min(DEFAULT_TOKENS, available) if self.tokens is None else self.tokens
        stages = self.schedule()
        return tuple(stage.tokens or int(whole * (1 if stage.share is None else stage.share)) for stage in stages)

    def all_tokens(self) -> int | None:
        """Training tokens of all stages together; None: not stated."""
        if self.has_shares:
            return self.tokens
        stated = [stage.tokens for stage in self.schedule()]
        return None if None in stated else sum(tokens for tokens in stated if tokens is not None)

    def with_rates(self, hidden_size: int) -> TrainConfig:
        """Every stage listed, with the learning rates that follow from the width."""
        stages = []
        for stage in self.schedule():
            base, floor = (self.lr, self.min_lr) if self.has_rates else (None, None)
            lr, min_lr = stage.rates(hidden_size, base=base, floor=floor)
            stages.append(stage.model_copy(update={"lr": lr, "min_lr": min_lr, "rate": None}))
        tokens = self.tokens if self.has_shares else None
        update = {"objective": None, "tokens": tokens, "lr": None, "min_lr": None, "stages": tuple(stages)}
        return self.model_copy(update=update)
