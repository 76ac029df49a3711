"""One forward of a model with the states at some of its boundaries, taken by hooks that live for that forward alone.

Shapes: B samples, T positions, D hidden size, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Streams:
    """What a model made of a batch.

    Attributes:
        logits_BTV: in the model's dtype.
        states: (B, T, D) of each boundary that was asked for.
    """

    logits_BTV: Tensor
    states: dict[int, Tensor]


def run_model(model: Any, layers: Sequence[nn.Module], batch: dict[str, Tensor], boundaries: Iterable[int] = ()) -> Streams:
    """Run a model on a batch of :func:`shoal.train.heal.text_rows.collate`.

    Args:
        model: the model, or what wraps it for several processes.
        layers: its decoder layers.
        boundaries: in 0..n; boundary n is the output of the last layer before the final norm.
    """
    with _taps(layers, boundaries) as states:
        made = model(input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"), use_cache=False)
    # A backward pass that recomputes activations runs the layers once more; by then the hooks are gone.
    return Streams(made.logits, dict(states))


@contextmanager
def _taps(layers: Sequence[nn.Module], boundaries: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    states: dict[int, Tensor] = {}
    hooks = []

    def entering(boundary: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states[boundary] = args[0] if args else kwargs["hidden_states"]

        return hook

    def leaving(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        states[len(layers)] = output[0] if isinstance(output, tuple) else output

    for boundary in boundaries:
        if boundary < len(layers):
            hooks.append(layers[boundary].register_forward_pre_hook(entering(boundary), with_kwargs=True))
        else:
            hooks.append(layers[-1].register_forward_hook(leaving))
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()
