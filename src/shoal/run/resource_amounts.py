"""What budgets can be shares of, for an opened model: cache, arithmetic and, where a budget asks for it, measured time."""

from __future__ import annotations

from collections.abc import Callable

from shoal.engine.student import TEACHER, Student
from shoal.evaluate.cost import Cost, Sized, costs
from shoal.run.folder import RunFolder
from shoal.run.job import Inputs
from shoal.select.amounts import Amounts
from shoal.select.budget import Budget
from shoal.words.types import Unit


def amounts_of(inputs: Inputs, budget: Budget, *, folder: RunFolder | None = None) -> dict[str, Amounts]:
    """By the kind of budget; time only where the budget asks for it and there is a folder to keep what was measured in."""
    found = computed_amounts(inputs.view, context=inputs.length)
    if folder is not None and any(one.kind == "latency" for one in budget.all):
        from shoal.run.latency import measured_latency

        found["latency"] = measured_latency(inputs, folder)
    return found


def computed_amounts(view: Sized, *, context: int) -> dict[str, Amounts]:
    """Weights, cache and multiply-accumulates of every layer and sublayer, for a token that sees ``context`` tokens."""
    units = [Unit(kind, layer) for layer in range(view.n_layers) for kind in ("layer", "attn", "mlp")]
    whole, *left = costs(view, [TEACHER, *(Student(removed=frozenset({unit})) for unit in units)], context=context)
    without = dict(zip(units, left, strict=True))

    def amounts(about: str, of: Callable[[Cost], float | None]) -> Amounts | None:
        total = of(whole)
        left = {unit: of(one) for unit, one in without.items()}
        if total is None:
            return None
        return Amounts(about, total, {unit: total - one for unit, one in left.items() if one is not None})

    found = {
        "bytes": amounts("bytes of weights", lambda one: one.weight_bytes),
        "active": amounts("parameters that a token meets", lambda one: one.active_parameters),
        "kv": amounts(f"cache of keys and values at {context:,} tokens", lambda one: one.kv_bytes_per_token),
        "macs": amounts(f"multiply-accumulates per token at {context:,} tokens", lambda one: one.macs_per_token),
    }
    return {kind: one for kind, one in found.items() if one is not None}


def amounts_as_if_alike(about: str, n_layers: int, *, of_layer: float = 1, outside: float = 0) -> Amounts:
    """The same for every layer, where no more is known."""
    layers = {Unit("layer", layer): of_layer for layer in range(n_layers)}
    return Amounts(about, outside + n_layers * of_layer, layers)
