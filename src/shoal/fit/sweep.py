"""Refit kept layers front to back: the student's own inputs, the teacher's boundary as target.

The layer before a cut is fitted to a point ``share`` of the way from the teacher's boundary right behind that layer to the one
behind the cut. With share 1 it has to make up for the whole cut. Where later kept layers are refitted, too, a smaller share
leaves them the remaining difference; 2/3 was best (docs/log.md). The last layer that is fitted always gets its whole target.
Behind the last cut a sweep ends where the layers that are left would gain next to nothing: :mod:`shoal.fit.sweep_end`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.edits.plan import Plan
from shoal.engine.view import Reading
from shoal.fit.fit_config import FitConfig
from shoal.fit.fit_job import FitJob
from shoal.fit.fit_result import CannotRefit, LayerFit, Refitted
from shoal.fit.kept_layers import FittedLayer, LayerRecord
from shoal.fit.layer_fit import LayerSolution, LayerSolver
from shoal.fit.repair import N_SUMS, RepairSize, bytes_of_sums
from shoal.fit.sites.neuron_pool import EXTRA, NeuronPool, Ranking, ranking_batches
from shoal.fit.sites.of_layer import Sites, probe_of
from shoal.fit.sites.site import MapKind
from shoal.fit.sweep_end import SweepEnd
from shoal.fit.targets import from_first_cut
from shoal.fit.walk import Goal, Here
from shoal.words.model_shape import ModelShape

MAPS: tuple[MapKind, ...] = ("mlp", "attn", "mlp")
"""What is solved for in each layer, in order. The MLP's map comes first: its change reaches the stream as it is, while a change
of the attention's map also moves what the MLP reads. docs/repair.md has the figures."""

SHARE = 2 / 3
"""The part of a cut that a sweep asks of the layer before it; the layers behind the cut make up the rest. On all cuts tried a
whole share left more KL. docs/log.md has the figures."""

N_SUMS_OF_POOL = 1 + 3
"""Matrices alive during the choice among candidates: the sums of all folds together, a copy, its Cholesky factor, and a copy of
that."""

N_ANSWERS = 3
"""What all candidates say of a batch, in fp32: by groups, joined, and weighted."""


@dataclass(frozen=True)
class Sweep:
    """A repair that refits sites of layers, front to back.

    Attributes:
        targets: a plan to its layers, each with the boundary that its output is fitted to.
        sites, share: as for :func:`sweep_layers`.
    """

    targets: Callable[[Plan], dict[int, int]]
    sites: Sites
    share: float = 1.0

    def __call__(self, job: FitJob, plan: Plan) -> Refitted:
        return sweep_layers(job, targets=self.targets(plan), sites=self.sites, share=self.share)

    def last_layer(self, plan: Plan) -> int:
        return max(self.targets(plan))


WHOLE_SWEEP = Sweep(from_first_cut, Sites(MAPS, gathers=True), share=SHARE)
"""Every kept layer from the one before the first cut on."""


def whole_sweep_size(shape: ModelShape, n_kept: int) -> RepairSize:
    """Both maps of every kept layer, as if the cut were in front, and the whole MLP of the layer before it."""
    mlp, n_pool = shape.ffn * shape.hidden, int((1 + EXTRA) * shape.ffn)
    of_maps = N_SUMS * bytes_of_sums(shape.ffn, shape.hidden)
    of_pool = N_SUMS_OF_POOL * bytes_of_sums(n_pool, shape.hidden)
    return RepairSize(
        parameters=n_kept * (mlp + shape.hidden**2) + 2 * mlp,
        layers=n_kept,
        solved=(shape.ffn, shape.hidden, shape.ffn),
        # Two maps of the candidates are there twice, as rows and as maps, and one map of one more layer.
        sums=max(of_maps, of_pool) + 5 * n_pool * shape.hidden * shape.itemsize,
        per_token=N_ANSWERS * n_pool * 4,
    )


@torch.no_grad()
def sweep_layers(job: FitJob, *, targets: Mapping[int, int], sites: Sites, share: float = 1.0) -> Refitted:
    """Refit layers of a student, each with the refits before it in place.

    Args:
        job: its student lacks layers or sublayers; layers of it may have weights of their own, as merged ones have.
        targets: layer to the teacher's boundary that its output is fitted to; the student has no layer in between.
        sites: what is set in each layer.
        share: the part of the teacher's change over a cut that the layer before it is asked to make up.
    Raises:
        CannotRefit: too few samples; no sublayer of any of the layers can be refitted.
    """
    view, batches, config = job.view, job.batches, job.config
    probe = probe_of(view, batches)
    sites.refuse_none(view, targets, probe)
    n_ranking = len(list(job.workers.share(batches[: ranking_batches(batches)])))
    last = max(targets)
    goals = {layer: Goal(stop, share if layer + 1 < stop and layer < last else 1.0) for layer, stop in targets.items()}
    orphans = _orphans(job, targets)
    end = SweepEnd(list(targets), _always_fitted(job, targets) | set(orphans), config)
    swept: dict[int, dict[str, Tensor]] = {}
    fits: list[LayerFit] = []
    skipped: list[str] = []
    ended_behind: int | None = None
    with closing(job.walk(goals)) as walked:
        for here in walked:
            if end.passes(here.layer):
                continue
            done = _set(job, here, sites, probe, orphans=orphans.get(here.layer, ()), n_ranking=n_ranking)
            swept[here.layer] = dict(done.values)
            skipped += done.record.skipped
            fits.append(done.record.fit)
            end.add(fits[-1])
            if end.is_over(here.layer):
                ended_behind = here.layer
                break
    values_of_layers = {layer: values for layer, values in swept.items() if values}
    return Refitted(values_of_layers, tuple(fits), tuple(dict.fromkeys(skipped)), ended_behind=ended_behind)


def _always_fitted(job: FitJob, targets: Mapping[int, int]) -> set[int]:
    """Layers that a cut follows, or that lost a sublayer."""
    steps = {layer: job.student.step(layer) for layer in targets}
    return {layer for layer, step in steps.items() if targets[layer] != layer + 1 or step is None or step.zeroed}


def _orphans(job: FitJob, targets: Mapping[int, int]) -> dict[int, tuple[int, ...]]:
    """For each layer with an MLP that stands right behind layers without one: those layers, and any that were removed between.

    Nothing before them can take these neurons, so that layer does.
    """
    found: dict[int, tuple[int, ...]] = {}
    run: list[int] = []
    reached: int | None = None
    for layer, stop in targets.items():
        run = run if layer == reached else []
        reached, step = stop, job.student.step(layer)
        if step is not None and "mlp" in step.zeroed:
            run = [*run, *range(layer, stop)]
        elif run:
            found[layer], run = tuple(run), []
    return found


def _set(job: FitJob, here: Here, sites: Sites, probe: Reading, *, orphans: Sequence[int], n_ranking: int) -> FittedLayer:
    """One layer fitted, or as an earlier run of this sweep left it."""
    known = None if job.kept is None else job.kept.read(here.layer, device=job.view.device)
    if known is not None:
        here.set(known.values)
        return known
    started = time.monotonic()
    found, reasons = _solved(job, here, sites, probe, orphans=orphans, n_ranking=n_ranking)
    fit = found.record(here, seconds=time.monotonic() - started)
    done = FittedLayer(LayerRecord(fit=fit, skipped=tuple(reasons)), found.values)
    if job.kept is not None:
        job.kept.write(here.layer, done)
    return done


def _solved(
    job: FitJob, here: Here, sites: Sites, probe: Reading, *, orphans: Sequence[int], n_ranking: int
) -> tuple[LayerSolution, list[str]]:
    """What the solves of one layer found, and why sublayers of it were left."""
    step, config = job.student.step(here.layer), job.config
    there = sites if step is None else sites.without(step.zeroed)
    pool, why_not = None, ""
    if orphans or here.goal.boundary != here.layer + 1:
        pool, why_not = _pool_of(here, there, probe, config=config, n_ranking=n_ranking)
    if pool is not None:
        for layer in orphans:
            pool.visit(layer)
    ends = here.ends(passing=None if pool is None else pool.visit)
    found, reasons = there.of(job.view, here.layer, probe)
    try:
        found = found if pool is None else [pool.site(), *found]
    except CannotRefit as reason:
        why_not = str(reason)
    if why_not and not any(one.startswith(why_not) for one in reasons):
        reasons.append(f"{why_not}; it keeps its own neurons")
    solution = LayerSolver(here, ends, config).solve(found)
    here.set(outputs=solution.outputs)
    return solution, reasons


def _pool_of(here: Here, sites: Sites, probe: Reading, *, config: FitConfig, n_ranking: int) -> tuple[NeuronPool | None, str]:
    """Candidates for the layer's MLP where neurons are without a place; None, and the reason where the family is one.

    A layer whose weights are no longer the source's stands for the layers behind it already, so it keeps its neurons.
    """
    if not sites.gathers or "mlp" not in sites.kinds or here.own:
        return None, ""
    ranking = Ranking(here.readings[:n_ranking], here.inputs[:n_ranking], here.folds[:n_ranking])
    try:
        return NeuronPool(here.view, here.layer, probe=probe, ranking=ranking, config=config, workers=here.workers), ""
    except CannotRefit as reason:
        return None, str(reason)
