"""Modules in place of a removed span that are no layers of the family: modules of the residual stream.

Torch alone is imported: this file is copied as it stands into checkpoints whose code must run without Shoal, so what is
trained is what is shipped. All but ``Ffn(form="paper")`` are residual and start as the identity, bit for bit.

Shapes: B samples, T positions, D hidden size, W width, R rank.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": functools.partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
}


HOSTED = "replacements"  # A layer keeps the modules that follow it under this name.


class Norm(nn.Module):
    """RMSNorm (``rms``) or LayerNorm (``layer``) over the last axis, in fp32 or better; returns the input's dtype."""

    def __init__(self, hidden_size: int, *, kind: str, eps: float) -> None:
        super().__init__()
        self.kind, self.eps = kind, eps
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size)) if kind == "layer" else None

    def forward(self, h_BTD: Tensor) -> Tensor:
        x_BTD = _wide(h_BTD)
        if self.kind == "layer":
            x_BTD = x_BTD - x_BTD.mean(-1, keepdim=True)
        x_BTD = x_BTD * torch.rsqrt(x_BTD.square().mean(-1, keepdim=True) + self.eps)
        if self.bias is not None:
            return (x_BTD * self.weight + self.bias).to(h_BTD.dtype)
        # The value is rounded before the gain, as by the norm of Llama: equal bits in a stock layer.
        return x_BTD.to(h_BTD.dtype) * self.weight


STREAM_MODULES: dict[str, type[StreamModule]] = {}
"""The modules by kind; every class of :class:`StreamModule` enters itself."""


class StreamModule(nn.Module):
    """Called as the family's layers are, ``module(hidden_states, ...)``; reads the hidden states alone, returns them alone.

    Attributes:
        kind, options: rebuild it: ``new_module(kind, hidden_size, options)``.
        layout: how a checkpoint is to hold it, ``stock`` or ``code``; None: not decided. No part of what it computes.
    """

    kind: str
    options: dict[str, Any]
    layout: str | None = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        STREAM_MODULES[cls.kind] = cls

    def change(self, h_BTD: Tensor) -> Tensor:
        """What is added to the stream, (B, T, D)."""
        raise NotImplementedError

    def start(self, generator: torch.Generator) -> None:
        """Set every parameter to its start; random ones are drawn from ``generator``."""
        raise NotImplementedError

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states + self.change(hidden_states)


class Ffn(StreamModule):
    """``x + down(act(up(norm(x))))``. ``form="paper"``: ``down(relu(up(x)))``, no norm, no residual, random start.

    Source: LLM-Streamline, arXiv 2403.19135; its released network is the ``paper`` form.
    """

    kind = "ffn"

    def __init__(
        self, hidden_size: int, *, width: int, activation: str, bias: bool, norm: str, eps: float, form: str = "residual"
    ) -> None:
        super().__init__()
        self.form, self.activation = form, activation
        self.norm = Norm(hidden_size, kind=norm, eps=eps) if form == "residual" else None
        self.up = nn.Linear(hidden_size, width, bias=bias)
        self.down = nn.Linear(width, hidden_size, bias=bias)

    def start(self, generator: torch.Generator) -> None:
        _start_norm(self.norm)
        _start_random(self.up, generator)
        if self.form == "paper":
            _start_random(self.down, generator)
        else:
            _start_zero(self.down)

    def change(self, h_BTD: Tensor) -> Tensor:
        x_BTD = h_BTD if self.norm is None else self.norm(h_BTD)
        return self.down(ACTIVATIONS[self.activation](self.up(x_BTD)))

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        change_BTD = self.change(hidden_states)
        return change_BTD if self.form == "paper" else hidden_states + change_BTD


class Swiglu(StreamModule):
    """``x + down(act(gate(norm(x))) * up(norm(x)))``, no biases. ``activation`` is the family's own, silu for most."""

    kind = "swiglu"

    def __init__(self, hidden_size: int, *, width: int, activation: str, norm: str, eps: float) -> None:
        super().__init__()
        self.activation = activation
        self.norm = Norm(hidden_size, kind=norm, eps=eps)
        self.gate = nn.Linear(hidden_size, width, bias=False)
        self.up = nn.Linear(hidden_size, width, bias=False)
        self.down = nn.Linear(width, hidden_size, bias=False)

    def start(self, generator: torch.Generator) -> None:
        _start_norm(self.norm)
        _start_random(self.gate, generator)
        _start_random(self.up, generator)
        _start_zero(self.down)

    def change(self, h_BTD: Tensor) -> Tensor:
        x_BTD = self.norm(h_BTD)
        return self.down(ACTIVATIONS[self.activation](self.gate(x_BTD)) * self.up(x_BTD))


class Linear(StreamModule):
    """``x + W norm(x) + b``. With ``rank`` R: W = up @ down, (D, R) @ (R, D)."""

    kind = "linear"

    def __init__(self, hidden_size: int, *, norm: str, eps: float, rank: int | None = None) -> None:
        super().__init__()
        self.norm = Norm(hidden_size, kind=norm, eps=eps)
        if rank is None:
            self.map = nn.Linear(hidden_size, hidden_size)
        else:
            self.down = nn.Linear(hidden_size, rank, bias=False)
            self.up = nn.Linear(rank, hidden_size)
        self.rank = rank

    def start(self, generator: torch.Generator) -> None:
        _start_norm(self.norm)
        if self.rank is None:
            _start_zero(self.map)
        else:
            _start_random(self.down, generator)
            _start_zero(self.up)

    def change(self, h_BTD: Tensor) -> Tensor:
        x_BTD = self.norm(h_BTD)
        return self.map(x_BTD) if self.rank is None else self.up(self.down(x_BTD))


class Free(StreamModule):
    """``x + M x``, with ``bias`` also ``+ b``: no norm, it grows with the stream. Ghosted Layers, arXiv 2605.15491."""

    kind = "free"

    def __init__(self, hidden_size: int, *, bias: bool) -> None:
        super().__init__()
        self.map = nn.Linear(hidden_size, hidden_size, bias=bias)

    def start(self, generator: torch.Generator) -> None:
        _start_zero(self.map)

    def change(self, h_BTD: Tensor) -> Tensor:
        return self.map(h_BTD)


class Hadamard(StreamModule):
    """``P x`` with ``P = H diag(1 + delta) H^T``: one number per rotated channel. LinearPatch, arXiv 2505.24680.

    H is orthogonal: the Kronecker product of an orthonormal DCT-II of size m and the normalised Walsh-Hadamard matrix of size
    2^k, where D = m 2^k with odd m. For a power of two m = 1 and H is the paper's; for any other size every channel is mixed
    with every other all the same.
    """

    kind = "hadamard"

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(hidden_size))

    def start(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            self.delta.zero_()

    def change(self, h_BTD: Tensor) -> Tensor:
        rotated_BTD = rotate(_wide(h_BTD), inverse=True)
        return rotate(rotated_BTD * self.delta, inverse=False).to(h_BTD.dtype)


def new_module(kind: str, hidden_size: int, options: Mapping[str, Any]) -> StreamModule:
    """A module by name, its parameters not yet at their start."""
    module = STREAM_MODULES[kind](hidden_size, **options)
    module.options = dict(options)
    return module


def host(layers: nn.ModuleList, replacements: Mapping[str, Sequence[Mapping[str, Any]]], hidden_size: int) -> None:
    """Attach modules behind layers, inside them: names and number of the layers, and so of the caches, stay as they are.

    Args:
        replacements: index of a layer -> kind and options of each module that follows it, in order.
    """
    for index, entries in replacements.items():
        layer = layers[int(index)]
        modules = [new_module(entry["kind"], hidden_size, entry["options"]) for entry in entries]
        layer.add_module(HOSTED, nn.ModuleList(modules))
        stock: Any = type(layer)
        layer.__class__ = hosting(stock)


@functools.cache
def hosting(layer_class: Any) -> Any:
    """A family's layer that ends with its modules; under the family's own class name, by which devices are mapped."""

    class Hosting(layer_class):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            returned = super().forward(*args, **kwargs)
            h_BTD = returned[0] if isinstance(returned, tuple) else returned
            for module in getattr(self, HOSTED):
                h_BTD = module(h_BTD)
            return (h_BTD, *returned[1:]) if isinstance(returned, tuple) else h_BTD

    Hosting.__name__ = Hosting.__qualname__ = layer_class.__name__
    return Hosting


def rotate(x_BTD: Tensor, *, inverse: bool) -> Tensor:
    """``H x``, or ``H^T x`` with ``inverse``, over the last axis; H is that of :class:`Hadamard`."""
    d = x_BTD.shape[-1]
    n = d & -d  # This is the largest power of two that divides d.
    m = d // n
    y = x_BTD.reshape(*x_BTD.shape[:-1], m, n)
    half = 1
    while half < n:
        pairs = y.reshape(*y.shape[:-1], n // (2 * half), 2, half)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        y = torch.stack((a + b, a - b), dim=-2).reshape(y.shape)
        half *= 2
    y = y / math.sqrt(n)
    if m > 1:
        c_MM = _cosines(m).to(y)
        y = (c_MM.mT if inverse else c_MM) @ y
    return y.reshape(x_BTD.shape)


@functools.cache
def _cosines(m: int) -> Tensor:
    """(m, m) orthonormal DCT-II, fp64."""
    rows, columns = torch.arange(m, dtype=torch.float64)[:, None], torch.arange(m, dtype=torch.float64)[None]
    c_MM = torch.cos(math.pi / m * (columns + 0.5) * rows) * math.sqrt(2 / m)
    c_MM[0] /= math.sqrt(2)
    return c_MM


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


@torch.no_grad()
def _start_norm(norm: Norm | None) -> None:
    if norm is not None:
        norm.weight.fill_(1.0)
        if norm.bias is not None:
            norm.bias.zero_()


@torch.no_grad()
def _start_zero(linear: nn.Linear) -> None:
    for parameter in linear.parameters():
        parameter.zero_()


@torch.no_grad()
def _start_random(linear: nn.Linear, generator: torch.Generator) -> None:
    """torch's own start of a linear map, uniform in +-1/sqrt(inputs), from a generator of ours."""
    bound = 1 / math.sqrt(linear.in_features)
    for parameter in linear.parameters():
        parameter.uniform_(-bound, bound, generator=generator)
