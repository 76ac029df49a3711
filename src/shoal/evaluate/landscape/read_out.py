"""What a linear read-out sees at every boundary: an affine map to the last boundary, then the model's own norm and head.

The map is the ridge solution on some samples; accuracy is of the others. Why layer-wise learning is hard (arXiv 2010.08038): a
local loss degrades where features are not separable yet. Before half of the accuracy that the layers add is there, a local loss
on tokens asks a layer for what a linear map cannot read off it; a loss on the teacher's states does not.

Shapes: B samples, T positions, N tokens, D hidden size, E = D + 1.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from shoal.engine.spill import Spill
from shoal.engine.student import Step
from shoal.engine.view import DecoderView, Reading
from shoal.evaluate.landscape.line import ReadOut
from shoal.fit.boundary_states import BoundaryStates, advance, free, read_all
from shoal.fit.solve import ridge_change
from shoal.fit.sums import MapSums, no_sums
from shoal.measure.divergence import predicts
from shoal.words.types import Batch

RIDGE = 1e-4
"""In units of the mean second moment of the inputs."""


@torch.no_grad()
def read_outs(
    view: DecoderView, batches: Sequence[Batch], *, after_layer: Callable[[int], None] | None = None
) -> tuple[ReadOut, ...]:
    """Of every boundary, front to back; every second batch fits the maps, the others measure them.

    Raises:
        ValueError: fewer than two batches.
    """
    if len(batches) < 2:
        raise ValueError(f"a read-out is fitted on half of the batches and measured on the others; {len(batches)} is too few")
    spill = Spill(view.residency.state_bytes)
    try:
        readings, states = read_all(view, batches, spill)
        ends = states
        for layer in range(view.n_layers):
            after = advance(view, Step(layer), readings, ends)
            if ends is not states:
                free(ends)
            ends = after
        found = []
        for boundary in range(view.n_layers + 1):
            found.append(_read_out(view, boundary, readings, states, ends))
            if boundary < view.n_layers:
                after = advance(view, Step(boundary), readings, states)
                free(states)
                states = after
                if after_layer is not None:
                    after_layer(boundary)
        return tuple(found)
    finally:
        spill.close()


def _read_out(
    view: DecoderView, boundary: int, readings: Sequence[Reading], states: BoundaryStates, ends: BoundaryStates
) -> ReadOut:
    sums = no_sums(view.hidden_size, view.hidden_size, device=view.device)
    for i in range(0, len(readings), 2):
        _add(sums, readings[i], states[i], ends[i])
    change_ED = ridge_change(sums, RIDGE, bias=True)
    right, nll, n = 0, 0.0, 0
    for i in range(1, len(readings), 2):
        batch, h_BTD = readings[i].batch, states[i]
        read_BTD = h_BTD.double() + h_BTD.double() @ change_ED[:-1] + change_ED[-1]
        logits_BTV = view.head(read_BTD.to(h_BTD.dtype), readings[i])[:, :-1]
        counted_BT = predicts(batch.ids_BT, batch.mask_BT)
        next_N, logits_NV = batch.ids_BT[:, 1:][counted_BT], logits_BTV[counted_BT].float()
        right += int((logits_NV.argmax(-1) == next_N).sum())
        nll += float(torch.nn.functional.cross_entropy(logits_NV, next_N, reduction="sum"))
        n += len(next_N)
    return ReadOut(boundary=boundary, accuracy=right / n, nll=nll / n, n_tokens=int(sums.n_tokens), n_held_out=n)


def _add(sums: MapSums, reading: Reading, h_BTD: Tensor, end_BTD: Tensor) -> None:
    """The change from a boundary to the last one, over real tokens, each counted by what its end is long: sinks own no sum."""
    mask_BT = reading.batch.mask_BT
    real_BT = torch.ones(h_BTD.shape[:2], dtype=torch.bool, device=h_BTD.device) if mask_BT is None else mask_BT.bool()
    h_ND, end_ND = h_BTD[real_BT], end_BTD[real_BT]
    weights_N = end_ND.float().square().sum(-1).clamp_min(1e-12).reciprocal()
    sums.add_tokens(h_ND, end_ND - h_ND, weights_N=weights_N, sinks_N=torch.zeros_like(weights_N, dtype=torch.bool))
