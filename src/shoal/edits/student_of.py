"""From a plan and its values to a student, and back to values.

Values are flat names to tensors, one safetensors file beside the plan: ``replace.{start}-{stop}.<name in the module>`` for
replacements, ``refit.{layer}.<name in the layer>`` for refitted parameters, ``prune.{layer}.…`` for those with zeros,
``insert.{after}.{number}.…`` for new layers, ``merge.{into}.…`` for merged ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from shoal.edits.plan import Plan
from shoal.edits.replace.contract import Replacement
from shoal.edits.replace.replace_edit import Replace
from shoal.engine.student import Attached, Step, Student
from shoal.engine.view import DecoderView
from shoal.words.types import Span, Unit


def attach(replacement: Replacement, span: Span, module: nn.Module) -> Attached:
    """A built (and perhaps trained) module in place of its span."""
    return Attached(span, module, replacement.args_from(span))


def new_attached(view: DecoderView, edit: Replace) -> Attached:
    """The untrained replacement of one edit of a plan.

    Raises:
        ValueError: unknown replacement or options, or it cannot be built for this model.
    """
    replacement = edit.description
    return attach(replacement, edit.span, replacement.build(view, edit.span))


def prefix_of(span: Span) -> str:
    """What the names of the values of a module in place of ``span`` begin with."""
    return f"replace.{span.start}-{span.stop}."


def values_of(attached: Iterable[Attached]) -> dict[str, Tensor]:
    """The state of replacement modules under the names a plan's values have. Copies, not aliases."""
    return {
        f"{prefix_of(one.span)}{name}": value.detach().clone()
        for one in attached
        for name, value in one.module.state_dict().items()
    }


@dataclass
class Overlay:
    """What edits put on the source: the parts of a student, while they are collected."""

    removed: set[Unit] = field(default_factory=set)
    overrides: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    attached: list[Attached] = field(default_factory=list)
    inserted: dict[int, tuple[Step, ...]] = field(default_factory=dict)


def student_of(view: DecoderView, plan: Plan, values: Mapping[str, Tensor] | None = None) -> Student:
    """The student a plan describes: removed units, new parameters, modules.

    Args:
        plan: of this view's model.
        values: tensors beside the plan. A replacement without any is untrained, as it starts; a refit needs all of its own.
    Raises:
        ValueError: the plan is of a model of another depth; values are missing, left over or of another shape.
    """
    values = {} if values is None else values
    if plan.n_layers != view.n_layers:
        raise ValueError(f"the plan is of a {plan.n_layers}-layer model, this one has {view.n_layers} layers")
    overlay, used = Overlay(), set[str]()
    for edit in plan.edits:
        own = {name: values[name] for name in values if edit.owns(name)}
        edit.lay_over(overlay, view, own)
        used.update(own)
    left = sorted(set(values) - used)
    if left:
        raise ValueError(f"{len(left)} values belong to no edit of the plan, the first is {left[0]!r}; pass the plan's own")
    attached = tuple(sorted(overlay.attached, key=lambda one: one.span.start))
    name = plan.method or "student"
    return Student(frozenset(overlay.removed), overlay.overrides, attached, overlay.inserted, name=name)


def with_derived(view: DecoderView, plan: Plan, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values of a plan, with those that follow from the source's weights for the edits that have none beside the plan.

    Raises:
        ValueError: the source has no layers to derive them from.
    """
    found = dict(values)
    for edit in plan.edits:
        if not any(edit.owns(name) for name in values):
            found.update(edit.derived(view))
    return found


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


def parameters_of_layer(
    view: DecoderView, index: int, keys: Mapping[str, str | None], values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """New values of some parameters of a layer, in its dtype and on the view's device.

    Args:
        keys: names inside the layer to names of their values.
    Raises:
        ValueError: the layer has no such parameter; values are missing or of another shape.
    """
    found: dict[str, Tensor] = {}
    with view.residency.layer(index) as layer:
        parameters = dict(layer.named_parameters())
        for name, key in keys.items():
            if name not in parameters:
                raise ValueError(f"layer {index} of this {view.family} model has no parameter {name!r}")
            if key is None or key not in values:
                raise ValueError(f"{key!r} is missing; plan and values do not match")
            _same_shape(repr(key), values[key], parameters[name])
            found[name] = values[key].to(device=view.device, dtype=parameters[name].dtype)
    return found


def _same_shape(what: str, value: Tensor, target: Tensor) -> None:
    if value.shape != target.shape:
        got, needed = tuple(value.shape), tuple(target.shape)
        raise ValueError(f"{what} has shape {got}, {needed} is needed; plan and values do not match")
