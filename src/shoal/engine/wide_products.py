"""Linear maps and trained attention of 16-bit models on processors without instructions for them: in float32, rounded once.

Such a processor (AVX2, say) multiplies bfloat16 and float16 five times as slowly as float32. A product of 16-bit numbers is
exact in float32, so the sum of the products, rounded once at the end, is what a processor with these instructions gives up to
the order of the sum. Weights stay in 16 bits; what is converted at a time is small.

Torch's fused attention runs forward as fast in 16 bits, but its backward pass takes six times as long, so only attention that a
gradient goes through is widened.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache, wraps
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

HALVES = (torch.bfloat16, torch.float16)
FEW_TOKENS = 4
"""Products of so few tokens, as when text is generated, are made as before: the conversion would take longer than they do."""
MOST_NUMBERS = 1 << 21
"""Numbers in float32 at a time: of the weights, and of inputs and outputs together. These 8 MB are reused by the allocator and
stay in the processor's cache: eight times as many take half as long again in a head of 49,152 tokens."""


@cache
def multiplies_slowly(dtype: torch.dtype) -> bool:
    """Whether products of a 16-bit type are slow on this processor. Others than x86 are left as they are."""
    if dtype not in HALVES or platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return False
    asked = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    supported = getattr(torch.ops.mkldnn, asked, None)
    return supported is not None and not supported()


def widen(model: nn.Module, *, computes_in: torch.dtype | None = None) -> None:
    """Let what runs in 16 bits multiply in float32, where the processor is slow at it; nothing else changes.

    Linear maps are widened one by one; attention, which transformers looks up by name, in the whole process.

    Args:
        computes_in: the type that autocast will set. None: each map's own.
    """
    widened = False
    for module in model.modules():
        kind = type(module)
        if kind.__name__ == "Linear4bit":
            _widen_4_bits(module, computes_in)
        if kind is not nn.Linear and kind.__name__ != "Conv1D":
            continue
        weight = module.weight
        if not isinstance(weight, Tensor) or weight.device.type not in ("cpu", "meta"):
            continue
        if multiplies_slowly(computes_in or weight.dtype):
            # The class stays: what trains or prunes a model finds linear maps by it.
            module.forward = MethodType(_linear if kind is nn.Linear else _conv1d, module)
            widened = True
    if widened:
        _widen_attention()


def _widen_4_bits(module: Any, computes_in: torch.dtype | None) -> None:
    """A map of bitsandbytes unpacks its four bits for each product, and has a setting for what it multiplies in: in 16 bits a
    forward and backward pass takes twenty times as long."""
    if module.weight.device.type == "cpu" and multiplies_slowly(module.compute_dtype or computes_in or torch.bfloat16):
        module.compute_dtype, module.compute_type_is_set = torch.float32, True


def _widen_attention() -> None:
    fused = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if not getattr(fused, "is_widened", False):
        # By the public door, so that a function registered after this one takes its place as it would anyhow.
        AttentionInterface.register("sdpa", _widened(fused))


def _widened(fused: Callable[..., tuple[Tensor, Any]]) -> Callable[..., tuple[Tensor, Any]]:
    @wraps(fused)
    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
        is_trained = torch.is_grad_enabled() and any(one.requires_grad for one in (query, key, value))
        if not is_trained or query.device.type != "cpu" or not multiplies_slowly(dtype):
            return fused(module, query, key, value, attention_mask, *args, **kwargs)
        # What autocast would have rounded stays rounded.
        states = [one.to(dtype) for one in (query, key, value)]
        # A mask, or a position bias of a family like Inkling's, has to have the type of the states.
        wide = map(_wide, (*states, attention_mask, *args))
        with torch.autocast("cpu", enabled=False):
            attended, weights = fused(module, *wide, **{name: _wide(one) for name, one in kwargs.items()})
        return attended.to(dtype), weights

    attention.is_widened = True  # type: ignore[attr-defined]
    return attention


def _wide(given: Any) -> Any:
    """A tensor of floating-point numbers in float32; anything else as it is."""
    return given.float() if isinstance(given, Tensor) and given.is_floating_point() else given


def _linear(self: Any, input: Tensor) -> Tensor:
    return linear(input, self.weight, self.bias)


def _conv1d(self: Any, x: Tensor) -> Tensor:
    return linear(x, self.weight.mT, self.bias)


def linear(x_BTD: Tensor, w_ED: Tensor, bias_E: Tensor | None) -> Tensor:
    """``torch.nn.functional.linear``, multiplied in float32 where its type, or autocast's, is one of 16 bits on the CPU.

    Returns: (..., E), of the dtype that ``functional.linear`` returns.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x_BTD.dtype
    is_same = torch.is_autocast_enabled("cpu") or w_ED.dtype == x_BTD.dtype
    n_tokens = x_BTD.shape[:-1].numel()
    if not is_same or x_BTD.device.type != "cpu" or n_tokens <= FEW_TOKENS or not multiplies_slowly(dtype):
        return nn.functional.linear(x_BTD, w_ED, bias_E)
    halves = (x_BTD.to(dtype), w_ED.to(dtype), None if bias_E is None else bias_E.to(dtype))
    with torch.autocast("cpu", enabled=False):
        return _Product.apply(*halves)


class _Product(torch.autograd.Function):
    """The map, and its gradients, without a copy of the weights in float32 that would wait for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, w_ED: Tensor, bias_E: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_BTD, w_ED)
        ctx.has_bias = bias_E is not None
        y_NE = _multiplied(x_BTD.reshape(-1, x_BTD.shape[-1]), w_ED, bias_E)
        return y_NE.view(*x_BTD.shape[:-1], len(w_ED))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_BTD, w_ED = ctx.saved_tensors
        g_NE = grads[0].reshape(-1, len(w_ED))
        wants_x, wants_w, wants_bias = ctx.needs_input_grad
        of_x = _summed(g_NE, w_ED).view_as(x_BTD) if wants_x else None
        of_w = _multiplied(g_NE.mT, x_BTD.reshape(-1, x_BTD.shape[-1]).mT, None) if wants_w else None
        of_bias = g_NE.float().sum(0).to(g_NE.dtype) if ctx.has_bias and wants_bias else None
        return of_x, of_w, of_bias


def _multiplied(x_ND: Tensor, w_ED: Tensor, bias_E: Tensor | None) -> Tensor:
    """``x @ w.T + bias`` in float32, a block of both at a time, in the dtype of x."""
    n_outputs, n_inputs = w_ED.shape
    n_rows = max(1, min(n_outputs, MOST_NUMBERS // max(1, n_inputs)))
    n_tokens = max(1, MOST_NUMBERS // (n_inputs + n_rows))
    y_NE = x_ND.new_empty(len(x_ND), n_outputs)
    for row in range(0, n_outputs, n_rows):
        rows = slice(row, row + n_rows)
        wide_ED = w_ED[rows].float()
        for token in range(0, len(x_ND), n_tokens):
            tokens = slice(token, token + n_tokens)
            block_NE = x_ND[tokens].float() @ wide_ED.mT
            y_NE[tokens, rows] = block_NE if bias_E is None else block_NE.add_(bias_E[rows].float())
    return y_NE


def _summed(g_NE: Tensor, w_ED: Tensor) -> Tensor:
    """``g @ w`` in float32, summed over blocks of the rows of w as they lie in memory, in the dtype of g."""
    n_outputs, n_inputs = w_ED.shape
    sum_ND = torch.zeros(len(g_NE), n_inputs, device=g_NE.device)
    n_rows = max(1, MOST_NUMBERS // (n_inputs + len(g_NE)))
    for row in range(0, n_outputs, n_rows):
        rows = slice(row, row + n_rows)
        sum_ND.addmm_(g_NE[:, rows].float(), w_ED[rows].float())
    return sum_ND.to(g_NE.dtype)
