"""A student as a model of its own, sharing its weights with the teacher: layers rebuilt, renumbered, config edited.

Only what a stock checkpoint can hold: removed layers, refitted parameters, sublayers removed by a zero output map, and
replacements that are themselves layers of the family. Nothing of the teacher is edited; parameters that change are new tensors.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shoal.checkpoint.blueprint import check_layers, edited_config, refuse_other_tensors
from shoal.checkpoint.rewrite import state_no_prediction
from shoal.engine.families import find_layers, output_map
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.words.types import Batch


def cut(view: DecoderView, student: Student) -> Any:
    """The student as a stock model, in eval mode. Kept parameters are the teacher's own tensors.

    Raises:
        ValueError: the student cannot be a stock checkpoint: a replacement that is no layer of the family, a sublayer without
            an output map, a config that cannot describe what is left, layers that are not in memory.
    """
    model, family = view.model, view.family
    layers = find_layers(model)[1]
    row = _row(view, student)
    order = [place.layer for place in row]
    _refuse_absent(layers, [place.layer for place in row if place.module is None], family)
    refuse_inexact_sublayers(view, student)
    plan = check_layers(model.config, order, model_class=type(model))

    config = edited_config(model.config, order)
    state_no_prediction(config)
    memo: dict[int, Any] = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    memo.update(_config_pairs(model.config, config))
    rebuilt = nn.ModuleList()
    memo[id(layers)] = rebuilt
    result = copy.deepcopy(model, memo)
    around = dict(memo)  # A layer that stands in several places is copied anew for each.
    for place in row:
        if place.module is not None:
            new = _stock_copy(place, layers[place.layer], memo, family)
        else:
            new = copy.deepcopy(layers[place.layer], dict(around) if place.is_inserted else memo)
            _put(new, place.overrides, place.layer)
        for kind in sorted(place.zeroed):
            _zero_output_map(new, kind, place.layer, family)
        rebuilt.append(new)
    renumber(rebuilt)
    _adopt_counts(result, plan, (len(layers), len(order)))
    result.train(False)
    refuse_other_tensors(result, plan, f"the cut {family} model")
    return result


def renumber(layers: nn.ModuleList) -> None:
    """Set every ``layer_idx`` inside layer ``j`` to ``j``; caches and masks are found by it."""
    for j, layer in enumerate(layers):
        for module in layer.modules():
            if isinstance(vars(module).get("layer_idx"), int):
                vars(module)["layer_idx"] = j


@dataclass(frozen=True, eq=False)
class _LayerToBe:
    """One layer of the new model: a layer of the source with what differs in it, or a module in place of ``where``."""

    layer: int
    overrides: Mapping[str, Tensor] = field(default_factory=dict)
    zeroed: frozenset[str] = frozenset()
    module: nn.Module | None = None
    is_inserted: bool = False
    where: str = ""


def _row(view: DecoderView, student: Student) -> list[_LayerToBe]:
    """The layers of the new model, in the order of the stream."""
    row: list[_LayerToBe] = []
    for layer in range(view.n_layers):
        own = student.step(layer)
        if own is not None:
            where = next((str(one.span) for one in student.attached if one.span.start == layer), "")
            row.extend(_LayerToBe(source, module=part, where=where) for source, part in own.parts)
            if own.module is None:
                row.append(_LayerToBe(layer, own.overrides or {}, own.zeroed))
        row.extend(_LayerToBe(one.layer, one.overrides or {}, one.zeroed, is_inserted=True) for one in student.behind(layer))
    if not row:
        raise ValueError(f"student {student.name!r} has no layer left; keep at least one")
    return row


def _refuse_absent(layers: nn.ModuleList, kept: list[int], family: str) -> None:
    for layer in kept:
        absent = next((name for name, p in layers[layer].named_parameters() if p.is_meta), None)
        if absent is not None:
            raise ValueError(f"layer {layer} of this {family} model is not in memory ({absent}); cut it file to file instead")


def refuse_inexact_sublayers(view: DecoderView, student: Student) -> None:
    """Where removing a sublayer has no exact meaning the view refuses it by name; a short text makes it look."""
    touched = [unit.index for unit in student.removed if unit.kind != "layer"]
    if not touched:
        return
    reading = view.read(Batch(torch.zeros(1, 3, dtype=torch.long)))
    with torch.no_grad():
        for layer in sorted(set(touched)):
            view.run_layer(layer, reading.h_BTD, reading, student=student)


def _config_pairs(old: Any, new: Any) -> dict[int, Any]:
    """Deepcopy memo that turns references to a config (and its nested configs) into references to the edited one."""
    pairs = {id(old): new}
    for key in old.sub_configs:
        if getattr(old, key, None) is not None:
            pairs[id(getattr(old, key))] = getattr(new, key)
    return pairs


def _stock_copy(place: _LayerToBe, stock: nn.Module, memo: dict[int, Any], family: str) -> nn.Module:
    """A replacement as a layer of the family, sharing the replacement's tensors."""
    part = place.module
    inside = part if type(part) is type(stock) else getattr(part, "layer", None)
    if type(inside) is not type(stock):
        raise ValueError(
            f"the replacement of {place.where} is a {type(part).__name__}, not a {type(stock).__name__}: a stock {family} "
            "checkpoint cannot hold it; use the replacement 'layer'"
        )
    assert isinstance(inside, nn.Module)
    tensors = {id(t): t for t in [*inside.parameters(), *inside.buffers()]}
    new = copy.deepcopy(inside, {**memo, **tensors})
    theirs = dict(stock.named_modules())
    for path, module in new.named_modules():  # A replacement may have been copied with a config of its own.
        for name, value in vars(theirs[path]).items() if path in theirs else ():
            if id(value) in memo and hasattr(value, "model_type"):
                setattr(module, name, memo[id(value)])
    return new


def _put(layer: nn.Module, values: Mapping[str, Tensor], index: int) -> None:
    """Put refitted parameters in; shapes and dtypes are those of the layer."""
    for path, value in values.items():
        parent, _, name = path.rpartition(".")
        try:
            module = layer.get_submodule(parent)
            old = getattr(module, name)
        except AttributeError:
            raise ValueError(f"layer {index} has no parameter {path!r} to refit") from None
        if value.shape != old.shape or value.dtype != old.dtype:
            raise ValueError(
                f"layer {index}, parameter {path!r}: refitted as {tuple(value.shape)} {value.dtype}, the layer has "
                f"{tuple(old.shape)} {old.dtype}"
            )
        if isinstance(old, nn.Parameter):
            setattr(module, name, nn.Parameter(value.detach(), requires_grad=old.requires_grad))
        else:
            setattr(module, name, value.detach())


def _zero_output_map(layer: nn.Module, kind: str, index: int, family: str) -> None:
    path = output_map(layer, kind)
    if path is None:
        raise ValueError(
            f"model type {family!r}: the {kind} sublayer of layer {index} does not end in one linear map, so a stock "
            "checkpoint cannot hold the layer without it; remove whole layers"
        )
    module = layer.get_submodule(path)
    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(torch.zeros_like(parameter), requires_grad=parameter.requires_grad))


def _adopt_counts(result: nn.Module, plan: nn.Module, counts: tuple[int, int]) -> None:
    """Settings that say how many layers there are, taken from the config when the model was built, say the new number."""
    fresh = dict(plan.named_modules())
    for path, module in result.named_modules():
        for name, value in vars(module).items():
            if "layers" in name and type(value) is int and path in fresh and (value, vars(fresh[path]).get(name)) == counts:
                setattr(module, name, counts[1])
