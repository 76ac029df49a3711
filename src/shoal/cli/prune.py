"""The verb ``prune``: weights of a checkpoint set to zero; no layer is removed."""

from dataclasses import dataclass
from typing import Annotated, Any

from shoal.cli.compress import run_recipe
from shoal.cli.early import model_argument
from shoal.cli.groups import MachineOptions, ResultOptions, SampleOptions, TextOptions
from shoal.cli.option import listed, option
from shoal.cli.options import NoSpeedOption, OutOption
from shoal.cli.recipe_options import with_options
from shoal.cli.verb import given, verb
from shoal.prune.prune_config import DEFAULT_SPARSITY, PruneConfig
from shoal.prune.table import ALLOCATORS, PRUNERS

USUAL = PruneConfig()


CheckpointOption = Annotated[str, model_argument("CHECKPOINT", "Hub id or folder of a causal language model.")]
MethodOption = Annotated[str | None, option("NAME", listed(PRUNERS), USUAL.method)]
SparsityOption = Annotated[
    str | None,
    option(
        "SHARE",
        "50% of the weights of the maps, or 35%all: of all parameters.",
        f"what --pattern says, else {DEFAULT_SPARSITY}",
    ),
]
PatternOption = Annotated[str | None, option("N:M", "Of every M neighbouring inputs N stay: 2:4, 4:8.", "zeros anywhere")]
AllocateOption = Annotated[str | None, option("NAME", listed(ALLOCATORS), USUAL.allocate)]
SpreadOption = Annotated[float | None, option("X", "Half the range of the shares that owl gives.", USUAL.spread)]
OutlierOption = Annotated[
    float | None,
    option("X", "Times its layer's mean score from which owl counts a weight as an outlier.", f"{USUAL.outlier:g}"),
]


@dataclass(frozen=True)
class PruneOptions:
    """Which weights are set to zero, by the names of :class:`shoal.prune.prune_config.PruneConfig`."""

    method: MethodOption = None
    sparsity: SparsityOption = None
    pattern: PatternOption = None
    allocate: AllocateOption = None
    spread: SpreadOption = None
    outlier: OutlierOption = None


@verb
def prune(
    checkpoint: CheckpointOption,
    out: OutOption,
    zeros: PruneOptions,
    text: TextOptions,
    sampling: SampleOptions,
    machine: MachineOptions,
    result: ResultOptions,
    no_speed: NoSpeedOption = False,
) -> None:
    """Set weights to zero, measure what was lost, save a checkpoint for plain transformers; no layer is removed.

    Zeros here and there make nothing faster in dense kernels; the card and the report say so, with the share of every map.
    """
    asked = {name: value for name, value in given(zeros).items() if value is not None}
    refuse_unheard(asked)
    chosen = with_options(
        "wanda",
        name=zeros.method or USUAL.method,
        about="",
        papers=papers_of(zeros.method or USUAL.method, zeros.allocate or USUAL.allocate),
        model=checkpoint,
        prune=asked,
        speed=False if no_speed else None,
        **given(text, sampling),
    )
    run_recipe(chosen, out, machine, result)


def refuse_unheard(asked: dict[str, Any]) -> None:
    """Raises ValueError for an option that only OWL reads, where another rule allocates."""
    allocate = asked.get("allocate", USUAL.allocate)
    unread = next((name for name in ("spread", "outlier") if name in asked), None)
    if unread is not None and allocate != "owl":
        raise ValueError(f"--{unread} is read by --allocate owl alone, not by {allocate}; leave it out")


def papers_of(method: str, allocate: str) -> tuple[str, ...]:
    """Of the pruner and of the rule of allocation; unknown names are refused where the recipe is made."""
    pruner, allocator = PRUNERS.get(method), ALLOCATORS.get(allocate)
    return (*(pruner.papers if pruner else ()), *(allocator.papers if allocator else ()))
