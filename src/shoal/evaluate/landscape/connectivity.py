"""Layer-wise linear mode connectivity between two checkpoints of one shape. arXiv 2307.06966.

B's layers, or points on the way to them, are overlays on A; what is no layer (embedding, final norm, head) is moved in the
model itself while a line that moves everything is measured. All losses are of the same samples: their differences are paired.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.evaluate.landscape.line import Barrier, LinePoint
from shoal.evaluate.landscape.random_point import random_point
from shoal.measure.oracle import Oracle

STEPS_BETWEEN = (0.0, 0.25, 0.5, 0.75, 1.0)

N_DRAWS = 5
"""Random points for each layer, as in the paper."""


class WeightLine:
    """The line from A to B.

    Args:
        ours, theirs: views of A and of B, all layers in memory.
    Raises:
        ValueError: their parameters have other names or shapes.
    """

    def __init__(self, ours: DecoderView, theirs: DecoderView) -> None:
        if ours.n_layers != theirs.n_layers:
            raise ValueError(
                f"the two have {ours.n_layers} and {theirs.n_layers} layers; a line needs two checkpoints of one shape"
            )
        self.ours = ours
        self.layers = [(_parameters(ours, layer), _parameters(theirs, layer)) for layer in range(ours.n_layers)]
        self.outside = (_outside(ours), _outside(theirs))
        for where, (a, b) in [*((f"layer {i}", pair) for i, pair in enumerate(self.layers)), ("the rest", self.outside)]:
            wrong = sorted(name for name in a.keys() | b.keys() if _shape(a, name) != _shape(b, name))
            if wrong:
                raise ValueError(
                    f"{where}: {wrong[0]!r} is {_shape(a, wrong[0])} in one and {_shape(b, wrong[0])} in the other; a line "
                    "needs two checkpoints of one shape"
                )

    def students(self, parts: Sequence[Sequence[int]], t: float) -> list[Student]:
        """For each part, A with those layers ``t`` of the way to B. They share the values of a layer, so all take one model."""
        moved = {layer: at(*self.layers[layer], t) for layer in sorted({layer for part in parts for layer in part})}
        return [Student(overrides={layer: moved[layer] for layer in part}) for part in parts]

    @contextmanager
    def rest_at(self, t: float) -> Iterator[None]:
        """While the block runs, embedding, final norm and head are ``t`` of the way to B."""
        own, theirs = self.outside
        before = {name: value.data for name, value in own.items()}
        try:
            for name, value in at(own, theirs, t).items():
                own[name].data = value
            yield
        finally:
            for name, data in before.items():
                own[name].data = data


@torch.no_grad()
def at(a: Mapping[str, Tensor], b: Mapping[str, Tensor], t: float) -> dict[str, Tensor]:
    """Parameters ``t`` of the way, in the dtype of A; both ends exactly. The line itself is computed in fp32 at least."""
    found = {}
    for name, value in a.items():
        if t in (0, 1):
            found[name] = (value if t == 0 else b[name]).detach().to(value.device, value.dtype)
            continue
        exact = torch.promote_types(value.dtype, torch.float32)
        moved = torch.lerp(value.detach().to(exact), b[name].detach().to(value.device, exact), t)
        found[name] = moved.to(value.dtype)
    return found


def barriers(between: WeightLine, oracle: Oracle, *, seed: int = 0) -> tuple[Barrier, ...]:
    """Of each layer alone, of the first and the last k together, and of everything.

    Args:
        seed: of the random points beside those of single layers.
    """
    n_layers = between.ours.n_layers
    parts: list[tuple[str, int, range]] = [("layer", layer, range(layer, layer + 1)) for layer in range(n_layers)]
    parts += [("first", k, range(k)) for k in range(2, n_layers + 1)]
    parts += [("last", k, range(n_layers - k, n_layers)) for k in range(2, n_layers)]
    a, b = _losses(oracle, between, [()], 0.0)[0], _losses(oracle, between, [range(n_layers)], 1.0, rest=1.0)[0]
    layers = [part[2] for part in parts]
    halves, swaps = _losses(oracle, between, layers, 0.5), _losses(oracle, between, layers, 1.0)
    found = [_barrier(name, n, a, b, half, swap) for (name, n, _), half, swap in zip(parts, halves, swaps, strict=True)]
    found[:n_layers] = [_with_control(one, between, oracle, seed) for one in found[:n_layers]]
    middle = _losses(oracle, between, [range(n_layers)], 0.5, rest=0.5)[0]
    return (*found, _barrier("all", n_layers, a, b, middle, b))


def passes_between(n_layers: int) -> int:
    """Passes over the text that :func:`barriers` and :func:`blend` make together."""
    n_parts = n_layers + max(0, n_layers - 1) + max(0, n_layers - 2)
    return 3 + 2 * -(-n_parts // AT_ONCE) + n_layers + len(STEPS_BETWEEN)


def _with_control(one: Barrier, between: WeightLine, oracle: Oracle, seed: int) -> Barrier:
    """A layer's barrier with the loss at random points. Draws of one layer share a pass, and no two layers their draws."""
    layer = one.n
    students = [
        Student(overrides={layer: random_point(*between.layers[layer], seed=(seed * MOST_LAYERS + layer) * N_DRAWS + draw)})
        for draw in range(N_DRAWS)
    ]
    losses = [_mean(sums.per_sample()[:, 2:]) for sums in oracle.sums(students)]
    return one.model_copy(update=dict(at_random=statistics.fmean(losses), random_spread=statistics.stdev(losses)))


def blend(between: WeightLine, oracle: Oracle) -> tuple[LinePoint, ...]:
    """All of A moved towards B; the loss at every step."""
    every = range(between.ours.n_layers)
    losses = [_losses(oracle, between, [every], t, rest=t)[0] for t in STEPS_BETWEEN]
    return tuple(LinePoint(t=t, loss=_mean(one)) for t, one in zip(STEPS_BETWEEN, losses, strict=True))


def _losses(
    oracle: Oracle, between: WeightLine, parts: Sequence[Sequence[int]], t: float, *, rest: float = 0.0
) -> list[Tensor]:
    """Per part and sample (S, 2): the summed loss and the number of tokens, with that part of the layers ``t`` of the way."""
    students = between.students(parts, t)
    found = []
    with between.rest_at(rest):
        for start in range(0, len(students), AT_ONCE):
            found += [one.per_sample()[:, 2:] for one in oracle.sums(students[start : start + AT_ONCE])]
    return found


AT_ONCE = 16
"""Students that share a pass: their states and logits are held at once."""

MOST_LAYERS = 100_000
"""More than any model has, so that the draws of two seeds have nothing in common."""


def _mean(per_sample: Tensor) -> float:
    loss, n = per_sample.sum(0).tolist()
    return float(loss / n)


def _barrier(part: str, n: int, a: Tensor, b: Tensor, half: Tensor, swap: Tensor) -> Barrier:
    above_S = half[:, 0] - (a[:, 0] + b[:, 0]) / 2
    tokens_S, n_samples = a[:, 1], len(a)
    mean = float(above_S.sum() / tokens_S.sum())
    spread = (above_S - mean * tokens_S).square().sum() * n_samples / max(1, n_samples - 1)
    return Barrier.model_validate(
        dict(
            part=part,
            n=n,
            halfway=_mean(half),
            swapped=_mean(swap),
            of_models=mean,
            of_ends=_mean(half) - (_mean(a) + _mean(swap)) / 2,
            stderr=float(spread.sqrt() / tokens_S.sum()) if n_samples > 1 else math.nan,
        )
    )


def _parameters(view: DecoderView, layer: int) -> dict[str, Tensor]:
    with view.residency.layer(layer) as module:
        return dict(module.named_parameters())


def _outside(view: DecoderView) -> dict[str, Tensor]:
    prefix = f"{view.layers_path}."
    return {name: value for name, value in view.model.named_parameters() if not name.startswith(prefix)}


def _shape(parameters: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(parameters[name].shape) if name in parameters else None
