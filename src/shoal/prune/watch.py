"""Sums over what the maps of a layer read, taken while the layer runs.

A linear module is watched where it is called. Experts are called once with all tokens: they run a second time on the real
tokens alone, in the plain form that transformers has for every family, and each product with an expert's slice of the weight is
noted with its input.

Shapes: B samples, T positions, N tokens, F inputs of a map.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from shoal.engine.view import DecoderView, Reading
from shoal.engine.workers import Workers
from shoal.fit.sums import add_gram
from shoal.fit.walk import Here
from shoal.prune.input_sums import MOST_MOMENTS, InputSums
from shoal.prune.maps import ThinMap

Note = Callable[[str, Tensor], None]
"""``note(name of a map, inputs (N, F))``."""


def sums_of(
    here: Here, maps: Sequence[ThinMap], probe: Reading, *, moments: bool, workers: Workers
) -> Iterator[dict[str, InputSums]]:
    """Sums of what each map reads, by the name of the map, in groups whose moments fit in memory together.

    Args:
        probe: a reading to find by running the layer which maps read the same tensor; those share their sums.
        moments: all second moments; False: norms alone.
    """
    leaders = _readers_of_one_tensor(here, maps, probe)
    for group in _groups([one for one in maps if leaders[one.name] == one.name], moments=moments):
        sums = {one.name: _no_sums(one, moments=moments, device=here.view.device) for one in group}

        def note(name: str, h_NF: Tensor, sums: dict[str, InputSums] = sums) -> None:
            if name in sums:
                _add(sums[name], h_NF)

        for h_BTD, reading in zip(here.inputs, here.readings, strict=True):
            with here.view.residency.layer(here.layer) as module, watched(module, group, reading, note):
                here.run(h_BTD, reading)
        sums = _of_all(sums, workers)
        yield {one.name: sums[leaders[one.name]] for one in maps if leaders[one.name] in sums}


@contextmanager
def watched(layer: nn.Module, maps: Sequence[ThinMap], reading: Reading, note: Note) -> Iterator[None]:
    """While the layer runs inside the block on this reading, note the inputs of its maps, padding left out."""
    mask_BT = reading.batch.mask_BT
    real_N = None if mask_BT is None else mask_BT.bool().flatten()
    plain = {one.module: one.name for one in maps if one.expert is None}
    experts = {one.module for one in maps if one.expert is not None}

    def watch_linear(name: str) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            note(name, _real(_first(args, kwargs), real_N))

        return before

    def watch_experts(path: str) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            _run_again(module, path, args, kwargs, real_N, note)

        return before

    with ExitStack() as stack:
        for path in [*plain, *experts]:
            hook = watch_linear(plain[path]) if path in plain else watch_experts(path)
            stack.callback(layer.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _first(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    value = args[0] if args else next(iter(kwargs.values()))
    assert isinstance(value, Tensor)
    return value


def _real(h: Tensor, real_N: Tensor | None) -> Tensor:
    """(N, F) of the tokens that are no padding."""
    h_NF = h.reshape(-1, h.shape[-1])
    if real_N is None:
        return h_NF
    if len(h_NF) != len(real_N):
        raise ValueError(
            f"a map reads {len(h_NF)} rows where the text has {len(real_N)} tokens, so padding cannot be told from text; use "
            "text.packing: packed"
        )
    return h_NF[real_N.to(h_NF.device)]


class _Products(TorchFunctionMode):
    """Notes the inputs of every product with a slice of one of some weights."""

    def __init__(self, weights: Mapping[str, Tensor], note: Note) -> None:
        super().__init__()
        self.weights, self.note = weights, note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__) and len(args) >= 2:
            self._look(args[0], args[1])
        return func(*args, **(kwargs or {}))

    def _look(self, h_NF: Tensor, slice_: Tensor) -> None:
        for name, weight in self.weights.items():
            if slice_.ndim == 2 and slice_.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr():
                expert, rest = divmod(int(slice_.storage_offset()) - int(weight.storage_offset()), int(weight.stride(0)))
                if not rest and 0 <= expert < len(weight):
                    self.note(f"{name}[{expert}]", h_NF)


def _run_again(
    module: nn.Module, path: str, args: Sequence[Any], kwargs: Mapping[str, Any], real_N: Tensor | None, note: Note
) -> None:
    """Run experts on real tokens, one expert after the other, for what each of their maps reads."""

    def real(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value if real_N is None or len(value) != len(real_N) else value[real_N.to(value.device)]

    if real_N is not None and len(_first(args, kwargs)) != len(real_N):
        _real(_first(args, kwargs), real_N)  # The call raises: which of the tokens are padding is not known.
    weights = {f"{path}.{name}": value for name, value in module._parameters.items() if value is not None and value.ndim == 3}
    # Weights that replace the module's own stand in its parameters while the layer runs with them.
    config: Any = module.config
    before = config._experts_implementation_internal
    config._experts_implementation_internal = "eager"
    try:
        with _Products(weights, note):
            module.forward(*[real(one) for one in args], **{name: real(one) for name, one in kwargs.items()})
    finally:
        config._experts_implementation_internal = before


def _readers_of_one_tensor(here: Here, maps: Sequence[ThinMap], probe: Reading) -> dict[str, str]:
    """Name of each map to that of the first map that reads the very same tensor."""
    seen: list[tuple[str, Tensor]] = []
    leaders = {one.name: one.name for one in maps}
    plain = [one for one in maps if one.expert is None]

    def note(name: str, h: Tensor) -> None:
        same = next((other for other, x in seen if x.data_ptr() == h.data_ptr() and x.shape == h.shape), None)
        seen.append((name, h))  # The tensor is kept, so that no later one takes its place in memory.
        leaders[name] = same or name

    unpadded = Reading(type(probe.batch)(probe.batch.ids_BT), probe.h_BTD, probe.calls)
    with here.view.residency.layer(here.layer) as module, watched(module, plain, unpadded, note):
        here.run(probe.h_BTD, probe)
    return leaders


def _groups(maps: Sequence[ThinMap], *, moments: bool) -> Iterator[list[ThinMap]]:
    """Neighbours whose sums fit in memory together; all of them where only norms are summed."""
    group: list[ThinMap] = []
    held = 0
    for one in maps:
        n_bytes = 8 * one.shape[1] ** 2 if moments else 0
        if group and held + n_bytes > MOST_MOMENTS:
            yield group
            group, held = [], 0
        group.append(one)
        held += n_bytes
    if group:
        yield group


def _no_sums(one: ThinMap, *, moments: bool, device: torch.device) -> InputSums:
    n_inputs = one.shape[1]

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=device)

    moments_FF = zeros(n_inputs, n_inputs) if moments else None
    return InputSums(zeros(n_inputs), moments_FF, torch.zeros((), dtype=torch.int64))


def _add(sums: InputSums, h_NF: Tensor) -> None:
    """Products in fp32 (fp64 for fp64 models), sums in fp64."""
    h_NF = h_NF.to(torch.promote_types(h_NF.dtype, torch.float32))
    sums.n_tokens.add_(len(h_NF))
    if sums.moments_FF is None:
        sums.squares_F.add_(h_NF.square().sum(0, dtype=torch.float64))
    else:
        add_gram(sums.moments_FF, h_NF)
        sums.squares_F.copy_(sums.moments_FF.diagonal())


def _of_all(sums: Mapping[str, InputSums], workers: Workers) -> dict[str, InputSums]:
    """Added over the processes of the job."""
    found: dict[str, InputSums] = {}
    for name, one in sums.items():
        parts = {"squares": one.squares_F, "n": one.n_tokens}
        if one.moments_FF is not None:
            parts["moments"] = one.moments_FF
        parts = workers.sum(parts)
        found[name] = InputSums(parts["squares"], parts.get("moments"), parts["n"])
    return found


def layer_parameters(view: DecoderView, layer: int, overrides: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The parameters of a layer as a student runs them; valid while the layer is in memory."""
    with view.residency.layer(layer) as module:
        return {name: value.detach() for name, value in module.named_parameters()} | dict(overrides or {})
