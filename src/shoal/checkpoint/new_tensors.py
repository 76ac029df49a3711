"""New values of a plan, layer by layer, under the names a checkpoint stores: refits, layers in place of spans, zeroed maps.

A stock checkpoint holds these and nothing else. One layer's values are converted at a time and let go before the next.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from shoal.checkpoint.stored_names import StoredNames, memory_dtypes
from shoal.edits.inserted_layers import silenced
from shoal.edits.table import Edit
from shoal.engine.families import find_layers, output_map
from shoal.engine.shards import Shard, TensorSlot
from shoal.engine.streamed import TORCH_DTYPES
from shoal.words.structure import Slot, Structure


class NewTensors:
    """What a student's checkpoint has that the source's has not, by stored name.

    Args:
        edits: of the plan; they say which parameters of layers that stay have new values.
        structure: of the checkpoint: layers only, in the order of the stream.
        values: under the names of a plan's values; they may be read from a file as they are asked for.
        shards: of the source.
        skeleton: gives the source's model, weights in memory or on ``meta``; called where names in memory are needed.
        dtype: of the checkpoint where it is not the stored one.

    Raises:
        ValueError: a replacement that is no layer of the family, a sublayer without an output map, values missing or left over,
            or such that the conversion of this family cannot be undone for them.
    """

    def __init__(
        self,
        edits: Sequence[Edit],
        structure: Structure,
        values: Mapping[str, Tensor],
        *,
        shards: Sequence[Shard],
        skeleton: Callable[[], nn.Module],
        dtype: torch.dtype | None = None,
    ) -> None:
        self._values, self._shards, self._make, self.dtype = values, shards, skeleton, dtype
        self.structure = structure
        written: dict[int, dict[str, str | None]] = {}
        for edit in edits:
            for layer, keys in edit.written().items():
                written.setdefault(layer, {}).update(keys)
        # The keys are position and name in its layer, the value is the key of its value; None: zeros.
        self._keys: dict[int, dict[str, str | None]] = {}
        for position, slot in enumerate(structure):
            zero = self._zero(slot)
            keys = dict(written.get(slot.like, {})) if slot.is_of_source else self._own_keys(slot, without=zero)
            keys.update(dict.fromkeys(zero))
            if keys:
                self._keys[position] = keys
        # Where two edits write one parameter the later one holds, and the other's value is still its own.
        self._refuse_other_values({key for edit in edits for keys in edit.written().values() for key in keys.values() if key})
        # Converted once without values: what cannot be written is found before anything is.
        self._changed = {at: set(self._stored(at, lambda key, like: like)) for at in self._keys}
        self._refuse_packed()
        self._last: tuple[int, dict[str, Tensor]] = (-1, {})

    def written_dtype(self, name: str, slot: TensorSlot) -> torch.dtype | None:
        stored = TORCH_DTYPES.get(slot.dtype)
        if self.dtype is None or stored is None or not stored.is_floating_point or name not in self._names.in_memory:
            return None
        wanted = self._kept_dtypes.get(self._names.in_memory[name], self.dtype)
        return None if wanted == stored else wanted

    def value(self, name: str, position: int | None) -> Tensor | None:
        if position is None or name not in self._changed.get(position, ()):
            return None
        if self._last[0] != position:  # The tensors of a layer lie together, so the next one asked for is of the same layer.
            self._last = (position, self._stored(position, self._value))
        return self._last[1][name]

    @cached_property
    def _skeleton(self) -> nn.Module:
        return self._make()

    @cached_property
    def _family(self) -> str:
        return str(getattr(getattr(self._skeleton, "config", None), "model_type", "?"))

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

    def _stored(self, position: int, value: Callable[[str | None, Tensor], Tensor]) -> dict[str, Tensor]:
        """The new tensors of a slot under the names that the source stores its layer by.

        Args:
            value: gives one for a key and a tensor of its shape on ``meta``.
        """
        layer = self.structure[position].like
        state = self._layer(layer).state_dict()
        found: dict[str, Tensor] = {}
        for name, key in self._keys[position].items():
            if name not in state:
                raise ValueError(f"layer {layer} has no parameter {name!r}; plan and values do not match")
            found[f"{self._path}.{layer}.{name}"] = value(key, state[name].to("meta"))
        return self._names.stored(found)

    def _refuse_packed(self) -> None:
        """Raises ValueError where a new value would take the place of packed numbers: zeros of those are no zeros."""
        for at, names in self._changed.items():
            for shard in self._shards:
                for name in names & set(shard.slots):
                    kind = TORCH_DTYPES.get(shard.slots[name].dtype)
                    if kind is None or not kind.is_floating_point or kind.itemsize == 1:
                        raise ValueError(
                            f"{name!r} is quantised ({shard.slots[name].dtype}), so layer {self.structure[at].like} can get "
                            "no new values; remove whole layers, or start from the unquantised checkpoint, or from what shoal "
                            "export plain makes of this one"
                        )

    def _value(self, key: str | None, like: Tensor) -> Tensor:
        if key is None:
            return torch.zeros(like.shape, dtype=like.dtype)
        if self._values[key].shape != like.shape:
            got, needed = tuple(self._values[key].shape), tuple(like.shape)
            raise ValueError(f"{key!r} has shape {got}, {needed} is needed; plan and values do not match")
        return self._values[key].detach()

    def _zero(self, slot: Slot) -> list[str]:
        """Names of the parameters that are zero, so that the layer, or the sublayers that are off, give nothing.

        Raises:
            ValueError: a sublayer without an output map.
        """
        if slot.is_silent:
            return list(silenced(self._layer(slot.like), self._family))
        return [name for kind in sorted(slot.off) for name in self._output_map(slot.like, kind)]

    def _own_keys(self, slot: Slot, *, without: Sequence[str] = ()) -> dict[str, str | None]:
        """Keys of a slot whose values are all its own; empty where there are none: it is, or starts as, the layer it is like.

        Args:
            without: names that have no value, because they are zero.
        Raises:
            ValueError: a module, values that are not those of a layer, or none where there must be some.
        """
        if slot.is_inserted and not slot.values:
            return {}
        if slot.runs != "layer":
            raise ValueError(
                f"the module in place of layer {slot.like} is no layer of the family: a stock checkpoint cannot hold it; "
                "use the replacement 'layer'"
            )
        own: dict[str, str | None] = {key.removeprefix(slot.values): key for key in self._values if key.startswith(slot.values)}
        needed = set(self._layer(slot.like).state_dict()) - set(without)
        for name in sorted(set(own) ^ needed if own or slot.is_inserted else ()):
            fault = "unknown" if name in own else "missing"
            raise ValueError(f"values {slot.values}*: {name!r} is {fault}; plan and values differ")
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

    def _refuse_other_values(self, of_edits: set[str]) -> None:
        wanted = {key for keys in self._keys.values() for key in keys.values() if key is not None} | of_edits
        for key in sorted(wanted ^ set(self._values)):
            fault = "is missing" if key in wanted else "belongs to no edit of the plan"
            raise ValueError(f"{key!r} {fault}; plan and values do not match")
