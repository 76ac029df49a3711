"""Ridge for the change of a linear map, from sums alone: the ridge by cross-validation, the sinks met exactly.

Minimise  sum_t w_t |[h_t, 1] M - r_t|^2 + ridge |M|^2  with r the miss of the student's stream. Because the *change* is fitted,
an infinite ridge is the map as it was, but for the least change that meets the sinks. The exact constraint on the mean sink
(v, y) adds A^-1 v (v^T A^-1 v)^-1 (y - M^T v)^T, where A = sum_t w_t [h_t, 1][h_t, 1]^T + ridge: what meets it at least cost.

Where the removed layers are those that make the sinks, no input of the map tells them from other tokens yet, and meeting them
exactly ruins the rest. There the sinks are *shared*: their squared miss, in units of what it was, counts as much as that of all
other tokens in units of what it was, which adds |y|^2 / sum_t w_t |r_t|^2 to the number that is inverted above.

Shapes: F inputs of the map, E = F + 1 (the last is the constant 1, its weight the bias, never shrunk), D outputs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, reduce
from operator import add
from typing import Literal

import torch
from torch import Tensor

from shoal.fit.sums import MapSums
from shoal.words.progress import tell

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, math.inf)
"""In units of the mean diagonal of the inputs' second moments; infinity is no change at all."""

SinkRule = Literal["met", "shared"]
"""What a solve makes of the sinks."""

N_MIXTURES = 128
"""Of the outputs, that ridges are compared on."""


@dataclass(frozen=True, eq=False)
class Solution:
    """The best change of one map.

    Attributes:
        change_ED: add ``change_ED[:-1]`` to the transposed weight and ``change_ED[-1]`` to the bias; float64.
        ridge: chosen, in units of the mean diagonal.
        r2: share of the weighted squared miss that goes, on the tokens of the fit; ``r2_folds``: on folds left out in turn,
            None where none were.
        condition: condition number of the inputs' second moments with the ridge added; 1 for an infinite ridge.
        effective_rank: participation ratio of their eigenvalues, (sum)^2 / sum of squares, without the ridge.
        n_tokens, n_sinks: counts over the tokens of the fit.
    """

    change_ED: Tensor
    ridge: float
    r2: float
    r2_folds: float | None
    condition: float
    effective_rank: float
    n_tokens: int
    n_sinks: int


def solve(folds: Sequence[MapSums], *, bias: bool, ridge: float | None = None) -> Solution:
    """The ridge that is best over folds left out in turn, then the change from all folds.

    The sinks are met exactly unless the other tokens would then miss more than before; there they are shared.

    The ridge and ``r2_folds`` come from up to 128 random mixtures of the outputs (:func:`mixed_outputs`); the change is of all.

    Args:
        bias: the map has a bias that may change too.
        ridge: given, not chosen, and then no fold is left out.
    """

    def found(sinks: SinkRule) -> tuple[Solution, float]:
        """The solution, and the squared miss of other tokens that decides: on folds left out where there are some."""

        def change(sums: MapSums, ridge: float) -> Tensor:
            return ridge_change(sums, ridge, bias=bias, sinks=sinks)

        if ridge is not None:
            solution = _solved(folds, change, ridge, None)
            return solution, 1.0 - solution.r2
        miss = squared_error if sinks == "met" else squared_error_with_sinks
        best, error = best_ridge([mixed_outputs(one) for one in folds], RIDGES, change, miss)
        return _solved(folds, change, best, error), 1.0 - share(error, float(reduce(add, folds).rr))

    met, left = found("met")
    return met if left <= 1.0 or not met.n_sinks else found("shared")[0]


def solve_for(folds: Sequence[MapSums], change: Callable[[MapSums, float], Tensor], *, ridge: float | None) -> Solution:
    """As :func:`solve`, for the best change of another form: (E, D) from sums and a ridge. Every output decides the ridge.

    Raises:
        ValueError: the system is singular, whatever the ridge.
    """
    return _solved(folds, change, *best_ridge(folds, RIDGES if ridge is None else (ridge,), change))


def _solved(folds: Sequence[MapSums], change: Callable[[MapSums, float], Tensor], best: float, error: float | None) -> Solution:
    """The change from all folds with the ridge that was found, and its facts."""
    total = reduce(add, folds)
    change_ED = change(total, best)
    condition, rank = spectrum(total, best)
    return Solution(
        change_ED=change_ED,
        ridge=best,
        r2=share(squared_error(total, change_ED), float(total.rr)),
        r2_folds=None if error is None else share(error, float(total.rr)),
        condition=condition,
        effective_rank=rank,
        n_tokens=int(total.n_tokens),
        n_sinks=int(total.sink_E[-1]),
    )


def ridge_change(sums: MapSums, ridge: float, *, bias: bool, sinks: SinkRule = "met") -> Tensor:
    """(E, D) change for one ridge, in units of the mean diagonal; the mean sink is met exactly, or shared (see the top).

    An infinite ridge leaves what the sinks need, v (v^T v)^-1 y^T, and the bias as it is: a solve before this one may have
    moved what the map reads, and the sinks with it. Without sinks, and where they are shared, it is no change at all.

    A bias alone (F = 0) ignores the sinks: they would fix it whatever the other tokens say.

    Raises:
        ValueError: the inputs' second moments are singular and the ridge does not mend it.
    """
    n_ones, n_outputs = sums.hr_ED.shape
    change_ED = sums.hr_ED.new_zeros(n_ones, n_outputs)
    n_sinks = sums.sink_E[-1]
    has_sinks = bool(n_sinks > 0) and n_ones > 1
    if math.isinf(ridge):
        if has_sinks and sinks == "met":
            v_F = sums.sink_E[:-1] / n_sinks
            energy = v_F.square().sum()
            change_ED[:-1] = v_F[:, None] * (sums.sink_r_D / n_sinks / energy) if energy > 0 else 0.0
        return change_ED
    n = n_ones if bias else n_ones - 1
    a_EE = sums.hh_EE[:n, :n].clone()
    shrunk = torch.arange(n_ones - 1, device=a_EE.device)
    a_EE[shrunk, shrunk] += ridge * sums.mean_diagonal
    root_EE, info = torch.linalg.cholesky_ex(a_EE)
    if int(info) and not bool(torch.isfinite(sums.hh_EE).all()):
        raise ValueError("the inputs of this map are NaN or infinite: the weights are damaged, or changed while they were read")
    if int(info):
        raise ValueError(f"ridge {ridge:g} leaves a singular system of {n} inputs from {int(sums.n_tokens)} tokens; raise it")
    change_ED[:n] = torch.cholesky_solve(sums.hr_ED[:n], root_EE)
    if has_sinks:
        v_E1, y_1D = (sums.sink_E[:n] / n_sinks)[:, None], (sums.sink_r_D / n_sinks)[None]
        towards_E1 = torch.cholesky_solve(v_E1, root_EE)
        cost = v_E1.mT @ towards_E1
        if sinks == "shared":
            cost = cost + y_1D.square().sum() / sums.rr.clamp(min=torch.finfo(torch.float64).tiny)
        change_ED[:n] += towards_E1 / cost @ (y_1D - v_E1.mT @ change_ED[:n])
    return change_ED


def squared_error(sums: MapSums, change_ED: Tensor) -> float:
    """Weighted squared miss that is left on the tokens of ``sums`` after a change; sinks do not count."""
    explained = 2 * (change_ED * sums.hr_ED).sum() - (change_ED * (sums.hh_EE @ change_ED)).sum()
    return float(sums.rr - explained)


def squared_error_with_sinks(sums: MapSums, change_ED: Tensor) -> float:
    """As :func:`squared_error`, and what is left of the mean sink's miss, which weighs as much as that of all other tokens."""
    n_sinks = sums.sink_E[-1].clamp(min=1)
    y_D = sums.sink_r_D / n_sinks
    left_D = y_D - (sums.sink_E / n_sinks) @ change_ED
    before = float(y_D.square().sum())
    return squared_error(sums, change_ED) + (float(sums.rr) * float(left_D.square().sum()) / before if before else 0.0)


def mixed_outputs(sums: MapSums, *, n_mixtures: int = N_MIXTURES) -> MapSums:
    """The sums with the D outputs replaced by fewer random mixtures of them; as they are where D is no larger.

    Each mixture adds all outputs with random signs over sqrt(n_mixtures), so what a linear change explains of the mixtures is,
    in expectation, what it explains of the outputs, and ridges are compared on fewer right-hand sides. The squared miss before
    the change stays that of the outputs. Signs are fixed: equal sums choose equal ridges.
    """
    n_outputs = sums.hr_ED.shape[1]
    if n_outputs <= n_mixtures:
        return sums
    draw = torch.Generator().manual_seed(0)
    signs_DM = torch.randint(2, (n_outputs, n_mixtures), generator=draw).to(sums.hr_ED) * 2 - 1
    signs_DM /= math.sqrt(n_mixtures)
    return replace(sums, hr_ED=sums.hr_ED @ signs_DM, sink_r_D=sums.sink_r_D @ signs_DM)


def best_ridge(
    folds: Sequence[MapSums],
    ridges: Sequence[float],
    change: Callable[[MapSums, float], Tensor],
    miss: Callable[[MapSums, Tensor], float] | None = None,
) -> tuple[float, float]:
    """The ridge of the lowest cross-validated error, and that error; a tie goes to the larger ridge, the smaller change.

    The error falls along the ridges while they take away noise and rises when they take away signal. So the search starts at
    the largest finite ridge, where the layers of a real model mostly end, and goes down while the error falls. An infinite one,
    free of a solve, is compared at the end, not on the way: where sinks are met exactly, it does not continue the others.

    Args:
        ridges: increasing.
        miss: what is compared; :func:`squared_error` unless given.
    """

    @cache
    def error(i: int) -> float:
        tell("solve", len(ridges) - 1 - i, len(ridges))
        return cross_validated_for(folds, ridges[i : i + 1], change, miss)[0]

    finite = [i for i, ridge in enumerate(ridges) if not math.isinf(ridge)]
    at = finite[-1] if finite else 0
    while at > 0 and error(at - 1) < error(at):
        at -= 1
    best = min({at, len(ridges) - 1}, key=lambda i: (error(i), -i)) if math.isinf(ridges[-1]) else at
    return ridges[best], error(best)


def cross_validated(folds: Sequence[MapSums], ridges: Sequence[float], *, bias: bool) -> list[float]:
    """Per ridge the squared miss over all folds, each left out of its own fit; infinite where a system is singular."""
    return cross_validated_for(folds, ridges, lambda sums, ridge: ridge_change(sums, ridge, bias=bias))


def cross_validated_for(
    folds: Sequence[MapSums],
    ridges: Sequence[float],
    change: Callable[[MapSums, float], Tensor],
    miss: Callable[[MapSums, Tensor], float] | None = None,
) -> list[float]:
    """As :func:`cross_validated`, for changes of another form and another miss."""
    miss = miss or squared_error
    total = reduce(add, folds)
    errors = []
    for ridge in ridges:
        try:
            changes = [change(total - fold, ridge) for fold in folds]
        except ValueError:  # Rounding made the system indefinite: the ridge is too small, and a larger one is in the list.
            errors.append(math.inf)
            continue
        errors.append(sum(miss(fold, change) for fold, change in zip(folds, changes, strict=True)))
    return errors


def spectrum(sums: MapSums, ridge: float) -> tuple[float, float]:
    """Condition number with the ridge added, and effective rank without it, of the inputs' second moments.

    The condition is of power iterations, right to some per cent: all eigenvalues would take longer than the solve.
    """
    a_FF = sums.hh_EE[:-1, :-1]
    trace = float(a_FF.diagonal().sum())
    rank = trace**2 / float(a_FF.square().sum()) if trace > 0 else 0.0
    if math.isinf(ridge) or not len(a_FF):
        return 1.0, rank
    a_FF = a_FF.clone()
    a_FF.diagonal().add_(ridge * sums.mean_diagonal)
    root_FF, info = torch.linalg.cholesky_ex(a_FF)
    if int(info):
        return math.inf, rank
    highest = _largest(lambda v_F1: a_FF @ v_F1, a_FF)
    inverse_of_lowest = _largest(lambda v_F1: torch.cholesky_solve(v_F1, root_FF), a_FF)
    return max(1.0, highest * inverse_of_lowest), rank


def _largest(product: Callable[[Tensor], Tensor], like_FF: Tensor, *, n_steps: int = 60) -> float:
    """The largest eigenvalue of a symmetric positive product, by power iteration from a fixed start."""
    v_F1 = torch.randn(len(like_FF), 1, generator=torch.Generator().manual_seed(0), dtype=like_FF.dtype).to(like_FF.device)
    for _ in range(n_steps):
        v_F1 = product(v_F1 / torch.linalg.vector_norm(v_F1))
    return float(torch.linalg.vector_norm(v_F1))


def effective_rank(values_F: Tensor) -> float:
    """Participation ratio of (F,) eigenvalues, none negative: (sum)^2 / sum of squares; 0 where all are 0."""
    squares = float(values_F.square().sum())
    return float(values_F.sum()) ** 2 / squares if squares else 0.0


def share(left: float, before: float) -> float:
    """Share of a squared miss that is gone."""
    return 1.0 - left / before if before > 0 else 0.0
