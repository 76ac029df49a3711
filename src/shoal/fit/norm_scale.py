"""One scale per cut: Prune&Comp's magnitude compensation (arXiv 2507.18212), folded into the maps *after* the cut.

The cut leaves the stream too short. The paper multiplies it by a = mean over samples of mean|y| / mean|x| through the embedding
and every map before the cut. Dividing what every later layer adds by a is the same model, because later layers and the head
read the stream through a norm, so that only proportions count. This way leaves the embedding alone, so a tied head stays as it
is, and where no layer follows the cut there is nothing to do. It is exact but for the epsilon of the norms. Families whose
layers or head are not indifferent to the scale of the stream are refused; the layers are run to find out.

Shapes: B samples, T positions, D hidden size.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shoal.edits.plan import Plan
from shoal.engine.student import Student
from shoal.engine.view import DecoderView, Reading
from shoal.fit.boundary_states import BoundaryStates, SpilledStates, emptied
from shoal.fit.fit_config import FitConfig
from shoal.fit.fit_job import FitJob
from shoal.fit.fit_result import LayerFit, MapFit, Refitted
from shoal.fit.held_out import WEIGHTS, LayerEnds, counted, real_and_sinks
from shoal.fit.magnitude_ratio import mean_ratio, whole
from shoal.fit.sites.of_layer import Sites, probe_of
from shoal.fit.sites.site import CannotRefit, Site
from shoal.fit.walk import Goal, Here
from shoal.words.structure import units_off
from shoal.words.types import Span, spans_of

# Largest relative difference that the epsilon of a norm can make where the stream is small. A layer that differs by more is not
# indifferent to the scale of the stream.
SCALE_TOLERANCE = 1e-2


@dataclass(frozen=True)
class NormScale:
    """One scale per cut, as a repair. It takes one pass of one stream, so every worker makes it for itself."""

    def __call__(self, job: FitJob, plan: Plan) -> Refitted:
        return scale_cuts(job.alone(), cuts=_cuts(plan))

    def last_layer(self, plan: Plan) -> int:
        return _cuts(plan)[-1].start


def _cuts(plan: Plan) -> tuple[Span, ...]:
    """Raises CannotRefit: single sublayers go."""
    if units_off(plan.structure):
        raise CannotRefit("the plan removes single sublayers, and one scale per cut is of whole layers; use --repair refit")
    return spans_of(plan.removed_layers)


@torch.no_grad()
def scale_cuts(job: FitJob, *, cuts: Sequence[Span]) -> Refitted:
    """Scale the stream after each cut to the teacher's mean magnitude; several cuts front to back, with the student's input.

    Args:
        job: its student lacks the layers of ``cuts``, front to back, and nothing else.
    Raises:
        CannotRefit: no layer follows the first cut; a layer or the head is not indifferent to the scale of the stream; a layer
            has no maps to fold it into.
    """
    view = job.view
    kept_after = [layer for layer in range(cuts[0].start, view.n_layers) if not any(layer in cut for cut in cuts)]
    if not kept_after:
        raise CannotRefit(
            "the cut reaches the last layer, and the final norm undoes any scale of the stream; use --repair sweep, or none"
        )
    probe = probe_of(view, job.batches)
    sites = {layer: _sites(view, layer, probe) for layer in kept_after}
    _refuse_head(view, probe)
    goals = {cut.start: Goal(cut.stop) for cut in cuts}
    scales: list[float] = []
    fits: list[LayerFit] = []
    for here in job.walk(goals):
        started = time.monotonic()
        ends = here.ends()
        scale = float(mean_ratio(ends, of=whole, config=job.config))
        fit = _record(here, ends, scale, job.config)
        scales.append(scale if fit.n_kept else 1.0)
        here.set(outputs=_scaled_states(ends.inputs, scales[-1]))
        fits.append(fit.model_copy(update=dict(seconds=time.monotonic() - started)))
    values: dict[int, dict[str, Tensor]] = {}
    for layer, found in sites.items():
        scale = math.prod(one for cut, one in zip(cuts, scales, strict=True) if cut.stop <= layer)
        if scale != 1.0:
            values[layer] = _scaled(view, layer, found, 1.0 / scale)
    return Refitted(values, tuple(fits))


def _scaled_states(states: BoundaryStates, scale: float) -> SpilledStates:
    scaled = emptied(states)
    for h_BTD in states:
        scaled.append(scale * h_BTD)
    return scaled


def _sites(view: DecoderView, layer: int, probe: Reading) -> list[Site[Any]]:
    """The sites that take the scale: half the stream, through halved maps, must give half the answer.

    Raises:
        CannotRefit: a sublayer has no site, or the answer is another one.
    """
    found, reasons = Sites(("attn", "mlp")).of(view, layer, probe)
    if {site.kind for site in found} != {"attn", "mlp"}:
        raise CannotRefit(f"{reasons[0]}; a scale needs all of them: use --repair sweep, or none")
    h_BTD = _unit(probe.h_BTD)
    whole = view.run_layer(layer, h_BTD, probe).double()
    halved = Student(overrides={layer: _scaled(view, layer, found, 0.5)})
    half = view.run_layer(layer, 0.5 * h_BTD, probe, student=halved).double()
    if (2 * half - whole).norm() > SCALE_TOLERANCE * (whole - h_BTD.double()).norm():
        raise CannotRefit(
            f"layer {layer} of this {view.family} model adds something else to a stream of another scale (it does not read it "
            "through a norm), so no scale folds into its maps; use --repair sweep, or none"
        )
    return found


def _scaled(view: DecoderView, layer: int, sites: Sequence[Site[Any]], factor: float) -> dict[str, Tensor]:
    with view.residency.layer(layer) as module:
        parameters = dict(module.named_parameters())
        return {name: value for site in sites for name, value in site.scaled(parameters, factor).items()}


def _refuse_head(view: DecoderView, probe: Reading) -> None:
    whole, half = (view.head(factor * _unit(probe.h_BTD), probe).double() for factor in (1.0, 0.5))
    if (half - whole).norm() > SCALE_TOLERANCE * whole.norm():
        raise CannotRefit(
            f"the head of this {view.family} model depends on the scale of the stream; use --repair sweep, or none"
        )


def _unit(h_BTD: Tensor) -> Tensor:
    """The stream at unit size: embeddings alone are so small that the epsilon of a norm shows, which deeper states are not."""
    return h_BTD / h_BTD.float().square().mean().sqrt().clamp(min=1e-6).to(h_BTD.dtype)


def _record(here: Here, ends: LayerEnds, scale: float, config: FitConfig) -> LayerFit:
    """Errors of the stream as it is and scaled against the teacher's boundary, on the held-out fold and on the others."""
    # Rows: held-out samples, fitted samples. Columns: squared miss without and with the scale, squared norm of the target.
    sums = torch.zeros(2, 3, dtype=torch.float64)
    n_tokens = n_sinks = 0
    for reading, x_BTD, y_BTD, folds_B in zip(ends.readings, ends.inputs, ends.goals, ends.folds, strict=True):
        real_BT, _ = real_and_sinks(reading.batch, x_BTD, y_BTD)
        counted_BT = counted(reading.batch, x_BTD, y_BTD, config)
        n_sinks += int((real_BT & ~counted_BT)[folds_B > 0].sum())
        for row, chosen_B in enumerate((folds_B == 0, folds_B > 0)):
            chosen_BT = counted_BT & chosen_B[:, None]
            x_ND, y_ND = x_BTD[chosen_BT].double(), y_BTD[chosen_BT].double()
            w_N = WEIGHTS[config.weights](y_ND).double()
            misses = [y_ND - x_ND, y_ND - scale * x_ND, y_ND]
            sums[row] += torch.stack([w_N @ miss.square().sum(-1) for miss in misses]).cpu()
            n_tokens += int(chosen_BT.sum()) if row else 0
    (held_before, held_after, held_norm), (fit_before, fit_after, _) = sums.tolist()
    error_before, error_after = (one / held_norm if held_norm else 0.0 for one in (held_before, held_after))
    r2 = 1.0 - fit_after / fit_before if fit_before else 0.0
    scaled = MapFit(
        form="scale",
        parameters=(),
        scale=scale,
        ridge=0.0,
        r2=r2,
        r2_folds=1.0 - held_after / held_before if held_before else 0.0,
        condition=1.0,
        effective_rank=1.0,
        n_tokens=n_tokens,
        n_sinks=n_sinks,
        held_out_error=error_after,
    )
    stands = error_after < error_before or config.keep == "always"
    return LayerFit.of_one(here, scaled, before=error_before, stands=stands)
