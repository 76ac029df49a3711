"""Closed-form values of the patches of a student, front to back: the student's own inputs, the teacher's boundary as target.

Layer-major, as the sweep: every layer up to the last patch is read once. Each patch stands only if it lowers the held-out error
of the boundary behind it (unless ``keep`` says otherwise); else it stays as it started, the identity.

Shapes: B samples, T positions, D hidden size.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from shoal.edits.replace.modules import Hadamard, Patch
from shoal.engine.student import TEACHER, Attached, Student
from shoal.engine.view import DecoderView, Reading
from shoal.fit.boundary_states import BoundaryStates, advance, read_all
from shoal.fit.fit_result import CannotRefit, LayerFit, MapFit
from shoal.fit.held_out import LayerEnds, observe
from shoal.fit.magnitude_ratio import mean_ratio, rotated
from shoal.fit.repairs import FitConfig
from shoal.fit.replacement_forms import PATCH_FORMS, PatchForm, rotation_matrix
from shoal.fit.solve import solve_for
from shoal.fit.sums import MapSums, folds_of, no_sums
from shoal.words.types import Batch


@dataclass(frozen=True, eq=False)
class Patched:
    """The student with its patches fitted (copies; those given are as they were), and what each gained."""

    student: Student
    layers: tuple[LayerFit, ...]


def has_closed_form(module: nn.Module) -> bool:
    return type(module) in PATCH_FORMS


@torch.no_grad()
def fit_patches(
    view: DecoderView,
    student: Student,
    batches: Sequence[Batch],
    *,
    config: FitConfig = FitConfig(),  # noqa: B008  (frozen)
    known: Mapping[int, BoundaryStates] | None = None,
    after_layer: Callable[[int], None] | None = None,
) -> Patched:
    """Set the values of every attached module that has a closed form.

    Args:
        student: its other modules, removed layers and overrides stay.
        known: the teacher's states of all batches at some boundaries, so that they are not run again.
        after_layer: called with each layer that is done, for progress.
    Raises:
        CannotRefit: no attached module has a closed form; too few samples.
    """
    places = {one.span.start: one for one in student.attached if has_closed_form(one.module)}
    if not places:
        raise CannotRefit("no replacement of this plan has a closed form; those that have: linear, free, hadamard, rotation")
    known = known or {}
    readings, boundary = read_all(view, batches)
    folds = [one.to(view.device) for one in folds_of(batches)]
    teacher: BoundaryStates = boundary
    ours = teacher
    del boundary  # it is let go with the first layer
    fits: list[LayerFit] = []
    layer = 0
    while layer <= max(places):
        with view.residency.layer(layer):
            started = time.monotonic()
            place, was_teacher = places.get(layer), ours is teacher
            stop = layer + 1 if place is None else place.span.stop
            if stop in known:
                teacher = known[stop]
            else:
                for between in range(layer, stop):
                    teacher = advance(view, between, TEACHER.step(between), readings, teacher)
            if place is not None:
                fitted, ours, fit = _fit(place, LayerEnds(readings, ours, teacher, folds), config)
                places[layer] = fitted
                fits.append(fit.model_copy(update=dict(seconds=time.monotonic() - started)))
            elif was_teacher and student.step(layer).key == TEACHER.step(layer).key:
                ours = teacher
            else:
                ours = advance(view, layer, student.step(layer), readings, ours)
        if after_layer is not None:
            after_layer(layer)
        layer = stop
    attached = tuple(places.get(one.span.start, one) for one in student.attached)
    return Patched(replace(student, attached=attached), tuple(fits))


def _fit(place: Attached, ends: LayerEnds, config: FitConfig) -> tuple[Attached, BoundaryStates, LayerFit]:
    """A fitted copy (or the start, where it is better), the states behind it, and the record."""
    module = copy.deepcopy(place.module)
    assert isinstance(module, Patch)
    form = PATCH_FORMS[type(module)]
    size, device = ends.inputs[0].shape[-1], ends.inputs[0].device

    def run(h_BTD: Tensor, reading: Reading) -> tuple[Tensor, Tensor]:
        return module(h_BTD), form.reads(module, h_BTD)

    module.start(torch.Generator().manual_seed(0))
    outputs, before, sums = observe(ends, run, config=config, no_sums=lambda: no_sums(size, size, device=device))
    folds = [one for one in sums if isinstance(one, MapSums)]
    at_start = {name: value.clone() for name, value in module.state_dict().items()}
    found = solve_for(folds, _change(module, form, ends, config), ridge=config.ridge)
    module.load_state_dict(form.values(module, found.change_ED))
    fitted, after, _ = observe(ends, run, config=config, no_sums=None)
    stands = after < before or config.keep == "always"
    if stands:
        outputs = fitted
    else:
        module.load_state_dict(at_start)
    fit = MapFit(
        form="patch",
        parameters=tuple(sorted(at_start)),
        ridge=found.ridge,
        r2=found.r2,
        r2_folds=found.r2_folds,
        condition=found.condition,
        effective_rank=found.effective_rank,
        n_tokens=found.n_tokens,
        n_sinks=found.n_sinks,
        held_out_error=after,
    )
    record = LayerFit(
        layer=place.span.start,
        target=place.span.stop,
        error_before=before,
        error_after=after if stands else before,
        maps=(fit,),
        n_kept=int(stands),
        seconds=0.0,
    )
    return replace(place, module=module), outputs, record


def _change(module: Patch, form: PatchForm, ends: LayerEnds, config: FitConfig) -> Callable[[MapSums, float], Tensor]:
    if not (isinstance(module, Hadamard) and config.hadamard == "ratio"):
        return form.change(module)
    delta_D = mean_ratio(ends.readings, ends.inputs, ends.goals, ends.folds, of=rotated, config=config) - 1.0

    def ratio(sums: MapSums, ridge: float) -> Tensor:  # no ridge: the paper's formula has none
        h_DD = rotation_matrix(len(delta_D), like=delta_D)
        return torch.nn.functional.pad((h_DD * delta_D) @ h_DD.mT, (0, 0, 0, 1))

    return ratio
