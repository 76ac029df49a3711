"""Cards that are not there: tensors on ``cuda`` live on the CPU, but say otherwise, and meeting one from elsewhere is an error.

What runs under :func:`pretend_card` computes what the CPU computes, bit for bit, and fails where a real card would because
tensors are on two devices: the rules are those of CUDA (a tensor of no dimension may come from the CPU, indices too).
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from concurrent.futures import Future
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CARD = torch.device("cuda", 0)
MOVES = {"aten::copy_", "aten::_to_copy", "aten::set_", "aten::set_data"}
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_unsafe_index", "aten::_index_put_impl_"}
NO_SCALARS = {"aten::cat", "aten::stack", "aten::mm", "aten::bmm", "aten::addmm", "aten::embedding"}


class Tags:
    """Which storages are on which card."""

    def __init__(self):
        self._on = {}

    def card(self, tensor):
        """Number of the card, or None for the CPU."""
        return self._on.get(tensor.untyped_storage()._cdata, (None,))[0]

    def has(self, tensor):
        return self.card(tensor) is not None

    def set(self, tensor, card):
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._on:
            self._on.pop(key)[1].detach()
        if card is not None:
            self._on[key] = (card, weakref.finalize(storage, self._on.pop, key, None))


class Watch(TorchDispatchMode):
    """What an operation makes is where its inputs are; inputs on two devices are an error."""

    def __init__(self, tags):
        super().__init__()
        self.tags = tags
        self.inside = None  # What an operation makes on its way is on the card that it was asked for on, too.

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function._schema.name
        watched = [args[0], *args[2:], kwargs] if name in INDEXED else [args, kwargs]
        tensors = [one for one in tree_leaves(watched) if isinstance(one, Tensor) and one.device.type == "cpu"]
        on = [self.tags.card(one) for one in tensors]
        cards = {one for one in on if one is not None}
        others = [one for one, card in zip(tensors, on, strict=True) if card is None and (one.ndim or name in NO_SCALARS)]
        if cards and others and name not in MOVES:
            raise RuntimeError(f"{name}: tensors on the card and on the CPU (of shape {tuple(others[0].shape)})")
        if len(cards) > 1 and name not in MOVES:
            raise RuntimeError(f"{name}: tensors on cards {sorted(cards)}")
        made = function(*args, **kwargs)
        if self.inside is None and (name == "aten::copy_" or not cards):
            return made
        for one in tree_leaves(made):
            if isinstance(one, Tensor) and one.device.type == "cpu":
                self.tags.set(one, min(cards, default=self.inside))
        return made


class Rename(TorchFunctionMode):
    """Takes ``cuda`` out of what torch is asked for, and puts it where a tensor is asked for its device."""

    def __init__(self, watch):
        super().__init__()
        self.watch, self.tags = watch, watch.tags

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function == torch._C._nn._parse_to:  # The call reads the arguments of Module.to.
            return function(*args, **kwargs)
        pinned = kwargs.pop("pin_memory", False)
        assert not pinned or kwargs.get("device") is None
        if function == Tensor.device.__get__:
            return self._device_of(args[0])
        if function == Tensor.is_cuda.__get__:
            return self._on(args[0])
        if function in (Tensor.numpy, Tensor.__array__) and self._on(args[0]):
            raise TypeError("a tensor on the card has no numpy array")
        if function in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._moved(function, args, kwargs)
        device = kwargs.get("device")
        if device is None or torch.device(device).type == "meta":
            return self._inside(function, args, kwargs)
        kwargs["device"] = torch.device("cpu")
        made = function(*args, **kwargs)
        for one in tree_leaves(made):
            if isinstance(one, Tensor):
                self.tags.set(one, _card_of(torch.device(device)))
        return made

    def _inside(self, function, args, kwargs):
        on = [one for one in tree_leaves([args, kwargs]) if isinstance(one, Tensor) and self._on(one)]
        if function == Tensor.copy_ or not on:
            return function(*args, **kwargs)
        if function == torch.histc and not on[0].is_floating_point():  # Only the card has this attribute.
            return function(on[0].float(), *args[1:], **kwargs).to(on[0].dtype)
        before, self.watch.inside = self.watch.inside, self.tags.card(on[0])
        try:
            return function(*args, **kwargs)
        finally:
            self.watch.inside = before

    def _device_of(self, tensor):
        return torch.device("cuda", self.tags.card(tensor)) if self._on(tensor) else Tensor.device.__get__(tensor)

    def _on(self, tensor):
        return not tensor.is_meta and self.tags.has(tensor)

    def _moved(self, function, args, kwargs):
        tensor, *rest = args
        if function == Tensor.cpu:
            wanted, rest = torch.device("cpu"), ["cpu"]
        elif function == Tensor.cuda:
            wanted, rest = CARD, ["cpu"]
        else:
            other = next((one for one in rest if isinstance(one, Tensor)), None)
            if other is not None:
                return self._moved(function, (tensor, self._device_of(other), other.dtype), kwargs)
            named = (one for one in rest if isinstance(one, (str, torch.device, int)) and not isinstance(one, bool))
            asked = kwargs.pop("device", next(named, None))
            if asked is None:
                return function(tensor, *rest, **kwargs)
            wanted = torch.device(asked)
            rest = [one for one in rest if not isinstance(one, (str, torch.device))]
        if wanted.type == "meta" or tensor.is_meta:
            return Tensor.to(tensor, *["meta" if wanted.type == "meta" else "cpu"], *rest[:1])
        kwargs.pop("non_blocking", None)
        moved = Tensor.to(tensor, "cpu", *[one for one in rest if one != "cpu"], **kwargs)
        card = _card_of(wanted)
        if card != self.tags.card(tensor) and moved.requires_grad:
            return Moved.apply(moved, self.tags, card, self.tags.card(tensor))
        if card != self.tags.card(tensor) and moved.untyped_storage()._cdata == tensor.untyped_storage()._cdata:
            moved = moved.clone()
        self.tags.set(moved, card)
        return moved


class Moved(torch.autograd.Function):
    """A copy on another device, whose gradient goes back to where the original is."""

    @staticmethod
    def forward(ctx, tensor, tags, card, home):
        ctx.tags, ctx.home = tags, home
        copy = tensor.clone()
        tags.set(copy, card)
        return copy

    @staticmethod
    def backward(ctx, gradient):
        copy = gradient.clone()
        ctx.tags.set(copy, ctx.home)
        return copy, None, None, None


def _card_of(device):
    """Number of a card; None for another device."""
    return (device.index or 0) if device.type == "cuda" else None


class AtOnce:
    """An executor without threads: the modes are of one thread."""

    def __init__(self, *args, **kwargs):
        pass

    def submit(self, function, *args, **kwargs):
        done = Future()
        try:
            done.set_result(function(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


@contextlib.contextmanager
def pretend_card(*, free=1 << 30, n_cards=1):
    """Inside the block ``--device cuda`` works; ``free`` bytes of each card are."""
    tags = Tags()
    nothing = mock.MagicMock()
    numbers = {"memory_reserved": 0, "memory_allocated": 0, "max_memory_allocated": 0}
    with contextlib.ExitStack() as stack:
        patch = functools.partial(mock.patch.object)
        for name, value in numbers.items():
            stack.enter_context(patch(torch.cuda, name, lambda *a, value=value: value))
        for name in ("synchronize", "reset_peak_memory_stats", "Stream", "default_stream", "current_stream"):
            stack.enter_context(patch(torch.cuda, name, nothing))
        stack.enter_context(patch(torch.Tensor, "record_stream", lambda *a: None, create=True))
        stack.enter_context(patch(torch.cuda, "stream", lambda stream: contextlib.nullcontext()))
        stack.enter_context(patch(torch.cuda, "mem_get_info", lambda *a: (free, 2 * free)))
        stack.enter_context(patch(torch.cuda, "device_count", lambda: n_cards))
        stack.enter_context(patch(torch.cuda, "get_device_capability", lambda *a: (0, 0)))
        stack.enter_context(patch(torch.cuda, "get_device_name", lambda *a: "a card that is not there"))
        stack.enter_context(mock.patch("shoal.engine.streamed.ThreadPoolExecutor", AtOnce))
        stack.enter_context(mock.patch.dict("os.environ", {"HF_DEACTIVATE_ASYNC_LOAD": "1"}))
        # Grouping by device is done in C++, which sees the CPU alone.
        stack.enter_context(mock.patch("torch.optim.adam._default_to_fused_or_foreach", lambda *a, **k: (False, False)))
        watch = stack.enter_context(Watch(tags))
        stack.enter_context(Rename(watch))
        yield tags
