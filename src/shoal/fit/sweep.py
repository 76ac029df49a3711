"""Refit kept layers front to back: the student's own inputs, the teacher's boundary as target.

Layer-major: teacher and student states of all batches advance together, so each layer is read once, and the one before a cut
once more where memory does not hold it until its target is known. A layer's error after each
solve is measured by running it on a held-out fold, not predicted; what does not lower it is not kept.

Shapes: B samples, T positions, D hidden size, F inputs of a map, N tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shoal.decoder import TEACHER, DecoderView, Reading, Student, Tap
from shoal.decoder.student import Step
from shoal.fit.maps import CannotRefit, LinearMap, MapKind, changed, find_map
from shoal.fit.result import LayerFit, MapFit
from shoal.fit.solve import Solution, solve
from shoal.fit.sums import N_FOLDS, MapSums, add_tokens, folds_of, no_sums
from shoal.scan.tokens import massive_tokens, real_lengths
from shoal.types import Batch

Weigh = Callable[[Tensor], Tensor]
"""Target states (N, D) to the weights (N,) of their tokens."""

Values = dict[str, Tensor]


def relative(target_ND: Tensor) -> Tensor:
    """1 / |target|^2: each token's miss counts in proportion to its own stream."""
    return 1.0 / target_ND.float().square().sum(-1).clamp(min=torch.finfo(torch.float32).tiny)


def plain(target_ND: Tensor) -> Tensor:
    """Every token counts by its squared miss."""
    return torch.ones(len(target_ND), device=target_ND.device)


@dataclass(frozen=True, eq=False)
class Swept:
    """Refitted values per layer, by name inside the layer; what each layer gained; sublayers that were left, with reasons."""

    values: dict[int, Values]
    layers: tuple[LayerFit, ...]
    skipped: tuple[str, ...]


@torch.no_grad()
def sweep_layers(
    view: DecoderView,
    student: Student,
    batches: Sequence[Batch],
    *,
    targets: Mapping[int, int],
    maps: Sequence[MapKind],
    weigh: Weigh = relative,
    after_layer: Callable[[int], None] | None = None,
) -> Swept:
    """Refit layers of a student, each with the refits before it in place.

    Args:
        student: lacks layers; nothing else is overridden.
        targets: layer to the teacher's boundary that its output is fitted to; the student has no layer in between.
        maps: solved one after the other in each layer, each against what is missing after the one before.
        after_layer: called with each finished layer, for progress.
    Raises:
        ValueError: too few samples; no sublayer of any of the layers can be refitted.
    """
    readings = [view.read(batch) for batch in batches]
    folds = [one.to(view.device) for one in folds_of(batches)]
    teacher = [reading.h_BTD for reading in readings]
    ours = teacher
    _refuse_where_nothing_fits(view, targets, maps, readings[0])
    readings = [replace(reading, h_BTD=torch.empty(0)) for reading in readings]  # only the arguments of layers are needed on
    swept: dict[int, Values] = {}
    fits: list[LayerFit] = []
    skipped: list[str] = []
    layer = 0
    while layer <= max(targets):
        with view.residency.layer(layer):
            started = time.monotonic()
            stop = targets.get(layer, layer + 1)
            is_teacher = ours is teacher and layer not in targets and student.step(layer).key == TEACHER.step(layer).key
            for between in range(layer, stop):
                teacher = _advance(view, between, TEACHER.step(between), readings, teacher)
            if layer in targets:
                found, reasons = _maps_of(view, layer, maps, readings[0], ours[0])
                skipped += reasons
                fitting = _LayerInFit(view, layer, readings, ours, teacher, folds, weigh)
                swept[layer], ours, fit = fitting.run(found, target=stop, started=started)
                fits.append(fit)
            elif is_teacher:
                ours = teacher
            else:
                ours = _advance(view, layer, student.step(layer), readings, ours)
        if after_layer is not None:
            after_layer(layer)
        layer = stop
    return Swept({layer: values for layer, values in swept.items() if values}, tuple(fits), tuple(dict.fromkeys(skipped)))


def _advance(view: DecoderView, layer: int, step: Step, readings: Sequence[Reading], states: Sequence[Tensor]) -> list[Tensor]:
    return [view.run_step(layer, step, h_BTD, reading) for h_BTD, reading in zip(states, readings, strict=True)]


def _refuse_where_nothing_fits(view: DecoderView, layers: Iterable[int], kinds: Sequence[MapKind], reading: Reading) -> None:
    """Before any work. Whether a map can be refitted does not depend on the state it is tried on, so boundary 0 will do."""
    reasons: list[str] = []
    for layer in layers:
        found, why = _maps_of(view, layer, kinds, reading, reading.h_BTD)
        if found:
            return
        reasons += why
    raise ValueError(f"nothing can be refitted: {reasons[0]}; use --repair none")


def _maps_of(
    view: DecoderView, layer: int, kinds: Sequence[MapKind], reading: Reading, h_BTD: Tensor
) -> tuple[list[LinearMap], list[str]]:
    """The maps to solve for in order, and why others are left."""
    found: dict[MapKind, LinearMap] = {}
    reasons: list[str] = []
    for kind in dict.fromkeys(kinds):
        try:
            found[kind] = find_map(view, layer, kind, reading=reading, h_BTD=h_BTD)
        except CannotRefit as reason:
            reasons.append(str(reason))
    order = [found[kind] for kind in kinds if kind in found]
    return [one for i, one in enumerate(order) if i == 0 or one != order[i - 1]], reasons


@dataclass(frozen=True, eq=False)
class _LayerInFit:
    """One layer with the student's states before it and the teacher's it should arrive at."""

    view: DecoderView
    layer: int
    readings: Sequence[Reading]
    inputs: Sequence[Tensor]
    goals: Sequence[Tensor]
    folds: Sequence[Tensor]
    weigh: Weigh

    def run(self, maps: Sequence[LinearMap], *, target: int, started: float) -> tuple[Values, list[Tensor], LayerFit]:
        """Values that stand (empty: none), the student's states after the layer with them, and the record."""
        with self.view.residency.layer(self.layer) as module:
            parameters: Values = dict(module.named_parameters())
        values: Values = {}
        errors: list[float] = []
        solutions: list[tuple[LinearMap, Solution]] = []
        best: tuple[Values, list[Tensor]] = ({}, [])
        for place in (*maps, None):
            outputs, error, sums = self._observe(values, place)
            if not errors or error < min(errors):
                best = (values, outputs)
            errors.append(error)
            del outputs
            if place is not None:
                solutions.append((place, solve(sums, bias=place.has_bias)))
                values = {**values, **changed(place, {**parameters, **values}, solutions[-1][1].change_ED)}
        fits = [_record(place, solution, error) for (place, solution), error in zip(solutions, errors[1:], strict=True)]
        n_kept = errors.index(min(errors))
        record = LayerFit(
            layer=self.layer,
            target=target,
            error_before=errors[0],
            error_after=errors[n_kept],
            maps=tuple(fits),
            n_kept=n_kept,
            seconds=time.monotonic() - started,
        )
        return *best, record

    def _observe(self, values: Values, place: LinearMap | None) -> tuple[list[Tensor], float, list[MapSums]]:
        """Run the layer with ``values``: its outputs, the held-out error, and the sums per fold for the next solve."""
        step, taps = Step("run", overrides=values), [] if place is None else [place.tap]
        device = self.view.device
        sums = [no_sums(place.n_inputs, place.n_outputs, device=device) for _ in range(1, N_FOLDS)] if place else []
        outputs: list[Tensor] = []
        miss, norm = 0.0, 0.0
        for reading, h_BTD, goal_BTD, folds_B in zip(self.readings, self.inputs, self.goals, self.folds, strict=True):
            seen: dict[Tap, Tensor] = {}
            with self.view.tapped(self.layer, taps, seen):
                outputs.append(self.view.run_step(self.layer, step, h_BTD, reading))
            real_BT, sinks_BT = _tokens(reading.batch, h_BTD, goal_BTD)
            missing_BTD = goal_BTD.float() - outputs[-1].float()
            for fold in folds_B.unique().tolist():
                chosen_BT = real_BT & (folds_B == fold)[:, None]
                goal_ND, missing_ND, sinks_N = goal_BTD[chosen_BT], missing_BTD[chosen_BT], sinks_BT[chosen_BT]
                weights_N = self.weigh(goal_ND)
                if fold == 0:
                    counted_N = (weights_N * ~sinks_N).double()
                    miss += float(counted_N @ missing_ND.double().square().sum(-1))
                    norm += float(counted_N @ goal_ND.double().square().sum(-1))
                elif place is not None:
                    h_NF = seen[place.tap].reshape(*chosen_BT.shape, place.n_inputs)[chosen_BT]
                    add_tokens(sums[fold - 1], h_NF, missing_ND, weights_N=weights_N, sinks_N=sinks_N)
        return outputs, miss / norm if norm else 0.0, [one for one in sums if one.n_tokens]


def _tokens(batch: Batch, h_BTD: Tensor, goal_BTD: Tensor) -> tuple[Tensor, Tensor]:
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


def _record(place: LinearMap, solution: Solution, error: float) -> MapFit:
    return MapFit(
        parameters=place.parameters,
        ridge=solution.ridge,
        r2=solution.r2,
        r2_folds=solution.r2_folds,
        condition=solution.condition,
        effective_rank=solution.effective_rank,
        n_tokens=solution.n_tokens,
        n_sinks=solution.n_sinks,
        held_out_error=error,
    )
