"""How a replacement is trained. Plain data, free of torch, so that recipes load fast."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from shoal.types import Record

# Training tokens where none are asked for, and the text holds as many.
DEFAULT_TOKENS = 1_000_000

# A bound for very narrow models, where the rule below would leave the range that was tried.
MOST_LR = 8e-3


class TrainConfig(Record):
    """Options of the training loop; counts of steps are optimiser steps.

    Attributes:
        tokens: training tokens in all, one pass over the text; the steps follow from it. None: 1 M, fewer where the text
            holds fewer.
        lr, min_lr: peak and final learning rate (AdamW, linear warm-up, cosine). None: 2e-4 at a hidden size of 4096 and in
            inverse proportion to it, at most ``MOST_LR``; a tenth of the peak.
        warmup: share of the steps that warm up.
        weight_decay, betas, clip: AdamW's, and the largest gradient norm.
        batch: samples per optimiser step; ``micro_batch``: most samples per forward (gradients accumulate in between).
        objective: name of the objective.
        dtype: ``float32``, or ``bfloat16`` autocast over float32 master weights.
        eval_every: optimiser steps between validations; None: about twenty in the run, fewer where the selection text is long.
        seed: order of the samples.
    """

    tokens: int | None = Field(default=None, ge=1)
    lr: float | None = Field(default=None, gt=0)
    min_lr: float | None = Field(default=None, ge=0)
    warmup: float = Field(default=0.05, ge=0, le=1)
    weight_decay: float = Field(default=1e-3, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = Field(default=1.0, gt=0)
    batch: int = Field(default=4, ge=1)
    micro_batch: int = Field(default=4, ge=1)
    objective: str = "hidden_mse"
    dtype: Literal["float32", "bfloat16"] = "float32"
    eval_every: int | None = Field(default=None, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _floor_below_peak(self) -> TrainConfig:
        if self.lr is not None and self.min_lr is not None and self.min_lr > self.lr:
            raise ValueError(f"min_lr={self.min_lr:g} needs to be at most lr={self.lr:g}")
        return self

    def rates(self, hidden_size: int) -> tuple[float, float]:
        """Peak and final learning rate for a model of this width.

        The step of Adam on a d x d matrix moves the layer's output in proportion to d, so one rate for all widths would be
        too small for narrow models or too large for wide ones (arXiv 2203.03466). The anchor is LLM-Streamline's 2e-4, used
        on models of width 4096.

        Raises:
            ValueError: the configured floor is above the peak that follows from the width.
        """
        lr = min(MOST_LR, 2e-4 * 4096 / hidden_size) if self.lr is None else self.lr
        min_lr = lr / 10 if self.min_lr is None else self.min_lr
        if min_lr > lr:
            raise ValueError(f"min_lr={min_lr:g} needs to be at most lr={lr:g} (of hidden size {hidden_size}); give lr as well")
        return lr, min_lr
