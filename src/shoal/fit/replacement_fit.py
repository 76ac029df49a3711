"""Closed-form values of a student's replacement modules, front to back, each towards the teacher's boundary behind its span.

Every layer up to the last replacement is read once. A module's values stand only if they lower the held-out error of the
boundary behind it (unless ``keep`` says otherwise); else the module stays as it started, the identity.

Shapes: B samples, T positions, D hidden size.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from shoal.edits.plan import Plan
from shoal.edits.replace.closed_form import ClosedForm
from shoal.edits.replace.modules import StreamModule
from shoal.edits.replace.table import REPLACEMENTS
from shoal.engine.student import Attached
from shoal.engine.view import Reading
from shoal.fit.boundary_states import free
from shoal.fit.fit_config import FitConfig
from shoal.fit.fit_job import FitJob
from shoal.fit.fit_result import CannotRefit, LayerFit, MapFit, Refitted
from shoal.fit.held_out import LayerEnds, observe
from shoal.fit.magnitude_ratio import mean_ratio
from shoal.fit.solve import solve, solve_for
from shoal.fit.sums import MapSums, no_sums
from shoal.fit.walk import Goal, Here


@dataclass(frozen=True)
class SolveReplacements:
    """The closed forms of a plan's replacements, as a repair. It takes d x d sums, so every worker makes it for itself."""

    def __call__(self, job: FitJob, plan: Plan) -> Refitted:
        return fit_replacements(job.alone())

    def last_layer(self, plan: Plan) -> int:
        return max((edit.start for edit in plan.replacements), default=0)


def closed_form_of(module: nn.Module) -> ClosedForm | None:
    """How the values of an attached module follow from sums; its replacement says."""
    return REPLACEMENTS[module.kind].closed_form(module) if isinstance(module, StreamModule) else None


@torch.no_grad()
def fit_replacements(job: FitJob) -> Refitted:
    """Set the values of every attached module that has a closed form, in copies: the given modules stay as they are.

    Args:
        job: other modules of its student, removed layers and overrides stay.
    Raises:
        CannotRefit: no attached module has a closed form; too few samples.
    """
    unsolved = {one.span.start: one for one in job.student.attached if closed_form_of(one.module) is not None}
    if not unsolved:
        known_forms = ", ".join(name for name, kind in REPLACEMENTS.items() if kind.has_closed_form)
        raise CannotRefit(f"no replacement of this plan has a closed form; those that have: {known_forms}")
    goals = {start: Goal(one.span.stop) for start, one in unsolved.items()}
    solved: dict[int, Attached] = {}
    fits: list[LayerFit] = []
    for here in job.walk(goals):
        started = time.monotonic()
        attached = unsolved[here.layer]
        module = copy.deepcopy(attached.module)
        assert isinstance(module, StreamModule)
        fit = _solve(module, here, job.config)
        solved[here.layer] = replace(attached, module=module)
        fits.append(fit.model_copy(update=dict(seconds=time.monotonic() - started)))
    modules = tuple(solved.get(one.span.start, one) for one in job.student.attached)
    return Refitted({}, tuple(fits), attached=modules)


def _solve(module: StreamModule, here: Here, config: FitConfig) -> LayerFit:
    """Set the module's values in place, or leave its start where that is better, and go on with the states behind it."""
    form, ends = closed_form_of(module), here.ends()
    assert form is not None
    size, device = ends.inputs[0].shape[-1], ends.inputs[0].device

    def run(h_BTD: Tensor, reading: Reading) -> tuple[Tensor, Tensor]:
        return module(h_BTD), form.reads(h_BTD)

    module.start(torch.Generator().manual_seed(0))
    outputs, before, sums = observe(ends, run, config=config, no_sums=lambda: no_sums(size, size, device=device))
    folds = [one for one in sums if isinstance(one, MapSums)]
    at_start = {name: value.clone() for name, value in module.state_dict().items()}
    change = _change_of_form(module.kind, form, ends, config)
    if change is None:
        found = solve(folds, bias=form.bias, ridge=config.ridge)
    else:
        found = solve_for(folds, change, ridge=config.ridge)
    module.load_state_dict(form.values(found.change_ED))
    fitted, after, _ = observe(ends, run, config=config, no_sums=None)
    stands = after < before or config.keep == "always"
    if stands:
        outputs, fitted = fitted, outputs
    else:
        module.load_state_dict(at_start)
    free(fitted)
    here.set(outputs=outputs)
    of_map = MapFit.of(found, form="module", parameters=tuple(sorted(at_start)), held_out_error=after)
    return LayerFit.of_one(here, of_map, before=before, stands=stands)


def _change_of_form(
    kind: str, form: ClosedForm, ends: LayerEnds, config: FitConfig
) -> Callable[[MapSums, float], Tensor] | None:
    """The best change of a form of its own, from sums and a ridge; None: any linear map will do."""
    if config.solve == "ratio":
        if form.ratio is None:
            raise CannotRefit(f"the replacement {kind!r} has no values by ratio; use solve: least_squares")
        by_ratio_ED = form.ratio.change(mean_ratio(ends, of=form.ratio.of, config=config))
        return lambda sums, ridge: by_ratio_ED  # The ratio of magnitudes knows no ridge.
    return form.change
