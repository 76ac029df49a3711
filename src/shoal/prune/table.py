"""The pruners and the rules of allocation by name: the lists that recipes, help, documents and the stage read."""

from shoal.prune.allocator import Allocator
from shoal.prune.allocators.by_erk import ERK
from shoal.prune.allocators.by_lamp import LAMP
from shoal.prune.allocators.by_owl import OWL
from shoal.prune.allocators.evenly import UNIFORM
from shoal.prune.pruner import Pruner
from shoal.prune.pruners.by_magnitude import MAGNITUDE
from shoal.prune.pruners.by_sparsegpt import SPARSEGPT
from shoal.prune.pruners.by_wanda import WANDA
from shoal.words.records import nearest

PRUNERS: dict[str, Pruner] = {one.name: one for one in (MAGNITUDE, WANDA, SPARSEGPT)}

ALLOCATORS: dict[str, Allocator] = {one.name: one for one in (UNIFORM, ERK, LAMP, OWL)}


def pruner_named(name: str) -> Pruner:
    """Raises ValueError for an unknown name, with the nearest."""
    if name not in PRUNERS:
        raise ValueError(f"unknown pruner {name!r}; {nearest(name, PRUNERS)}")
    return PRUNERS[name]


def allocator_named(name: str) -> Allocator:
    """Raises ValueError for an unknown name, with the nearest."""
    if name not in ALLOCATORS:
        raise ValueError(f"unknown allocation {name!r}; {nearest(name, ALLOCATORS)}")
    return ALLOCATORS[name]
