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
from shoal.words.entries import Entries, by_name

PRUNERS: Entries[Pruner] = by_name(
    "pruner",
    MAGNITUDE,
    WANDA,
    SPARSEGPT,
)

ALLOCATORS: Entries[Allocator] = by_name(
    "allocation",
    UNIFORM,
    ERK,
    LAMP,
    OWL,
)
