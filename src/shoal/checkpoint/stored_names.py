"""Names and shapes in memory against those on disk, through transformers' own conversion in both directions.

A checkpoint may store a tensor under another name (mixtral's router), or in pieces (one tensor per expert where memory holds
them fused). Reading goes forward and so does saving backward; here the backward way is taken for single tensors, and what it
gives must be exactly what the checkpoint stores.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from shoal.engine.shards import Shard


class StoredNames:
    """Which stored tensors make up each tensor of a model.

    Args:
        model: its names and shapes; the weights may be on ``meta``.
        shards: of its checkpoint.
    """

    def __init__(self, model: nn.Module, shards: Iterable[Shard]) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping

        self._model: Any = model
        self._slots = {name: slot for shard in shards for name, slot in shard.slots.items()}
        self._mapping = get_model_conversion_mapping(self._model)
        self._known = model.state_dict()
        # The keys are names on disk, the values names in memory, of tensors that the model has.
        self.in_memory: dict[str, str] = {}
        # The key is the first of the names that a conversion fills, the value holds names on disk.
        self._stored: dict[str, set[str]] = {}
        for name in self._slots:
            target = self._forward(name)
            if target in self._known:
                self.in_memory[name] = target
                self._stored.setdefault(target, set()).add(name)

    def _forward(self, name: str) -> str:
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        renamings = [one for one in self._mapping if isinstance(one, WeightRenaming)]
        converters = [one for one in self._mapping if isinstance(one, WeightConverter)]
        prefix = self._model.base_model_prefix
        target, _ = rename_source_key(name, renamings, converters, prefix, self._known)
        if target not in self._known and name in self._known:
            target, _ = rename_source_key(name, [], [], base_model_prefix=prefix, meta_state_dict=self._known)
        return target

    def stored(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors named as in memory, under the names and in the pieces and dtypes they have on disk.

        Args:
            tensors: all of those that one conversion joins, e.g. a whole layer; or such that no conversion touches.
        Raises:
            ValueError: the conversion cannot be undone, or gives other names or shapes than the checkpoint has.
        """
        from transformers.core_model_loading import revert_weight_conversion

        model = self._model
        before = model.__dict__.get("_weight_conversions")
        model.__dict__["_weight_conversions"] = [one for one in self._mapping if one.was_used()]
        try:
            found = revert_weight_conversion(model, dict(tensors))
        except (RuntimeError, ValueError, KeyError, TypeError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{self._whose(tensors)} cannot be split as on disk: {type(error).__name__}: {reason}") from None
        finally:
            if before is None:
                del model.__dict__["_weight_conversions"]
            else:
                model.__dict__["_weight_conversions"] = before
        named = {self._as_stored(name): value for name, value in found.items()}
        wanted = {one for name in tensors for one in self._stored.get(name, ())}
        for name in sorted(wanted ^ set(named)):
            fault = "has no values" if name in wanted else "is not in the checkpoint"
            raise ValueError(f"{self._whose(tensors)} cannot be written as the checkpoint stores them: {name!r} {fault}")
        for name, value in named.items():
            if tuple(value.shape) != self._slots[name].shape:
                got, needed = tuple(value.shape), self._slots[name].shape
                raise ValueError(f"{self._whose(tensors)}: {name!r} would have shape {got}, the checkpoint has {needed}")
        return named

    def _as_stored(self, name: str) -> str:
        """With or without the base model's prefix, which loading adds or takes away as needed and saving does not undo."""
        prefix = f"{self._model.base_model_prefix}."
        others = (name, name.removeprefix(prefix), prefix + name)
        return next((one for one in others if one in self._slots), name)

    def _whose(self, tensors: Mapping[str, Tensor]) -> str:
        family = getattr(getattr(self._model, "config", None), "model_type", "?")
        return f"new values of this {family!r} model ({next(iter(tensors))!r}, {len(tensors)} in all)"


def memory_dtypes(model: Any, dtype: torch.dtype) -> Mapping[str, torch.dtype]:
    """Tensors that the library keeps in another dtype than the model's, by name in memory (router biases, some norms)."""
    from transformers.core_model_loading import build_glob_alternation

    plan = model._get_dtype_plan(dtype)
    if not plan:
        return {}
    pattern, group_names, _ = build_glob_alternation(list(plan))
    found = {name: pattern.search(name) for name in model.state_dict()}
    return {name: plan[group_names[match.lastgroup]] for name, match in found.items() if match is not None}
