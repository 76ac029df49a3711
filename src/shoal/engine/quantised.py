"""Quantised checkpoints: opened by transformers and the package their method needs, to be run, never to be given new values.

What is known of a quantised model (its numbers, their bytes) is read here, so that no count takes packed numbers for weights.
Formats that need a card transformers takes out of their blocks on a CPU (fp8, mxfp4); such a model runs on exactly the numbers
that the blocks stand for.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from shoal.engine.packed.table import PACKINGS
from shoal.engine.shards import Shard

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "bitsandbytes": ("bitsandbytes",),
    "gptq": ("optimum", "gptqmodel"),
    "awq": ("gptqmodel",),
    "compressed-tensors": ("compressed_tensors",),
    "torchao": ("torchao",),
    "hqq": ("hqq",),
    "quanto": ("optimum.quanto",),
}
"""Methods to the modules that transformers needs to open them; the others need nothing, or say themselves what they need."""

PLAIN = ("F64", "F32", "F16", "BF16")
"""Types of tensors that hold weights themselves."""

ORDER = "the order is cut, repair, heal, quantise: start from the unquantised checkpoint and quantise the result"


def order_for(method: str, path: str | Path) -> str:
    """What to do where a checkpoint of this method would get new values, as the end of a sentence."""
    if method not in PACKINGS:
        return ORDER
    return f"{ORDER}; where there is none, shoal export plain {path} --out DIR takes this one out of its blocks"


def why_not_openable(method: str) -> str | None:
    """The package that opens this method and is not installed, with the way to get it; None where nothing is known to miss."""
    missing = [name for name in PACKAGES.get(method, ()) if not _is_installed(name)]
    if not missing:
        return None
    packages = " ".join(name.replace("_", "-").replace(".", "-") for name in missing)
    return f"it is quantised ({method}), and to open it {missing[0]} is needed: pip install {packages}"


def refuse_unopenable(path: Path, method: str) -> None:
    """Raises ValueError where a package that opens this method is not installed."""
    why = why_not_openable(method)
    if why is not None:
        plain = f", and shoal export plain {path} --out DIR takes it out of its blocks" if method in PACKINGS else ""
        raise ValueError(
            f"{path} cannot be opened: {why}. Without it layers can be taken out file to file: "
            f"shoal apply MODEL --layers LIST{plain}"
        )


def refuse_plain_weights(path: Path, method: str, shards: Sequence[Shard]) -> None:
    """Raises ValueError where the config states a quantisation and no tensor has a trace of it: the library opens such a
    folder without a word, and it is not the model that its config describes."""
    stored = [(name, slot) for shard in shards for name, slot in shard.slots.items()]
    if not any(slot.dtype not in PLAIN or "scale" in name.rpartition(".")[2] for name, slot in stored):
        raise ValueError(
            f"{path}: config.json states a quantisation ({method}), and no tensor is quantised; its config and its weights are "
            "not of one model"
        )


def refuse_new_values(path: Path, method: str | None, *, what: str) -> None:
    """Raises ValueError where a quantised checkpoint would get new values.

    Args:
        method: of the quantisation, or None for a checkpoint that has none.
        what: what asks for them, for people.
    """
    if method is not None:
        raise ValueError(
            f"{path} is quantised ({method}): layers can be taken out of it and what is left can be measured, but {what} needs "
            f"plain weights; {order_for(method, path)}"
        )


def is_packed(model: nn.Module) -> bool:
    """Whether a model in memory holds packed numbers: its parameters are then not the weights they stand for."""
    return any(not p.is_floating_point() or p.element_size() == 1 for p in [*model.parameters(), *_large_buffers(model)])


def shapes_of(model: Any) -> Any:
    """The model as it is before quantisation, on ``meta`` where it holds packed numbers or scales, so that its weights can be
    counted."""
    if not is_packed(model) and getattr(model, "hf_quantizer", None) is None:
        return model
    from shoal.engine.model_config import build_empty

    return build_empty(model.config, model_class=type(model))


def bytes_of(module: nn.Module) -> int:
    """Bytes of what a module holds, its scales and tables of quantisation included; shared ones once.

    ``state_dict`` is not asked: that of bitsandbytes repacks the weights of a running model, which then computes other numbers.
    """
    held: dict[int, Tensor] = {id(one): one for one in [*module.parameters(), *module.buffers()]}
    for parameter in module.parameters():
        for name in SCALES:
            _collect(getattr(parameter, name, None), held)
    return sum(one.numel() * one.element_size() for one in held.values())


SCALES = ("quant_state", "SCB")
"""Where parameters of bitsandbytes keep what their codes are scaled by."""


def _collect(value: Any, held: dict[int, Tensor]) -> None:
    """All tensors of a value and of the values it has as attributes."""
    if isinstance(value, Tensor):
        held[id(value)] = value
    elif value is not None and hasattr(value, "__dict__"):
        for one in vars(value).values():
            _collect(one, held)


def _large_buffers(model: nn.Module) -> list[Any]:
    """Packed weights of methods that keep them as buffers; masks and counters are smaller."""
    return [one for name, one in model.named_buffers() if name.rpartition(".")[2].startswith(("qweight", "weight"))]


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # The module lies inside a package that is not there.
        return False
