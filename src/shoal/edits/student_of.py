"""From a plan and its values to a student, and back to values.

Values are flat names to tensors, one safetensors file beside the plan: ``replace.{start}-{stop}.<name in the module>`` for
replacements, ``refit.{layer}.<name in the layer>`` for refitted parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from shoal.edits.replace.contract import Replacement
from shoal.edits.replace.table import replacement_named
from shoal.engine.student import Attached, Student
from shoal.engine.view import DecoderView
from shoal.words.edits import Refit, Replace
from shoal.words.plan import Plan
from shoal.words.types import Span


def attach(replacement: Replacement, span: Span, module: nn.Module) -> Attached:
    """A built (and perhaps trained) module in place of its span."""
    return Attached(span, module, replacement.args_from(span))


def new_attached(view: DecoderView, edit: Replace) -> Attached:
    """The untrained replacement of one edit of a plan.

    Raises:
        ValueError: unknown replacement or options, or it cannot be built for this model.
    """
    replacement = replacement_named(edit.replacement, edit.options)
    return attach(replacement, edit.span, replacement.build(view, edit.span))


def values_of(attached: Iterable[Attached]) -> dict[str, Tensor]:
    """The state of replacement modules under the names a plan's values have. Copies, not aliases."""
    return {
        _prefix(one.span) + name: value.detach().clone() for one in attached for name, value in one.module.state_dict().items()
    }


def student_of(view: DecoderView, plan: Plan, values: Mapping[str, Tensor] | None = None) -> Student:
    """The student a plan describes: removed units, refitted parameters, replacement modules.

    Args:
        plan: of this view's model.
        values: tensors beside the plan. A replacement without any is untrained, as it starts; a refit needs all of its own.
    Raises:
        ValueError: the plan is of a model of another depth; values are missing, left over or of another shape.
    """
    values = {} if values is None else values
    if plan.n_layers != view.n_layers:
        raise ValueError(f"the plan is of a {plan.n_layers}-layer model, this one has {view.n_layers} layers")
    used: set[str] = set()
    overrides: dict[int, dict[str, Tensor]] = {}
    for edit in plan.edits:
        if isinstance(edit, Refit):
            overrides[edit.layer] = _refitted(view, edit, values)
            used.update(f"refit.{edit.layer}.{name}" for name in edit.parameters)
    attached = []
    for edit in plan.replacements:
        one = new_attached(view, edit)
        prefix = _prefix(edit.span)
        own = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
        if own:
            load_values(one.module, own, where=f"values of {edit.replacement!r} over {edit.span}")
        used.update(prefix + name for name in own)
        attached.append(one)
    left = sorted(set(values) - used)
    if left:
        raise ValueError(f"{len(left)} values belong to no edit of the plan, the first is {left[0]!r}; pass the plan's own")
    return Student(plan.dropped_units, overrides, tuple(attached), name=plan.method or "student")


@torch.no_grad()
def load_values(module: nn.Module, values: Mapping[str, Tensor], *, where: str) -> None:
    """Copy values into a module, in the module's dtype and on its device.

    Raises:
        ValueError: names or shapes differ; the first difference is named.
    """
    state = module.state_dict()
    for name in sorted(set(state) ^ set(values)):
        raise ValueError(f"{where}: {name!r} is {'missing' if name in state else 'unknown'}; plan and values do not match")
    for name, target in state.items():
        _same_shape(f"{where}: {name!r}", values[name], target)
        target.copy_(values[name])


def _refitted(view: DecoderView, edit: Refit, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    with view.residency.layer(edit.layer) as layer:
        parameters = dict(layer.named_parameters())
        for name in edit.parameters:
            key = f"refit.{edit.layer}.{name}"
            if name not in parameters:
                raise ValueError(f"layer {edit.layer} of this {view.family} model has no parameter {name!r}")
            if key not in values:
                raise ValueError(f"{key!r} is missing; plan and values do not match")
            _same_shape(repr(key), values[key], parameters[name])
            found[name] = values[key].to(device=view.device, dtype=parameters[name].dtype)
    return found


def _same_shape(what: str, value: Tensor, target: Tensor) -> None:
    if value.shape != target.shape:
        got, needed = tuple(value.shape), tuple(target.shape)
        raise ValueError(f"{what} has shape {got}, {needed} is needed; plan and values do not match")


def _prefix(span: Span) -> str:
    return f"replace.{span.start}-{span.stop}."
