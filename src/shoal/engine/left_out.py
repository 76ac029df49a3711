"""Leaving sublayers out of a layer while it runs: what they write into the stream is zero, and where it can be they do not run.

Zeroing what a sublayer's output map returns is right in every family. A sublayer that is a module of its own need not run at
all where an answer of zeros makes the same layer, bit for bit; that is found by running one layer of each kind both ways.
Shapes: B samples, T positions, D hidden size.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shoal.engine.families import contribution, sublayer

KINDS = ("attn", "mlp")
Run = Callable[[], Tensor]
"""Runs the layer on some states and returns those behind it."""


class LeftOut:
    """What is known of the sublayers of one model.

    Args:
        family: its model type, for messages.
    """

    def __init__(self, family: str) -> None:
        self._family = family
        self._checked: set[tuple[int, str]] = set()
        self._answers: dict[tuple[type, type, str], int | None] = {}  # ``_find_out`` fills it.

    def share_run(self, module: nn.Module, kinds: Collection[str]) -> float:
        """The part of a layer that runs without some sublayers, each of which is half of it."""
        return 1 - sum(self._is_idle(module, kind) for kind in kinds) / 2

    @contextmanager
    def without(self, layer: int, kinds: Collection[str], module: nn.Module, run: Run, h_BTD: Tensor) -> Iterator[None]:
        """The layer runs without these sublayers inside the block.

        Args:
            layer: its index; ``module``: the layer.
            run: runs it on ``h_BTD``, for what has to be found out.
        Raises:
            ValueError: a sublayer that cannot be removed on its own.
        """
        for kind in sorted(kinds):
            self._check(layer, kind, module, run, h_BTD)
        with self._off(module, kinds, h_BTD):
            yield

    def _check(self, layer: int, kind: str, module: nn.Module, run: Run, h_BTD: Tensor) -> None:
        """Once per sublayer: with attention and MLP zeroed the layer must be the identity, else refuse by name."""
        if (layer, kind) in self._checked:
            return
        if contribution(module, kind) is None:
            raise ValueError(
                f"model type {self._family!r}: layer {layer} has no {kind} sublayer that can be removed on its own"
            )
        both = frozenset(k for k in KINDS if contribution(module, k) is not None)
        for each in sorted(both):
            self._find_out(module, each, run, h_BTD)
        with torch.no_grad(), self._off(module, both, h_BTD):
            same = torch.equal(run(), h_BTD)
        if not same:
            raise ValueError(
                f"model type {self._family!r}: layer {layer} is not the identity without its sublayers, so removing its {kind} "
                "alone has no exact meaning; remove whole layers"
            )
        self._checked.update((layer, k) for k in both)

    def _find_out(self, module: nn.Module, kind: str, run: Run, h_BTD: Tensor) -> None:
        """Once per kind of layer: how many things the sublayer returns (0: a tensor), or None where it has to run.

        It has to where zeros in its place do not make the same layer; some families add the stream inside the sublayer.
        """
        part, key = _part(module, kind), _key(module, kind)
        if part is None or key in self._answers:
            return
        answers: list[Any] = []
        handle = part.register_forward_hook(lambda _, args, answer: answers.append(answer))
        try:
            with torch.no_grad(), _zeroed(module, (kind,)):
                wanted = run()
        finally:
            handle.remove()
        self._answers[key] = None
        answer = answers[0] if len(answers) == 1 else None
        first = answer[0] if isinstance(answer, tuple) else answer
        if isinstance(first, Tensor) and first.shape == h_BTD.shape:
            n = len(answer) if isinstance(answer, tuple) else 0
            with torch.no_grad(), _silent([(part, n)], h_BTD):
                try:
                    same = torch.equal(run(), wanted)
                except (TypeError, AttributeError):  # The layer reads more of the answer than its first part.
                    same = False
            self._answers[key] = n if same else None

    def _is_idle(self, module: nn.Module, kind: str) -> bool:
        """Whether a sublayer that is left out does not run. One that somebody listens to does."""
        part = _part(module, kind)
        if part is None or self._answers.get(_key(module, kind)) is None:
            return False
        return not any(one._forward_hooks or one._forward_pre_hooks for one in part.modules())

    @contextmanager
    def _off(self, module: nn.Module, kinds: Collection[str], h_BTD: Tensor) -> Iterator[None]:
        idle = [kind for kind in kinds if self._is_idle(module, kind)]
        silent = [(_part(module, kind), self._answers[_key(module, kind)]) for kind in idle]
        with _zeroed(module, [kind for kind in kinds if kind not in idle]), _silent(silent, h_BTD):
            yield


def _key(module: nn.Module, kind: str) -> tuple[type, type, str]:
    return type(module), type(_part(module, kind)), kind


def _part(module: nn.Module, kind: str) -> nn.Module | None:
    """The sublayer, where it is a module that ends in what contributes to the stream."""
    found, path = sublayer(module, kind), contribution(module, kind)
    return found[1] if found and path and f"{path}.".startswith(f"{found[0]}.") else None


@contextmanager
def _silent(parts: Sequence[tuple[nn.Module | None, int | None]], h_BTD: Tensor) -> Iterator[None]:
    """Modules answer with zeros, and with nothing beside them, instead of running."""
    patched = []
    for part, n in parts:
        assert part is not None and n is not None
        zeros_BTD = torch.zeros_like(h_BTD)
        answer = zeros_BTD if n == 0 else (zeros_BTD, *[None] * (n - 1))
        vars(part)["forward"] = lambda *args, answer=answer, **kwargs: answer
        patched.append(part)
    try:
        yield
    finally:
        for part in patched:
            del vars(part)["forward"]


@contextmanager
def _zeroed(layer: nn.Module, kinds: Collection[str]) -> Iterator[None]:
    """Zero what the output maps of sublayers return."""

    def zero(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (torch.zeros_like(output[0]), *output[1:])
        return torch.zeros_like(output)

    handles = [layer.get_submodule(contribution(layer, kind) or "").register_forward_hook(zero) for kind in kinds]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
