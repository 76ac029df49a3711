"""New values of a plan, layer by layer, under the names a checkpoint stores: refits, layers in place of spans, zeroed maps.

A stock checkpoint holds these and nothing else. One layer's values are converted at a time and let go before the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from shoal.checkpoint.stored_names import StoredNames, memory_dtypes
from shoal.edits.replace.table import replacement_named
from shoal.engine.families import find_layers, output_map
from shoal.engine.shards import Shard, Slot
from shoal.engine.streamed import TORCH_DTYPES
from shoal.words.edits import Refit, Replace
from shoal.words.plan import Plan

INNER = "layer."  # where a replacement that is a layer of the family keeps it


class NewTensors:
    """What a student's checkpoint has that the source's has not, by stored name.

    Args:
        values: under the names of a plan's values; they may be read from a file as they are asked for.
        shards: of the source.
        skeleton: gives the source's model, weights in memory or on ``meta``; called where names in memory are needed.
        dtype: of the checkpoint where it is not the stored one.

    ``order`` is the source layer of each layer of the checkpoint, in the order of the stream.
    Raises:
        ValueError: a replacement that is no layer of the family, a sublayer without an output map, values missing or left over,
            or such that the conversion of this family cannot be undone for them.
    """

    def __init__(
        self,
        plan: Plan,
        values: Mapping[str, Tensor],
        *,
        shards: Sequence[Shard],
        skeleton: Callable[[], nn.Module],
        dtype: torch.dtype | None = None,
    ) -> None:
        self._plan, self._values, self._shards, self._make, self.dtype = plan, values, shards, skeleton, dtype
        inherited = {layer: (edit, inner) for edit in plan.replacements for layer, inner in _inherited(edit)}
        self.order: tuple[int, ...] = tuple(sorted([*plan.kept_layers, *inherited]))
        self._keys: dict[int, dict[str, str | None]] = {}  # layer -> name inside it -> key of its value; None: zeros
        for edit in plan.edits:
            if isinstance(edit, Refit):
                self._keys[edit.layer] = {name: f"refit.{edit.layer}.{name}" for name in edit.parameters}
        for layer, (edit, inner) in inherited.items():
            self._keys[layer] = self._keys_of_replacement(layer, edit, inner)
        for unit in plan.dropped_units:
            if unit.kind != "layer" and unit.index in self.order:
                zeros = dict.fromkeys(self._output_map(unit.index, unit.kind))
                self._keys[unit.index] = {**self._keys.get(unit.index, {}), **zeros}
        self._keys = {layer: keys for layer, keys in self._keys.items() if keys}
        self._refuse_other_values()
        # Converted once without values: what cannot be written is found before anything is.
        self._layer_of = {name: layer for layer in self._keys for name in self._stored(layer, lambda key, like: like)}
        self._last: tuple[int, dict[str, Tensor]] = (-1, {})

    def written_dtype(self, name: str, slot: Slot) -> torch.dtype | None:
        stored = TORCH_DTYPES.get(slot.dtype)
        if self.dtype is None or stored is None or not stored.is_floating_point or name not in self._names.in_memory:
            return None
        wanted = self._kept_dtypes.get(self._names.in_memory[name], self.dtype)
        return None if wanted == stored else wanted

    def value(self, name: str) -> Tensor | None:
        layer = self._layer_of.get(name)
        if layer is None:
            return None
        if self._last[0] != layer:  # a layer's tensors lie together, so the last one is the one asked for next
            self._last = (layer, self._stored(layer, self._value))
        return self._last[1][name]

    @cached_property
    def _skeleton(self) -> nn.Module:
        return self._make()

    @cached_property
    def _path(self) -> str:
        return find_layers(self._skeleton)[0]

    @cached_property
    def _names(self) -> StoredNames:
        return StoredNames(self._skeleton, self._shards)

    @cached_property
    def _kept_dtypes(self) -> Mapping[str, torch.dtype]:
        assert self.dtype is not None
        return memory_dtypes(self._skeleton, self.dtype)

    def _layer(self, layer: int) -> nn.Module:
        return self._skeleton.get_submodule(f"{self._path}.{layer}")

    def _stored(self, layer: int, value: Callable[[str | None, Tensor], Tensor]) -> dict[str, Tensor]:
        """A layer's new tensors by stored name; ``value`` gives one for a key and a tensor of its shape on ``meta``."""
        state = self._layer(layer).state_dict()
        found: dict[str, Tensor] = {}
        for name, key in self._keys[layer].items():
            if name not in state:
                raise ValueError(f"layer {layer} has no parameter {name!r}; plan and values do not match")
            found[f"{self._path}.{layer}.{name}"] = value(key, state[name].to("meta"))
        return self._names.stored(found)

    def _value(self, key: str | None, like: Tensor) -> Tensor:
        if key is None:
            return torch.zeros(like.shape, dtype=like.dtype)
        if self._values[key].shape != like.shape:
            got, needed = tuple(self._values[key].shape), tuple(like.shape)
            raise ValueError(f"{key!r} has shape {got}, {needed} is needed; plan and values do not match")
        return self._values[key].detach()

    def _keys_of_replacement(self, layer: int, edit: Replace, inner: str) -> dict[str, str | None]:
        """Empty where there are no values: the replacement starts as the layer it inherits."""
        prefix = f"replace.{edit.start}-{edit.stop}.{inner}"
        own: dict[str, str | None] = {key.removeprefix(prefix): key for key in self._values if key.startswith(prefix)}
        if own:
            for name in sorted(set(own) ^ set(self._layer(layer).state_dict())):
                fault = "unknown" if name in own else "missing"
                raise ValueError(
                    f"values of {edit.replacement!r} over {edit.span}: {name!r} is {fault}; plan and values differ"
                )
        return own

    def _output_map(self, layer: int, kind: str) -> list[str]:
        path = output_map(self._layer(layer), kind)
        if path is None:
            raise ValueError(
                f"the {kind} sublayer of layer {layer} does not end in one linear map, so a stock checkpoint cannot hold the "
                "layer without it; remove whole layers"
            )
        module = self._layer(layer).get_submodule(path)
        return [f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)]

    def _refuse_other_values(self) -> None:
        wanted = {key for keys in self._keys.values() for key in keys.values() if key is not None}
        wanted |= {f"refit.{e.layer}.{name}" for e in self._plan.edits if isinstance(e, Refit) for name in e.parameters}
        for key in sorted(wanted ^ set(self._values)):
            fault = "is missing" if key in wanted else "belongs to no edit of the plan"
            raise ValueError(f"{key!r} {fault}; plan and values do not match")


def _inherited(edit: Replace) -> list[tuple[int, str]]:
    """(source layer, prefix of its values) of every layer of the family that a replacement consists of."""
    replacement = replacement_named(edit.replacement, edit.options)
    if replacement.starts_as != "inherits":
        raise ValueError(
            f"the replacement {edit.replacement!r} of {edit.span} is no layer of the family: a stock checkpoint cannot "
            "hold it; use the replacement 'layer'"
        )
    first = replacement.args_from(edit.span)
    if replacement.n_layers == 1:
        return [(first, INNER)]
    return [(first + i, f"{i}.{INNER}") for i in range(replacement.n_layers)]
