"""Zeros that move while weights are trained: the smallest weights go, as many others grow where the gradient is largest.

Gradual redistribution by global gradient: each map gives up a share of its weights, and where new ones grow is decided among
the zeros of all maps together (arXiv 2210.14012), or of each map alone (RigL, arXiv 1911.11134). The number of zeros stays. The
share falls by a cosine to nothing at three quarters of the training. Whether the paper scales the gradients of maps before it
compares them is not known to us; here they are compared as they are.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import TrainerCallback

from shoal.train.heal.masks import Masks

END = 0.75
"""Part of the training after which zeros stay where they are, as in RigL."""

Growth = Literal["all", "map"]


def moved(
    weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], masks: Masks, share: float, *, growth: Growth = "all"
) -> Masks:
    """New masks with as many zeros: of each map ``share`` of its weights go, the smallest; others grow where none was before.

    Args:
        gradients: of the loss, at zeros too.
        masks: True where a weight is trained.
        growth: where the gradient is largest among the zeros of ``all`` maps, or of each ``map``.
    """
    asked = {name: math.floor(share * int(mask.sum()) + 1e-9) for name, mask in masks.items()}
    if growth == "map":
        asked = {name: min(n, int((~masks[name]).sum())) for name, n in asked.items()}
        return {name: _moved(weights, gradients, masks, name, n, n) for name, n in asked.items()}
    n_zeros = sum(int((~mask).sum()) for mask in masks.values())
    if sum(asked.values()) > n_zeros:  # More weights would go than can grow.
        asked = {name: math.floor(n * n_zeros / sum(asked.values())) for name, n in asked.items()}
    grown = _grown(gradients, masks, sum(asked.values()))
    return {name: _moved(weights, gradients, masks, name, asked[name], grown[name]) for name in masks}


def _grown(gradients: Mapping[str, Tensor], masks: Masks, n: int) -> dict[str, int]:
    """How many of the n zeros with the largest gradients each map has; of equal ones those of the first map."""
    names = list(masks)
    best = [gradients[name][~masks[name]].abs().sort(descending=True).values[:n] for name in names]
    owner = torch.cat([torch.full((len(one),), i) for i, one in enumerate(best)])
    order = torch.cat([one.float().cpu() for one in best]).argsort(descending=True, stable=True)[:n]
    counts = owner[order].bincount(minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts, strict=True)}


def _moved(
    weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], masks: Masks, name: str, n_gone: int, n_grown: int
) -> Tensor:
    mask = masks[name]
    size = weights[name].abs().masked_fill(~mask, math.inf).flatten()
    slope = gradients[name].abs().masked_fill(mask, -1.0).flatten()
    found = mask.flatten().clone()
    found[size.argsort(stable=True)[:n_gone]] = False
    found[slope.argsort(descending=True, stable=True)[:n_grown]] = True  # A weight that has just gone does not come back.
    return found.view_as(mask)


class MoveZeros(TrainerCallback):
    """Moves zeros before every so many optimiser steps; a weight that grows starts at zero, without a past.

    Args:
        masks: of the weights that are trained; they are changed in place, and whoever keeps zeros holds the same tensors.
        share: of the weights of each map that go, at the start; ``every`` so many steps.
    """

    def __init__(self, model: Any, masks: Masks, *, share: float, every: int, growth: Growth) -> None:
        self.weights = {name: parameter for name, parameter in model.named_parameters() if name in masks}
        self.masks = {name: masks[name] for name in self.weights}
        self.share, self.every, self.growth = share, every, growth

    def share_at(self, step: int, n_steps: int) -> float:
        """The share that goes before a step; 0 where zeros stay."""
        end = END * n_steps
        if (step + 1) % self.every or step >= end:
            return 0.0
        return self.share / 2 * (1 + math.cos(math.pi * step / end))

    @torch.no_grad()
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        share = self.share_at(state.global_step, state.max_steps)
        if not share:
            return
        gradients = {name: torch.zeros_like(one) if one.grad is None else one.grad for name, one in self.weights.items()}
        found = moved(self.weights, gradients, self.masks, share, growth=self.growth)
        optimizer = kwargs.get("optimizer")
        past = {} if optimizer is None else optimizer.state
        for name, weight in self.weights.items():
            changed = found[name] != self.masks[name]
            weight.masked_fill_(changed, 0.0)
            for value in past.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.masked_fill_(changed, 0.0)
            self.masks[name].copy_(found[name])

    def load_from(self, folder: Path) -> None:
        """A checkpoint's zeros are those of its weights, which are in place."""
        for name, weight in self.weights.items():
            self.masks[name].copy_(weight != 0)
