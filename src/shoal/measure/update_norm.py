"""Norms of what a unit adds to the stream: ‖delta‖ and ‖delta‖ / ‖x‖, per token, in one pass.

Source: A deeper look at depth pruning (arXiv 2407.16286). The change by a layer is x' - x. The change by its attention is what
the layer adds with its MLP zeroed, and the change by its MLP is the rest, so both are exact wherever sublayers can be left
out, whatever norms a family puts around them.
Shapes: B samples, T positions, D hidden size, U units.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from shoal.engine.spill import Spill
from shoal.engine.student import TEACHER, Student
from shoal.engine.view import DecoderView, Reading
from shoal.measure.sinks import massive_tokens, real_lengths, sink_tokens
from shoal.words.progress import tell
from shoal.words.types import Batch, Unit, UnitTable


@torch.no_grad()
def update_norms(view: DecoderView, batches: Sequence[Batch], units: Sequence[Unit]) -> tuple[UnitTable, UnitTable]:
    """Tables ``update_norm`` and ``relative_update``: the mean over a sample's tokens, averaged over samples.

    Padding does not count, nor the sinks that show at the two boundaries of a layer: the first token, and tokens of 20 times
    the median norm.
    Raises:
        ValueError: a sublayer that this family cannot leave out, padding that is not on the right, or no sample with two
        tokens.
    """
    found: dict[Unit, list[tuple[float, float]]] = {unit: [] for unit in units}
    states = Spill(view.residency.state_bytes)
    try:
        for i, batch in enumerate(batches):
            states.put(i, view.read(batch).h_BTD)
        for layer in range(view.n_layers):
            here = [unit for unit in units if unit.index == layer]
            for i, batch in enumerate(batches):
                tell("score units by update", layer * len(batches) + i, view.n_layers * len(batches))
                reading, before_BTD = view.read(batch), states.get(i)
                after_BTD = view.run_layer(layer, before_BTD, reading, student=TEACHER)
                for unit in here:
                    start_BTD, stop_BTD = _ends(view, unit, before_BTD, after_BTD, reading)
                    found[unit] += _norms(start_BTD, stop_BTD, before_BTD, after_BTD, reading.batch)
                states.put(i, after_BTD)
    finally:
        states.close()
    if any(not pairs for pairs in found.values()):
        raise ValueError("no token to measure on: every sample is shorter than 2 tokens; give longer text")
    return tuple(  # type: ignore[return-value]  # two tables, by the two names
        _table(name, units, [[pair[which] for pair in found[unit]] for unit in units])
        for which, name in enumerate(("update_norm", "relative_update"))
    )


def _ends(view: DecoderView, unit: Unit, before_BTD: Tensor, after_BTD: Tensor, reading: Reading) -> tuple[Tensor, Tensor]:
    """The stream without and with what a unit adds."""
    if unit.kind == "layer":
        return before_BTD, after_BTD
    without_mlp = Student(removed=frozenset({Unit("mlp", unit.index)}))
    middle_BTD = view.run_layer(unit.index, before_BTD, reading, student=without_mlp)
    return (before_BTD, middle_BTD) if unit.kind == "attn" else (middle_BTD, after_BTD)


def _norms(
    start_BTD: Tensor, stop_BTD: Tensor, before_BTD: Tensor, after_BTD: Tensor, batch: Batch
) -> list[tuple[float, float]]:
    """(‖delta‖, ‖delta‖ / ‖x‖) of every sample that has a token which is no sink; x is the stream that the layer reads."""
    found = []
    for row, length in enumerate(real_lengths(batch)):
        norms_ET = torch.stack([_length(h_BTD[row, :length]) for h_BTD in (before_BTD, after_BTD)])
        counted_T = ~sink_tokens(massive_tokens(norms_ET)) & (norms_ET[0] > 0)
        if bool(counted_T.any()):
            exact = torch.promote_types(start_BTD.dtype, torch.float32)
            delta_T = _length(stop_BTD[row, :length].to(exact) - start_BTD[row, :length].to(exact))[counted_T]
            found.append((delta_T.mean().item(), (delta_T / norms_ET[0, counted_T]).mean().item()))
    return found


def _length(x_TD: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x_TD, dim=-1, dtype=torch.float64)


def _table(criterion: str, units: Sequence[Unit], values: Sequence[Sequence[float]]) -> UnitTable:
    mean = np.array([np.mean(one) for one in values])
    # A sample whose tokens are all sinks at a layer counts at the others alone, so every unit has a number of its own.
    stderr = np.array([np.std(one, ddof=1) / len(one) ** 0.5 if len(one) > 1 else np.nan for one in values])
    unit = "norm" if criterion == "update_norm" else "ratio of norms"
    return UnitTable(criterion, tuple(units), mean, stderr, unit, False, max(map(len, values), default=0))
