"""How a replacement is trained. Plain data, free of torch, so that recipes load fast."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from shoal.types import Record


class TrainConfig(Record):
    """Options of the training loop; counts of steps are optimiser steps.

    Attributes:
        tokens: training tokens in all, one pass over the text; the steps follow from it. None: 1 M, fewer where the text
            holds fewer.
        lr, min_lr: peak and final learning rate (AdamW, linear warm-up, cosine).
        warmup: share of the steps that warm up.
        weight_decay, betas, clip: AdamW's, and the largest gradient norm.
        batch: samples per optimiser step; ``micro_batch``: samples per forward (gradients accumulate in between).
        objective: name of the objective.
        dtype: ``float32``, or ``bfloat16`` autocast over float32 master weights.
        eval_every: optimiser steps between validations; None: about twenty in the run.
        seed: order of the samples.
    """

    tokens: int | None = Field(default=None, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    min_lr: float = Field(default=1e-4, ge=0)
    warmup: float = Field(default=0.05, ge=0, le=1)
    weight_decay: float = Field(default=1e-3, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = Field(default=1.0, gt=0)
    batch: int = Field(default=16, ge=1)
    micro_batch: int = Field(default=8, ge=1)
    objective: str = "hidden_mse"
    dtype: Literal["float32", "bfloat16"] = "float32"
    eval_every: int | None = Field(default=None, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _floor_below_peak(self) -> TrainConfig:
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr={self.min_lr:g} needs to be at most lr={self.lr:g}")
        return self
