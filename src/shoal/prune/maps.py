"""The linear maps of a layer that can be thinned: its linear modules and the maps of its experts, found by structure.

Routers, norms, embeddings and the head stay whole. Shapes: X experts, D outputs, F inputs of a map.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from shoal.edits.replace.family_mlp import is_transposed
from shoal.prune.amount import SparsePattern


@dataclass(frozen=True)
class ThinMap:
    """One linear map of a layer.

    Attributes:
        module: path of the module inside the layer whose inputs it reads; of experts, the module that holds all of them.
        parameter: name of its weight inside the layer.
        expert: index into a weight of three dimensions; None where the weight is the map.
        is_transposed: the weight is (inputs, outputs), as in GPT-2 and in some families of experts.
        shape: (outputs, inputs).
    """

    module: str
    parameter: str
    expert: int | None
    is_transposed: bool
    shape: tuple[int, int]

    @property
    def role(self) -> str:
        """What it is in every layer, such as ``mlp.down_proj``; the same for all experts."""
        return self.parameter.removesuffix(".weight")

    @property
    def name(self) -> str:
        """Its name inside the layer: the role, and which expert."""
        return self.role if self.expert is None else f"{self.role}[{self.expert}]"

    def weight(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """(D, F), a view of the layer's parameter."""
        stored = parameters[self.parameter]
        stored = stored if self.expert is None else stored[self.expert]
        return stored.mT if self.is_transposed else stored


def maps_of(layer: nn.Module) -> tuple[list[ThinMap], list[str]]:
    """The maps of a layer in the order of its modules, and why others are left as they are.

    Raises:
        ValueError: the weights are quantised, so that a zero cannot be written into them.
    """
    found: list[ThinMap] = []
    left: list[str] = []
    routers = _routers(layer)
    for path, module in layer.named_modules():
        weight = getattr(module, "weight", None)
        is_linear = isinstance(module, nn.Linear) or is_transposed(module)
        if is_linear and isinstance(weight, Tensor) and path not in routers:
            if not weight.is_floating_point() or weight.ndim != 2:
                raise ValueError(
                    f"{path!r} is quantised; thin the model before it is quantised, or what shoal export plain makes of it"
                )
            outputs, inputs = weight.shape[::-1] if is_transposed(module) else weight.shape
            found.append(ThinMap(path, f"{path}.weight", None, is_transposed(module), (int(outputs), int(inputs))))
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim != 3 or not parameter.is_floating_point():
                continue
            turned = getattr(module, "is_transposed", None)  # transformers sets it on experts whose forward it can dispatch.
            if not isinstance(turned, bool):
                left.append(f"{path}.{name}: experts of another form than transformers dispatches")
                continue
            outputs, inputs = parameter.shape[:0:-1] if turned else parameter.shape[1:]
            shape = (int(outputs), int(inputs))
            found += [ThinMap(path, f"{path}.{name}", one, turned, shape) for one in range(len(parameter))]
    return found, left


def thinnable_maps(layer: nn.Module, pattern: SparsePattern | None) -> tuple[list[ThinMap], list[str]]:
    """Those maps of a layer that fall into whole groups of the pattern, and why others are left; each reason once."""
    found, reasons = maps_of(layer)
    if pattern is not None:
        unfit = [one for one in found if one.shape[1] % pattern.of]
        reasons += [f"{one.role}: {one.shape[1]} inputs, no whole groups of {pattern.of}" for one in unfit]
        found = [one for one in found if not one.shape[1] % pattern.of]
    return found, list(dict.fromkeys(reasons))


def _routers(layer: nn.Module) -> set[str]:
    """Linear modules that decide where tokens go: routers by class, a plain gate beside experts, a map with one output."""
    paths = dict(layer.named_modules())
    found = set()
    for path, module in paths.items():
        parent, _, name = path.rpartition(".")
        classes = (type(module).__name__, type(paths[parent]).__name__ if parent in paths else "")
        beside_experts = name in ("gate", "router") and f"{parent}.experts" in paths
        one_output = isinstance(module, nn.Linear) and module.out_features == 1
        if beside_experts or one_output or any("Router" in one or "Gating" in one for one in classes):
            found.add(path)
    return found
