"""Zeros of a pruned student that stay zero: through training, and through the merge.

A weight trained whole is multiplied by its mask after every step. Beside a frozen weight W the adapter computes
W x + M * (s B A) x with the mask M of W's zeros, which merges exactly into W + M * (s B A).
Shapes: E outputs, D inputs of a map, R rank.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

Masks = dict[str, Tensor]


def zero_masks(model: Any) -> Masks:
    """By name, True where a matrix, or one of the matrices of experts, is not zero; those without a zero are left out.

    Raises:
        ValueError: no matrix has a zero, so there is nothing to keep.
    """
    found = {
        name: parameter.detach() != 0
        for name, parameter in model.named_parameters()
        if parameter.ndim in (2, 3) and parameter.is_floating_point() and not bool((parameter != 0).all())
    }
    if not found:
        raise ValueError("keep_zeros: the student has no zero in its matrices; give a pruned student, or leave keep_zeros out")
    return found


class KeepZeros(TrainerCallback):
    """Multiplies trained weights by their masks after every optimiser step."""

    def __init__(self, model: Any, masks: Mapping[str, Tensor]) -> None:
        self.pairs = [(parameter, masks[name]) for name, parameter in model.named_parameters() if name in masks]

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for parameter, mask in self.pairs:
            parameter.mul_(mask.to(parameter.device))


def mask_adapters(model: Any, masks: Mapping[str, Tensor]) -> None:
    """Let the adapters of a peft model change only weights that are not zero."""
    for name, module in model.named_modules():
        mask = masks.get(f"{name.removeprefix('base_model.model.')}.weight")
        if mask is not None and hasattr(module, "lora_A"):
            module.forward = _masked(module, mask.mT if module.fan_in_fan_out else mask)  # A Conv1D has inputs as its rows.


def _masked(module: Any, mask_ED: Tensor) -> Any:
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = module.base_layer
        delta_ED = module.lora_B["default"].weight @ module.lora_A["default"].weight * module.scaling["default"]
        change = nn.functional.linear(x.to(delta_ED.dtype), delta_ED * mask_ED.to(delta_ED.device))
        result = base(x, *args, **kwargs)
        return result + change.to(result.dtype)

    return forward


@torch.no_grad()
def apply_masks(model: Any, masks: Mapping[str, Tensor]) -> None:
    """Set what was zero to zero, after a merge that added to it."""
    for name, parameter in model.named_parameters():
        if name in masks:
            parameter.mul_(masks[name].to(parameter.device))
