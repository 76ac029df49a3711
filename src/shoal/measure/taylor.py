"""First-order Taylor scores of units: what the loss of the text would change if the unit's weights were zero.

With g the gradient of the mean cross-entropy by a weight w, a unit scores sum |w g| (``taylor_weights``: each weight on its
own) or
|sum w g| (``taylor_unit``: all of them together, whose changes may cancel). Source: the Taylor rows of Reassessing Layer
Pruning (arXiv 2411.15558) and Shortened LLaMA (arXiv 2402.02834). Few samples give poor gradients: rankings of 10 samples were
much worse than those of 30 (arXiv 2411.15558, table 6).

The gradient is computed layer by layer from the last one down: states wait in a spill, and the gradients of one layer's
weights are in memory at a time, whatever the size of the model. What travels is the gradient of the sum over tokens: divided
by their number, slopes in float16 would fall below its smallest numbers, the more the longer the text. At the other end the
sums of a batch have room: the largest of SmolLM2-135M over 512 tokens is 458, and float16 ends at 65,504.
Shapes: B samples, T positions, D hidden size, V vocabulary, N counted tokens, n of them in a block.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from shoal.engine.spill import Spill
from shoal.engine.student import Step
from shoal.engine.view import DecoderView
from shoal.measure.counted import head_of_with_grad, tokens_per_head
from shoal.measure.divergence import predicts
from shoal.measure.unit_parameters import parameters_of
from shoal.words.progress import tell
from shoal.words.types import Batch, Unit, UnitTable

BACK = 3
"""A layer's gradients take so many times as long as its forward."""


def taylor_scores(view: DecoderView, batches: Sequence[Batch], units: Sequence[Unit]) -> tuple[UnitTable, UnitTable]:
    """Tables ``taylor_weights`` and ``taylor_unit``; both are exactly 0 for a unit whose output map is zero.

    Raises:
        ValueError: a sublayer that is no module of its own, text without two tokens in a row, or a gradient that is not finite.
    """
    counted = [predicts(batch.ids_BT, batch.mask_BT) for batch in batches]
    n_tokens = sum(int(one.sum()) for one in counted)
    if not n_tokens:
        raise ValueError("no token to measure on: every sample is shorter than 2 tokens; give longer text")
    each, together = np.zeros(len(units)), np.zeros(len(units))
    states, slopes = Spill(view.residency.state_bytes), Spill(view.residency.state_bytes)
    try:
        _fill(view, batches, states)
        for i, (batch, counted_BT) in enumerate(zip(batches, counted, strict=True)):
            slopes.put(i, _slope_at_end(view, batch, states.get((view.n_layers, i)), counted_BT))
        for layer in reversed(range(view.n_layers)):
            tell("score units by taylor", (1 + BACK) * view.n_layers - BACK * (layer + 1), (1 + BACK) * view.n_layers)
            with view.residency.layer(layer) as module:
                here = {place: parameters_of(unit, module) for place, unit in enumerate(units) if unit.index == layer}
                gradients = _back(view, layer, dict(module.named_parameters()), batches, states, slopes)
                for place, parameters in here.items():
                    products = [value.detach().double() * gradients[name] for name, value in parameters.items()]
                    each[place] = sum(one.abs().sum().item() for one in products) / n_tokens
                    together[place] = abs(sum(one.sum().item() for one in products)) / n_tokens
    finally:
        states.close()
        slopes.close()
    if not np.isfinite([each, together]).all():
        dtype = str(view.dtype).removeprefix("torch.")
        raise ValueError(f"a gradient is not finite in {dtype}, so no unit can be scored; use --dtype bfloat16 or float32")
    n_samples = sum(len(batch.ids_BT) for batch in batches)
    return _table("taylor_weights", units, each, n_samples), _table("taylor_unit", units, together, n_samples)


@torch.no_grad()
def _fill(view: DecoderView, batches: Sequence[Batch], states: Spill) -> None:
    """Boundary 0 to L of every batch, all batches through a layer before the next one."""
    for i, batch in enumerate(batches):
        states.put((0, i), view.read(batch).h_BTD)
    for layer in range(view.n_layers):
        tell("score units by taylor", layer, (1 + BACK) * view.n_layers)
        for i, batch in enumerate(batches):
            states.put((layer + 1, i), view.run_layer(layer, states.get((layer, i)), view.read(batch)))


@torch.enable_grad()
def _slope_at_end(view: DecoderView, batch: Batch, h_BTD: Tensor, counted_BT: Tensor) -> Tensor:
    """The gradient of this batch's summed cross-entropy at boundary L; logits are in memory block by block."""
    at_BT = counted_BT.to(h_BTD.device)
    h_ND, next_N = h_BTD.detach()[:, :-1][at_BT], batch.ids_BT[:, 1:][counted_BT].to(view.device)
    slope_ND = torch.zeros_like(h_ND)
    size = tokens_per_head(view)
    for start in range(0, len(h_ND), size):
        block = slice(start, start + size)
        h_nD = h_ND[block].requires_grad_()
        logits_nV = head_of_with_grad(view, h_nD).float()
        loss = torch.nn.functional.cross_entropy(logits_nV, next_N[block], reduction="sum")
        slope_ND[block] = torch.autograd.grad(loss, h_nD)[0]
    slope_BTD = torch.zeros_like(h_BTD)
    slope_BTD[:, :-1][at_BT] = slope_ND
    return slope_BTD


@torch.enable_grad()
def _back(
    view: DecoderView,
    layer: int,
    parameters: dict[str, Tensor],
    batches: Sequence[Batch],
    states: Spill,
    slopes: Spill,
) -> dict[str, Tensor]:
    """Gradients of a layer's weights, summed in fp32 at least; ``slopes`` move from behind the layer to before it."""
    leaves = {name: one.detach().requires_grad_() for name, one in parameters.items() if one.is_floating_point()}
    sums = {name: torch.zeros_like(one, dtype=torch.promote_types(one.dtype, torch.float32)) for name, one in leaves.items()}
    for i, batch in enumerate(batches):
        h_BTD = states.get((layer, i)).detach().clone().requires_grad_()
        after_BTD = view.run_step(Step(layer, overrides=leaves), h_BTD, view.read(batch))
        wanted = [h_BTD, *leaves.values()]
        found = torch.autograd.grad(after_BTD, wanted, grad_outputs=slopes.get(i), allow_unused=True)
        states.drop((layer + 1, i))
        slopes.put(i, torch.zeros_like(h_BTD) if found[0] is None else found[0])
        for total, gradient in zip(sums.values(), found[1:], strict=True):
            if gradient is not None:
                total += gradient
    return sums


def _table(criterion: str, units: Sequence[Unit], values: np.ndarray, n_samples: int) -> UnitTable:
    return UnitTable(criterion, tuple(units), values, np.full(len(units), np.nan), "nats per token", False, n_samples)
