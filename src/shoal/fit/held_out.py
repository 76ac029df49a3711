"""One layer, or a module in place of several, on all batches: its outputs, its held-out error, and the sums of the next solve.

Shapes: B samples, T positions, D hidden size, F inputs of a site, N tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from shoal.engine.view import DecoderView, Reading
from shoal.engine.workers import ALONE, Workers
from shoal.fit.boundary_states import BoundaryStates, emptied
from shoal.fit.fit_config import FitConfig
from shoal.fit.sums import N_FOLDS, Sums
from shoal.measure.sinks import massive_tokens, real_lengths
from shoal.words.types import Batch

RunLayer = Callable[[Tensor, Reading], tuple[Tensor, Tensor | None]]
"""States before a layer and a reading to the states behind it, and what a site read on the way (None: there is no site)."""


@dataclass(frozen=True, eq=False)
class LayerEnds:
    """What a layer or module reads, and where it should arrive.

    Attributes:
        inputs: the student's states before it; ``goals``: the teacher's states that its output is fitted to.
        folds: the fold of every sample, per batch; fold 0 is held out.
        workers: the processes that have the other batches; what is observed is added over all of them.
    """

    readings: Sequence[Reading]
    inputs: BoundaryStates
    goals: BoundaryStates
    folds: Sequence[Tensor]
    workers: Workers = ALONE


def held_out(view: DecoderView, ends: LayerEnds) -> LayerEnds:
    """The ends of the held-out samples alone, which are all that the error of :func:`observe` is over.

    Batches without such a sample are left out.
    """
    readings, folds = [], []
    inputs, goals = emptied(ends.inputs), emptied(ends.inputs)
    for reading, h_BTD, goal_BTD, folds_B in zip(ends.readings, ends.inputs, ends.goals, ends.folds, strict=True):
        chosen_B = folds_B == 0
        assert reading.batch.branches is None, "text to fit on is plain"
        if chosen_B.any():
            mask_BT = None if reading.batch.mask_BT is None else reading.batch.mask_BT[chosen_B]
            own = view.read(replace(reading.batch, ids_BT=reading.batch.ids_BT[chosen_B], mask_BT=mask_BT))
            readings.append(replace(own, h_BTD=torch.empty(0)))
            inputs.append(h_BTD[chosen_B])
            goals.append(goal_BTD[chosen_B])
            folds.append(folds_B[chosen_B])
    return LayerEnds(readings, inputs, goals, folds, ends.workers)


def observe(
    ends: LayerEnds, run: RunLayer, *, config: FitConfig, no_sums: Callable[[], Sums] | None, n_sums: int = N_FOLDS - 1
) -> tuple[BoundaryStates, float, list[Sums]]:
    """Outputs of all batches, the held-out error (weighted squared miss over squared norm), and the sums of every other fold.

    Sinks are a share of their own of the error, whatever their number: later layers attend to them from every token, so a few
    of them that are off by a quarter cost more than all others gain (docs/log.md).

    Args:
        no_sums: empty sums of what is solved for next; None: nothing is.
        n_sums: how many the folds are added up to; 1: all of them together.
    """
    sums = [no_sums() for _ in range(n_sums)] if no_sums is not None else []
    outputs = emptied(ends.inputs)
    miss, norm, miss_of_sinks, norm_of_sinks = 0.0, 0.0, 0.0, 0.0
    for reading, h_BTD, goal_BTD, folds_B in zip(ends.readings, ends.inputs, ends.goals, ends.folds, strict=True):
        output_BTD, read_BTF = run(h_BTD, reading)
        outputs.append(output_BTD)
        real_BT, sinks_BT = real_and_sinks(reading.batch, h_BTD, goal_BTD)
        if config.sinks == "counted":
            sinks_BT = torch.zeros_like(sinks_BT)
        missing_BTD = _exact(goal_BTD) - _exact(output_BTD)
        for fold in folds_B.unique().tolist():
            chosen_BT = real_BT & (folds_B == fold)[:, None]
            goal_ND, missing_ND, sinks_N = goal_BTD[chosen_BT], missing_BTD[chosen_BT], sinks_BT[chosen_BT]
            weights_N = WEIGHTS[config.weights](goal_ND)
            if fold == 0:
                counted_N = (weights_N * ~sinks_N).double()
                miss += float(counted_N @ missing_ND.double().square().sum(-1))
                norm += float(counted_N @ goal_ND.double().square().sum(-1))
                counted_N = (weights_N * sinks_N).double()
                miss_of_sinks += float(counted_N @ missing_ND.double().square().sum(-1))
                norm_of_sinks += float(counted_N @ goal_ND.double().square().sum(-1))
            elif read_BTF is not None and sums:
                read_NF = read_BTF.reshape(*chosen_BT.shape, read_BTF.shape[-1])[chosen_BT]
                sums[(fold - 1) % n_sums].add_tokens(read_NF, missing_ND, weights_N=weights_N, sinks_N=sinks_N)
    sums, (miss, norm, miss_of_sinks, norm_of_sinks) = _of_all(ends.workers, sums, (miss, norm, miss_of_sinks, norm_of_sinks))
    error = (miss / norm if norm else 0.0) + (miss_of_sinks / norm_of_sinks if norm_of_sinks else 0.0)
    return outputs, error, [one for one in sums if one.n_tokens]


def _of_all(workers: Workers, sums: Sequence[Sums], numbers: Sequence[float]) -> tuple[list[Sums], list[float]]:
    """Sums per fold, and numbers, over the batches of all workers."""
    named = {f"{i}.{one.name}": getattr(own, one.name) for i, own in enumerate(sums) for one in fields(own)}  # type: ignore[arg-type]
    found = workers.sum({**named, "numbers": torch.tensor(numbers, dtype=torch.float64)})
    added = [type(own)(*(found[f"{i}.{one.name}"] for one in fields(own))) for i, own in enumerate(sums)]  # type: ignore[arg-type]
    return added, found["numbers"].tolist()


def real_and_sinks(batch: Batch, h_BTD: Tensor, goal_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T) bool: real tokens, and the sinks among them: 20 times the median norm of their sample, here or at the target.

    Position 0 is a sink only where it is massive: elsewhere it is a token like others and its miss counts.
    """
    norms_2BT = torch.stack([torch.linalg.vector_norm(one.float(), dim=-1) for one in (h_BTD, goal_BTD)])
    real_BT = torch.zeros_like(norms_2BT[0], dtype=torch.bool)
    sinks_BT = real_BT.clone()
    for sample, length in enumerate(real_lengths(batch)):
        real_BT[sample, :length] = True
        sinks_BT[sample, :length] = massive_tokens(norms_2BT[:, sample, :length]).any(0)
    return real_BT, sinks_BT


def counted(batch: Batch, h_BTD: Tensor, goal_BTD: Tensor, config: FitConfig) -> Tensor:
    """(B, T) bool: the tokens that errors and ratios are over."""
    real_BT, sinks_BT = real_and_sinks(batch, h_BTD, goal_BTD)
    return real_BT if config.sinks == "counted" else real_BT & ~sinks_BT


def relative(target_ND: Tensor) -> Tensor:
    """1 / |target|^2: each token's miss counts in proportion to its own stream."""
    return 1.0 / target_ND.float().square().sum(-1).clamp(min=torch.finfo(torch.float32).tiny)


def plain(target_ND: Tensor) -> Tensor:
    """Every token counts by its squared miss."""
    return torch.ones(len(target_ND), device=target_ND.device)


WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {"relative": relative, "plain": plain}
"""Target states (N, D) to the weights (N,) of their tokens."""


def _exact(h_BTD: Tensor) -> Tensor:
    return h_BTD.to(torch.promote_types(h_BTD.dtype, torch.float32))
