"""DecoderView: any Hugging Face causal language model as embed -> layer 0 .. layer L-1 -> head.

Replay, not hooks: a dry pass of the model's own forward, with every layer's ``forward`` replaced by a stub that records its
arguments and returns its input, yields boundary 0 and the exact arguments of each layer (masks per layer type, rotary
embeddings, ...). Layers then run on any hidden states with those arguments, bit for bit as the model runs them.
Shapes: B samples, T positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NoReturn, cast

import torch
from torch import Tensor, nn

from shoal.engine.families import contribution, find_layers, output_map, refuse_coupled_layers, sublayer, text_config
from shoal.engine.left_out import LeftOut
from shoal.engine.quantised import shapes_of
from shoal.engine.residency import Residency, Resident
from shoal.engine.student import TEACHER, Step, Student
from shoal.words.types import Batch, Branches

TapKind = Literal["boundary", "attn_in", "mlp_in", "attn_map_in", "mlp_map_in", "attn_out", "mlp_out"]


@dataclass(frozen=True, order=True)
class Tap:
    """One place in the teacher's stream: boundary ``index`` (0..L), or a place inside layer ``index``.

    ``attn_in``, ``mlp_in``: what the sublayer reads; ``attn_map_in``, ``mlp_map_in``: what the output map reads;
    ``attn_out``, ``mlp_out``: what the sublayer (its output map, where it has one) returns.
    """

    kind: TapKind
    index: int


@dataclass(frozen=True)
class LayerCall:
    """Recorded arguments of one layer; the hidden states are taken out. ``by_name``: they were passed as a keyword."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    by_name: bool

    def __call__(self, layer: Callable[..., Any], h_BTD: Tensor) -> Any:
        if self.by_name:
            return layer(*self.args, hidden_states=h_BTD, **self.kwargs)
        return layer(h_BTD, *self.args, **self.kwargs)


@dataclass(frozen=True)
class Reading:
    """A batch as the layers see it: boundary 0 and the arguments of every layer."""

    batch: Batch
    h_BTD: Tensor
    calls: tuple[LayerCall, ...]


class _Beside:
    """Marks what a stub returns beside the hidden states, to see whether the model hands it to the next layer."""


class _Stop(Exception):
    """Ends the model's own forward once the dry pass has what it needs."""


class DecoderView:
    """Runs any subset of a model's layers on any hidden states.

    The model is put in eval mode and keeps its weights; the view never edits it. Not thread-safe: stubs are set on the
    model's own layers while its forward runs.

    Args:
        model: a causal language model of Hugging Face transformers.
        residency: where layers live; in memory unless given.
    Raises:
        ValueError: the architecture cannot be replayed (named, with the reason).
    """

    n_cached_calls = 4  # So many batch shapes and padding patterns have their layer arguments kept.

    def __init__(self, model: nn.Module, *, residency: Residency | None = None) -> None:
        refuse_coupled_layers(getattr(model, "config", None))
        self.model = cast(Any, model.eval())
        self.layers_path, layers = find_layers(model)
        self._stub_layers = layers
        self.residency: Residency = residency or Resident(layers)
        self.n_layers = len(layers)
        self.config = text_config(self.model.config)
        self.family: str = self.model.config.model_type
        self.hidden_size: int = self.config.hidden_size
        self._calls: OrderedDict[tuple[Any, ...], tuple[LayerCall, ...]] = OrderedDict()
        self._left_out = LeftOut(self.family)
        self._n_returned = 0
        self._beside: Any = None  # Stubs return this beside the hidden states.
        self._probe()

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.get_input_embeddings().weight.dtype

    @cached_property
    def shapes(self) -> Any:
        """The model as its weights are counted: itself, or, where it holds packed numbers, without weights and unpacked."""
        return shapes_of(self.model)

    # -- reading a batch ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def read(self, batch: Batch) -> Reading:
        """Boundary 0 and every layer's arguments for a batch. The arguments are cached per shape and padding pattern."""
        batch = batch.to(self.device)
        if batch.branches is not None:  # No other batch has such arguments.
            recorded = self._dry_pass(batch, n_stubs=self.n_layers)
            return Reading(batch, recorded[0][0], tuple(call for _, call in recorded))
        key = (batch.ids_BT.shape, None if batch.mask_BT is None else batch.mask_BT.cpu().numpy().tobytes())
        if key in self._calls:
            self._calls.move_to_end(key)
            calls = self._calls[key]
            h = self._dry_pass(batch, n_stubs=1)[0][0]
        else:
            recorded = self._dry_pass(batch, n_stubs=self.n_layers)
            h, calls = recorded[0][0], tuple(call for _, call in recorded)
            self._calls[key] = calls
            while len(self._calls) > self.n_cached_calls:
                self._calls.popitem(last=False)
        return Reading(batch, h, calls)

    @torch.no_grad()
    def head(self, h_BTD: Tensor, reading: Reading) -> Tensor:
        """Logits (B, T, V) of boundary L: the model's own forward with stubs, the last of which returns ``h``."""
        return self._head(h_BTD, reading)

    def head_with_grad(self, h_BTD: Tensor, reading: Reading) -> Tensor:
        """As :meth:`head`, differentiable in ``h``."""
        return self._head(h_BTD, reading)

    def _head(self, h_BTD: Tensor, reading: Reading) -> Tensor:
        def last(*args: Any, **kwargs: Any) -> Any:
            return self._as_returned(h_BTD)

        stubs = [self._pass_through] * (self.n_layers - 1) + [last]
        with self._stubs(stubs):
            return self._forward(reading.batch).logits

    # -- running layers ----------------------------------------------------------------------------------------------

    def run_layer(self, layer: int, h_BTD: Tensor, reading: Reading, *, student: Student = TEACHER) -> Tensor:
        """Boundary ``layer`` to boundary ``layer + 1`` of a student. Gradients flow unless the caller disables them."""
        for step in student.steps(layer):
            h_BTD = self.run_step(step, h_BTD, reading)
        return h_BTD

    def run_step(self, step: Step, h_BTD: Tensor, reading: Reading) -> Tensor:
        """One step of a student: (B, T, D) to (B, T, D), on the device it came from."""
        return self._run_step(step, h_BTD, reading).to(h_BTD.device)  # A layer of a spread model may live elsewhere.

    def _run_step(self, step: Step, h_BTD: Tensor, reading: Reading) -> Tensor:
        if step.module is not None:
            for source, part in step.parts:
                h_BTD = _first(reading.calls[source](part, h_BTD))
            return h_BTD
        layer = step.layer
        with self.residency.layer(layer) as module:
            call = reading.calls[layer]

            def run() -> Tensor:
                return _first(call(module, h_BTD))

            with self._left_out.without(layer, step.zeroed, module, run, h_BTD):
                if step.overrides:
                    overrides = dict(step.overrides)
                    return _first(call(lambda *a, **k: torch.func.functional_call(module, overrides, a, k), h_BTD))
                return run()

    def share_run(self, step: Step) -> float:
        """The part of a layer that a step runs: a half less for each sublayer that is left out and need not run."""
        return 1.0 if not step.zeroed else self._left_out.share_run(self._stub_layers[step.layer], step.zeroed)

    def stream(
        self,
        reading: Reading,
        *,
        start: int = 0,
        stop: int | None = None,
        h_BTD: Tensor | None = None,
        student: Student = TEACHER,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (boundary, state) for boundaries ``start .. stop``, the first being the given state (boundary 0 by default)."""
        h = reading.h_BTD if h_BTD is None else h_BTD
        yield start, h
        for layer in range(start, self.n_layers if stop is None else stop):
            h = self.run_layer(layer, h, reading, student=student)
            yield layer + 1, h

    @torch.no_grad()
    def logits(self, batch: Batch, *, student: Student = TEACHER) -> Tensor:
        """Logits (B, T, V) of a student on one batch."""
        reading = self.read(batch)
        ((_, h_BTD),) = deque(self.stream(reading, student=student), maxlen=1)  # The deque keeps one boundary at a time.
        return self.head(h_BTD, reading)

    @contextmanager
    def tapped(self, layer: int, taps: Sequence[Tap], values: dict[Tap, Tensor]) -> Iterator[None]:
        """While ``layer`` runs inside the block, put what the taps ask for into ``values``."""
        if not taps:
            yield
            return
        with self.residency.layer(layer) as module:
            handles = [_listen(module, tap, values) for tap in taps]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # -- internals ---------------------------------------------------------------------------------------------------

    def _forward(self, batch: Batch) -> Any:
        if batch.branches is not None:
            return self._forward_branches(batch.ids_BT, batch.branches)
        mask = None if batch.mask_BT is None else batch.mask_BT.long()
        return self.model(input_ids=batch.ids_BT, attention_mask=mask, use_cache=False, return_dict=True)

    def _forward_branches(self, ids_BT: Tensor, branches: Branches) -> Any:
        # The mask is additive, the form that eager attention and SDPA both take, with the least finite number, as the library
        # writes it.
        sees_B1TT = branches.sees_BTT[:, None]
        mask_B1TT = torch.zeros(sees_B1TT.shape, dtype=self.dtype, device=sees_B1TT.device)
        mask_B1TT.masked_fill_(~sees_B1TT, torch.finfo(self.dtype).min)
        return self.model(
            input_ids=ids_BT, attention_mask=mask_B1TT, position_ids=branches.positions_BT, use_cache=False, return_dict=True
        )

    def _dry_pass(self, batch: Batch, *, n_stubs: int) -> list[tuple[Tensor, LayerCall]]:
        recorded: list[tuple[Tensor, LayerCall]] = []

        def record(*args: Any, **kwargs: Any) -> Any:
            by_name = "hidden_states" in kwargs
            h = kwargs["hidden_states"] if by_name else args[0]
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            recorded.append((h, LayerCall(args if by_name else args[1:], rest, by_name)))
            if len(recorded) == n_stubs:
                raise _Stop
            return self._as_returned(h)

        try:
            with self._stubs([record] * self.n_layers):
                self._forward(batch)
        except _Stop:
            pass
        if len(recorded) != n_stubs:
            raise ValueError(
                f"model type {self.family!r}: its forward ran {len(recorded)} of {n_stubs} layers; it cannot be replayed"
            )
        return recorded

    def _as_returned(self, h_BTD: Tensor) -> Any:
        return (h_BTD, *([self._beside] * (self._n_returned - 1))) if self._n_returned else h_BTD

    def _pass_through(self, *args: Any, **kwargs: Any) -> Any:
        return self._as_returned(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    @contextmanager
    def _stubs(self, stubs: list[Callable[..., Any]]) -> Iterator[None]:
        """Set ``forward`` on the layer instances; classes, attributes and the layer list stay as the model knows them."""
        before = [layer.__dict__.get("forward") for layer in self._stub_layers]
        for layer, stub in zip(self._stub_layers, stubs, strict=True):
            layer.forward = stub
        try:
            yield
        finally:
            for layer, old in zip(self._stub_layers, before, strict=True):
                if old is None:
                    del layer.__dict__["forward"]
                else:
                    layer.forward = old

    @torch.no_grad()
    def _probe(self) -> None:
        """Learn what layers return, and refuse models whose layers read more than the stream and the positions."""
        self._learn_what_layers_return()
        first, second = (Batch(torch.full((1, 3), token, dtype=torch.long, device=self.device)) for token in (0, 1))
        ours, other = (self._dry_pass(batch, n_stubs=self.n_layers) for batch in (first, second))
        for index, ((_, a), (_, b)) in enumerate(zip(ours, other, strict=True)):
            broken = next((name for name, value in _arguments(a) if _holds_nan(value)), None)
            if broken is not None:
                raise ValueError(
                    f"model type {self.family!r}: layer {index} receives {broken!r} that holds NaN before any weight was used; "
                    "config.json states what cannot be computed, such as a rotation by 0: mend it"
                )
            name = _differing_argument(a, b)
            if name is not None:
                self._refuse(f"layer {index} receives {name!r}, which depends on more than the positions")
        self._beside = _Beside()
        try:
            for index, (_, call) in enumerate(self._dry_pass(first, n_stubs=self.n_layers)):
                for name, value in _arguments(call):
                    if value is self._beside:
                        self._refuse(f"layer {index} receives {name!r} from the layer before it")
        finally:
            self._beside = None

    def _refuse(self, reason: str) -> NoReturn:
        raise ValueError(
            f"model type {self.family!r}: {reason}; its layers feed each other outside the residual stream "
            "and cannot be replayed"
        )

    def _learn_what_layers_return(self) -> None:
        batch = Batch(torch.zeros(1, 3, dtype=torch.long, device=self.device))
        h, call = self._dry_pass(batch, n_stubs=1)[0]
        with self.residency.layer(0) as layer:
            returned = call(layer, h)
        if isinstance(returned, tuple):
            self._n_returned = len(returned)
        elif not isinstance(returned, Tensor):
            raise ValueError(
                f"model type {self.family!r}: layers return {type(returned).__name__}; a tensor or a tuple is needed"
            )
        if _first(returned).shape != h.shape:
            raise ValueError(f"model type {self.family!r}: layer 0 maps {tuple(h.shape)} to {tuple(_first(returned).shape)}")

    def map_names(self, layer: int) -> dict[str, str | None]:
        """Path of the output map of each sublayer kind of a layer (None: no single linear map)."""
        return {kind: output_map(self._stub_layers[layer], kind) for kind in ("attn", "mlp")}


def _listen(layer: nn.Module, tap: Tap, values: dict[Tap, Tensor]) -> Any:
    kind = "attn" if tap.kind.startswith("attn") else "mlp"
    inside = sublayer(layer, kind)
    path = contribution(layer, kind) if tap.kind.endswith("_out") else output_map(layer, kind)
    if tap.kind in ("attn_in", "mlp_in"):
        path = None if inside is None else inside[0]
    if path is None:
        raise ValueError(f"layer {tap.index} has no place {tap.kind!r}: its {kind} sublayer does not end in one linear map")
    place = layer.get_submodule(path)
    if tap.kind.endswith("_in"):

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values[tap] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]

        return place.register_forward_pre_hook(before, with_kwargs=True)

    def after(module: nn.Module, args: Any, output: Any) -> None:
        values[tap] = _first(output).clone()  # Falcon adds the answer of the attention to that of the MLP in place.

    return place.register_forward_hook(after)


def _first(returned: Any) -> Tensor:
    return returned[0] if isinstance(returned, tuple) else returned


def _arguments(call: LayerCall) -> list[tuple[str, Any]]:
    return [(f"argument {i + 1}", value) for i, value in enumerate(call.args)] + list(call.kwargs.items())


def _differing_argument(a: LayerCall, b: LayerCall) -> str | None:
    """Name of an argument that carries layer-to-layer state or differs between two texts of one shape."""
    for (name, x), (_, y) in zip(_arguments(a), _arguments(b), strict=True):
        shared_state = isinstance(x, (dict, list)) and not x  # An empty container is there to be filled by the layers.
        if shared_state or not _same(x, y):
            return name
    return None


def _holds_nan(x: Any) -> bool:
    if isinstance(x, Tensor):
        return x.is_floating_point() and bool(torch.isnan(x).any())
    return isinstance(x, (tuple, list)) and any(_holds_nan(part) for part in x)


def _same(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor):
        return isinstance(y, Tensor) and x.shape == y.shape and torch.equal(x, y)
    if isinstance(x, dict):
        return x.keys() == y.keys() and all(_same(x[key], y[key]) for key in x)
    if isinstance(x, (tuple, list)):
        return len(x) == len(y) and all(_same(p, q) for p, q in zip(x, y, strict=True))
    if hasattr(x, "shape") or type(x).__module__.startswith("torch"):
        return type(x) is type(y)
    return bool(x is y or x == y or type(x) is type(y))
