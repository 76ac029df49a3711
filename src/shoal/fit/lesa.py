"""Weights of new layers, predicted from those around them in the singular basis of all layers. LESA, arXiv 2502.13794.

For each linear map the weights W_1 .. W_L of all layers of a kind, side by side, have a thin singular value decomposition
U S [V_1 .. V_L], so that W_i = U S V_i. A small network learns on all triples of neighbours to say V_i from V_{i-1} and
V_{i+1}, row by row, and then says the V of a new layer between two. Loss: ``(1 - penalty) MSE + penalty (difference of
norms)^2``.

Two things differ from the paper. The network says what is *missing to the mean* of the two, from a start at zero: where layers
lie on a line in weight space the new one is exactly the middle. And a map whose triples that were held out are no better
predicted than by the mean takes the mean. Vectors (norms, biases) are the mean; the released code copies those of layer 0.

Shapes: L layers of a kind, O outputs and I inputs of a map, R its rank (at most O), N rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shoal.edits.insert import Insert
from shoal.edits.inserted_layers import alike, next_of_kind
from shoal.engine.view import DecoderView
from shoal.words.records import Record

HIDDEN = 256
HELD_OUT = 5  # Every fifth triple is held out, the first one always.


EPOCHS, LR, BATCH, PENALTY = 10, 1e-3, 64, 5e-4
"""How the predictors are trained: the released code's values."""


class PredictedMap(Record):
    """What the predictor of one map is worth, on triples it has not seen: mean squared errors of V, and whether it is used."""

    name: str
    error_of_mean: float
    error: float
    is_used: bool


@dataclass(frozen=True, eq=False)
class Basis:
    """The singular basis of one map over the layers of a kind, in fp64.

    Attributes:
        left_OR: U S. ``blocks``: per layer its V (R, I).
    """

    left_OR: Tensor
    blocks: dict[int, Tensor]


def predicted(
    view: DecoderView,
    edits: Sequence[Insert],
    *,
    seed: int = 0,
    after_map: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Tensor], tuple[PredictedMap, ...]]:
    """Values of the layers that some edits put in, under the names that a plan's values have, and what they rest on.

    Args:
        after_map: called with (maps done, maps in all), for progress.
    Raises:
        ValueError: a place without a neighbour of its kind on either side.
    """
    values: dict[str, Tensor] = {}
    found: list[PredictedMap] = []
    wanted = [(edit.prefix_of(0), edit.of[0], next_of_kind(view, edit.of[0])) for edit in edits]
    layers = view.model.get_submodule(view.layers_path)
    kinds: dict[int, list[int]] = {}
    for _, near, _ in wanted:
        first = next((one for one in kinds if alike(layers[one], layers[near])), near)
        kinds.setdefault(first, [one for one in range(view.n_layers) if alike(layers[one], layers[near])])
    maps = [(first, name) for first in kinds for name, one in layers[first].state_dict().items() if _is_map(one)]
    for done, (first, name) in enumerate(maps):
        of_kind = kinds[first]
        basis = basis_of(view, of_kind, name)
        predict, quality = _predictor(basis, of_kind, name, seed)
        found.append(quality)
        for prefix, near, far in wanted:
            if near in of_kind:
                values[f"{prefix}{name}"] = (basis.left_OR @ predict(basis.blocks[near], basis.blocks[far])).to(view.dtype)
        if after_map is not None:
            after_map(done + 1, len(maps))
    for prefix, near, far in wanted:
        with view.residency.layer(near) as layer:
            rest = {name: value.detach().clone() for name, value in layer.state_dict().items() if not _is_map(value)}
        with view.residency.layer(far) as layer:
            others = layer.state_dict()
            for name, value in rest.items():
                values[f"{prefix}{name}"] = torch.lerp(value, others[name], 0.5) if value.is_floating_point() else value
    return values, tuple(found)


def _is_map(value: Tensor) -> bool:
    return value.ndim == 2 and value.is_floating_point()


@torch.no_grad()
def basis_of(view: DecoderView, layers: Sequence[int], name: str) -> Basis:
    """The decomposition of one map over some layers, from the O x O sum of W W^T; directions of no weight are left out."""
    total_OO, weights = None, {}
    for index in layers:
        with view.residency.layer(index) as layer:
            weight_OI = layer.get_parameter(name).detach().to("cpu", torch.float64)
        weights[index] = weight_OI
        total_OO = weight_OI @ weight_OI.T if total_OO is None else total_OO + weight_OI @ weight_OI.T
    assert total_OO is not None
    power_O, vectors_OO = torch.linalg.eigh(total_OO)
    used = power_O > power_O[-1] * 1e-12
    values_R, left_OR = power_O[used].sqrt(), vectors_OO[:, used]
    blocks = {index: (left_OR.T @ weight_OI) / values_R[:, None] for index, weight_OI in weights.items()}
    return Basis(left_OR * values_R, blocks)


Predict = Callable[[Tensor, Tensor], Tensor]
"""From V of the two neighbours, (R, I) each, to V of the layer between them; fp64."""


def _mean(before_RI: Tensor, behind_RI: Tensor) -> Tensor:
    return (before_RI + behind_RI) / 2


def _predictor(basis: Basis, layers: Sequence[int], name: str, seed: int) -> tuple[Predict, PredictedMap]:
    """The predictor of a map, or the mean where that says held-out triples as well; too few layers have only the mean."""
    triples = [tuple(basis.blocks[one] for one in layers[i - 1 : i + 2]) for i in range(1, len(layers) - 1)]
    held, seen = triples[::HELD_OUT], [one for i, one in enumerate(triples) if i % HELD_OUT]
    if not seen:
        return _mean, PredictedMap(name=name, error_of_mean=float("nan"), error=float("nan"), is_used=False)
    network = _trained(seen, seed)

    def predict(before_RI: Tensor, behind_RI: Tensor) -> Tensor:
        with torch.no_grad():
            missing_RI = network(torch.cat([before_RI, behind_RI], -1).float()).double()
        return _mean(before_RI, behind_RI) + missing_RI

    plain, ours = (float(torch.stack([(how(a, c) - b).square().mean() for a, b, c in held]).mean()) for how in (_mean, predict))
    quality = PredictedMap(name=name, error_of_mean=plain, error=ours, is_used=ours < plain)
    return (predict if quality.is_used else _mean), quality


def _trained(triples: Sequence[tuple[Tensor, ...]], seed: int) -> nn.Module:
    """The network, fitted to what the mean misses on the rows of all triples."""
    before_NI, middle_NI, behind_NI = (torch.cat([one[i] for one in triples]).float() for i in range(3))
    mean_NI, inputs_N2I = (before_NI + behind_NI) / 2, torch.cat([before_NI, behind_NI], -1)
    n_inputs = middle_NI.shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        last = nn.Linear(HIDDEN, n_inputs)
        network = nn.Sequential(nn.Linear(2 * n_inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), last)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR)
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(middle_NI), generator=generator).split(BATCH):
                said_nI, wanted_nI = mean_NI[rows] + network(inputs_N2I[rows]), middle_NI[rows]
                shrunk = (said_nI.norm() - wanted_nI.norm()).square()
                loss = (1 - PENALTY) * (said_nI - wanted_nI).square().mean() + PENALTY * shrunk
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return network.eval()
