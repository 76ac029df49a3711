"""Refit kept layers front to back: the student's own inputs, the teacher's boundary as target.

The layer before a cut need not make up all that the cut leaves out: where layers behind it are fitted, too, it aims at a
point on the way (``share``), and they take the rest. docs/log.md has the figures.

Layer-major: teacher and student states of all batches advance together, so each layer is read once, and the one before a cut
once more where memory does not hold it until its target is known. A layer's error after each
solve is measured by running it on a held-out fold, not predicted; what does not lower it is not kept.

Shapes: B samples, T positions, D hidden size, F inputs of a map, N tokens.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shoal.engine.student import TEACHER, Step, Student
from shoal.engine.view import DecoderView, Reading, Tap
from shoal.engine.workers import ALONE, Workers
from shoal.fit.boundary_states import Between, BoundaryStates, advance, read_all
from shoal.fit.fit_result import LayerFit, MapFit
from shoal.fit.held_out import LayerEnds, held_out, observe
from shoal.fit.repairs import FitConfig
from shoal.fit.sites.folded_map import find_output
from shoal.fit.sites.linear_map import find_map
from shoal.fit.sites.neuron_pool import Gathering, Ranking, ranking_batches
from shoal.fit.sites.norm_gain import find_gain
from shoal.fit.sites.site import CannotRefit, MapKind, Site
from shoal.fit.solve import Solution
from shoal.fit.sums import N_FOLDS, Sums, folds_of
from shoal.words.types import Batch

Find = Callable[..., Site[Any]]
"""``find(view, layer, kind, reading=..., h_BTD=...)``: what of a sublayer is set; raises CannotRefit."""

Values = dict[str, Tensor]

WHOLE: tuple[Find, ...] = (find_map, find_output, find_gain)
"""The most of a sublayer that has a closed form: its output map; a map folded into its experts; the gain of its norm."""

INSTEAD: dict[str, str] = {
    "weight": "its output map is refitted",
    "output": "a map of its output is folded into the weights that end it",
    "bias": "its bias is refitted",
    "gain": "the gain of that norm is refitted",
}


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
    kinds: Sequence[MapKind],
    finds: Sequence[Find] = WHOLE,
    share: float = 1.0,
    gathers: bool = False,
    config: FitConfig = FitConfig(),  # noqa: B008  (frozen)
    known: Mapping[int, BoundaryStates] | None = None,
    after_layer: Callable[[int], None] | None = None,
    workers: Workers = ALONE,
) -> Swept:
    """Refit layers of a student, each with the refits before it in place.

    Args:
        student: lacks layers; nothing else is overridden.
        targets: layer to the teacher's boundary that its output is fitted to; the student has no layer in between.
        kinds: sublayers solved one after the other in each layer, each against what is missing after the one before.
        finds: what is set in each, the first that has a closed form.
        share: of the teacher's change over a cut, what the layer before it is fitted to make up where a later layer is fitted,
            too. The last one is always fitted to its whole target.
        gathers: a layer before a cut whose MLP is solved first takes the best neurons of the removed layers (``fit.neurons``).
        known: the teacher's states of all batches at some boundaries, so that they are not run again.
        after_layer: called with each finished layer, for progress.
        workers: who share the batches; folds are those of all samples, sums are added, and all of them get the same values.
    Raises:
        CannotRefit: too few samples; no sublayer of any of the layers can be refitted.
    """
    known = known or {}
    readings, boundary = read_all(view, workers.share(batches))
    folds = [one.to(view.device) for one in workers.share(folds_of(batches))]
    teacher: BoundaryStates = boundary
    ours = teacher
    del boundary  # it is let go with the first layer
    probe = probe_of(view, batches)
    refuse_where_nothing_fits(view, targets, kinds, finds, probe)

    def teacher_at(boundary: int, start: int, states: BoundaryStates, gathering: Gathering | None = None) -> BoundaryStates:
        """The teacher's states at a boundary, run on from ``start`` unless they are known."""
        for layer in range(start, boundary):
            if boundary not in known:
                states = advance(view, layer, TEACHER.step(layer), readings, states)
            if gathering is not None and layer != gathering.layer:
                gathering.visit(layer)
        return list(workers.share(known[boundary])) if boundary in known else states

    def gathering_for(layer: int, ours: BoundaryStates) -> tuple[Gathering | None, str]:
        """None and why, where the MLP's neurons cannot be set one by one."""
        n = len(list(workers.share(batches[: ranking_batches(batches)])))
        of = Ranking(readings[:n], ours[:n], folds[:n])
        try:
            return Gathering(view, layer, probe=probe, ranking=of, config=config, workers=workers), ""
        except CannotRefit as reason:
            return None, str(reason)

    swept: dict[int, Values] = {}
    fits: list[LayerFit] = []
    skipped: list[str] = []
    layer = 0
    while layer <= max(targets):
        with view.residency.layer(layer):
            started = time.monotonic()
            stop = targets.get(layer, layer + 1)
            is_teacher = ours is teacher and layer not in targets and student.step(layer).key == TEACHER.step(layer).key
            aim = share if stop > layer + 1 and layer < max(targets) else 1.0
            has_cut = gathers and stop > layer + 1 and "mlp" in kinds
            gathering, left = gathering_for(layer, ours) if has_cut else (None, "")
            near = teacher_at(layer + 1, layer, teacher) if aim < 1.0 else None
            teacher = (
                teacher_at(stop, layer, teacher, gathering) if near is None else teacher_at(stop, layer + 1, near, gathering)
            )
            goals = teacher if near is None else Between(near, teacher, aim)
            del near
            if layer in targets:
                found, reasons = places_of(view, layer, kinds, finds, probe)
                if gathering is not None:
                    try:
                        found = [gathering.place(), *found]
                    except CannotRefit as reason:
                        left = str(reason)
                del gathering
                if left and not any(one.startswith(left) for one in reasons):
                    reasons.append(f"{left}; it keeps its own neurons")
                skipped += reasons
                ends = LayerEnds(readings, ours, goals, folds, workers)
                # nobody reads what the last layer makes of the other samples
                judged = held_out(view, ends) if layer == max(targets) else ends
                fitting = _LayerInFit(view, layer, ends, judged, config)
                swept[layer], ours, fit = fitting.run(found, target=stop, share=aim, started=started)
                fits.append(fit)
            elif is_teacher:
                ours = teacher
            else:
                ours = advance(view, layer, student.step(layer), readings, ours)
        if after_layer is not None:
            after_layer(layer)
        layer = stop
    return Swept({layer: values for layer, values in swept.items() if values}, tuple(fits), tuple(dict.fromkeys(skipped)))


def probe_of(view: DecoderView, batches: Sequence[Batch]) -> Reading:
    """One sample, to try places on. Whether one can be set does not depend on the state it is tried on: boundary 0 will do."""
    first = batches[0]
    return view.read(Batch(first.ids_BT[:1], None if first.mask_BT is None else first.mask_BT[:1]))


def refuse_where_nothing_fits(
    view: DecoderView, layers: Iterable[int], kinds: Sequence[MapKind], finds: Sequence[Find], probe: Reading
) -> None:
    """Before any work.

    Raises:
        CannotRefit: none of the layers has anything to set; says why the first has not.
    """
    reasons: list[str] = []
    for layer in layers:
        found, why = places_of(view, layer, kinds, finds, probe)
        if found:
            return
        reasons += why
    raise CannotRefit(f"nothing can be refitted: {reasons[0]}; use --repair none")


def places_of(
    view: DecoderView, layer: int, kinds: Sequence[MapKind], finds: Sequence[Find], probe: Reading
) -> tuple[list[Site[Any]], list[str]]:
    """What to solve for in order, and why more is not set."""
    found: dict[MapKind, Site[Any]] = {}
    reasons: list[str] = []
    for kind in dict.fromkeys(kinds):
        why_not: list[str] = []
        for find in finds:
            try:
                found[kind] = find(view, layer, kind, reading=probe, h_BTD=probe.h_BTD)
                break
            except CannotRefit as reason:
                why_not.append(str(reason))
        instead = f"; {INSTEAD[found[kind].form]}" if kind in found else ""
        reasons += [reason + instead for reason in why_not[:1]]
    order = [found[kind] for kind in kinds if kind in found]
    return [one for i, one in enumerate(order) if i == 0 or one is not order[i - 1]], reasons


@dataclass(frozen=True, eq=False)
class _LayerInFit:
    """One layer with the student's states before it and the teacher's it should arrive at.

    ``judged``: the samples of the last run; all of them, or the held-out ones where no layer follows.
    """

    view: DecoderView
    layer: int
    ends: LayerEnds
    judged: LayerEnds
    config: FitConfig

    def run(
        self, places: Sequence[Site[Any]], *, target: int, share: float, started: float
    ) -> tuple[Values, BoundaryStates, LayerFit]:
        """Values that stand (empty: none), the student's states after the layer with them, and the record."""
        with self.view.residency.layer(self.layer) as module:
            parameters: Values = dict(module.named_parameters())
        values: Values = {}
        errors: list[float] = []
        solutions: list[tuple[Site[Any], Solution]] = []
        best: tuple[Values, BoundaryStates] = ({}, [])
        changed = True
        for place in (*places, None):
            if place is not None and solutions and _ends_in(*solutions[-1], place):
                continue
            outputs, error, sums = self._observe(values, place)
            error = error if changed else errors[-1]  # of the same values: no sum of other samples makes it better
            if not errors or error < min(errors) or self.config.keep == "always":
                best = (values, outputs)
            errors.append(error)
            del outputs
            if place is not None:
                solution = place.solve(sums, ridge=self.config.ridge)
                solutions.append((place, solution))
                changed = not math.isinf(solution.ridge)
                if changed:
                    values = {**values, **place.changed({**parameters, **values}, solution.change_ED)}
        fits = [_record(place, solution, error) for (place, solution), error in zip(solutions, errors[1:], strict=True)]
        n_kept = errors.index(min(errors)) if self.config.keep == "if_better" else len(solutions)
        record = LayerFit(
            layer=self.layer,
            target=target,
            share=share,
            error_before=errors[0],
            error_after=errors[n_kept],
            maps=tuple(fits),
            n_kept=n_kept,
            seconds=time.monotonic() - started,
        )
        return *best, record

    def _observe(self, values: Values, place: Site[Any] | None) -> tuple[BoundaryStates, float, list[Sums]]:
        """Run the layer with ``values``: its outputs, the held-out error, and the sums per fold for the next solve."""
        step = Step("run", overrides=values)

        def run(h_BTD: Tensor, reading: Reading) -> tuple[Tensor, Tensor | None]:
            seen: dict[Tap, Tensor] = {}
            with self.view.tapped(self.layer, [] if place is None else [place.tap], seen):
                output_BTD = self.view.run_step(self.layer, step, h_BTD, reading)
            return output_BTD, None if place is None else place.inputs(seen[place.tap])

        no_sums = None if place is None else functools.partial(place.no_sums, self.view.device)
        n_sums = 1 if place is not None and place.form == "neurons" else N_FOLDS - 1  # those of all candidates are large
        ends = self.judged if place is None else self.ends
        return observe(ends, run, config=self.config, no_sums=no_sums, n_sums=n_sums)


def _ends_in(filled: Site[Any], solution: Solution, place: Site[Any]) -> bool:
    """An MLP that was just filled with neurons has its output map solved with them: once more would find nothing."""
    return filled.form == "neurons" and place.kind == filled.kind and not math.isinf(solution.ridge)


def _record(place: Site[Any], solution: Solution, error: float) -> MapFit:
    return MapFit(
        form=place.form,
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
