"""The options of ``shoal heal`` in groups; names and defaults are those of :class:`shoal.train.heal.config.HealConfig`."""

from dataclasses import dataclass
from typing import Annotated

from shoal.cli.help import ADAPTERS, STEPS, TOWARDS, TRAINED
from shoal.cli.option import flag, listed, option
from shoal.train.heal.config import DEFAULT_HEAL_TOKENS, FEWEST_STEPS, MOST_BATCH, HealConfig
from shoal.train.heal.presets import PRESETS
from shoal.train.heal.ranks import RANKS
from shoal.train.heal.table import TRAINABLE
from shoal.train.objectives import OBJECTIVES
from shoal.words.counts import parse_count

USUAL = HealConfig()


@dataclass(frozen=True)
class TrainedOptions:
    """What is trained, and for how long."""

    method: Annotated[str | None, option("NAME", listed(TRAINABLE), USUAL.method)] = None
    tokens: Annotated[
        int | None,
        option("N", "Training tokens.", f"{DEFAULT_HEAL_TOKENS:,}, or all that the text holds", parser=parse_count),
    ] = None
    preset: Annotated[
        str | None, option("NAME", f"A paper's way to heal: {', '.join(PRESETS)}; options override it.", "none")
    ] = None
    layers: Annotated[int | None, option("N", "Last layers that partial trains.", USUAL.layers, under=TRAINED)] = None
    head: Annotated[
        str | None, option("NAME", "train or keep: the output head in partial healing.", USUAL.head, under=TRAINED)
    ] = None
    keep_zeros: Annotated[bool, flag("--keep-zeros", "Zeros of a pruned student stay zero.", under=TRAINED)] = False
    regrow: Annotated[
        float | None,
        option(
            "SHARE",
            "With --keep-zeros and --method full: every 100 steps that share of the weights becomes zero and as many "
            "zeros grow where the gradient is largest, over all maps together.",
            "0, zeros stay where they are",
            under=TRAINED,
        ),
    ] = None
    merge: Annotated[
        str | None,
        option("NAME", "original, dequantised, apart, or auto: the best measured.", USUAL.merge, under=ADAPTERS),
    ] = None
    most_lost: Annotated[
        float | None,
        option(
            "X",
            "Nats per token that a merge may lose; above it the adapter stays apart.",
            f"{USUAL.most_lost:g}",
            under=ADAPTERS,
        ),
    ] = None


@dataclass(frozen=True)
class AdapterOptions:
    """The adapters of lora and qlora."""

    rank: Annotated[int | None, option("N", "Rank of adapters, on average.", USUAL.rank, under=ADAPTERS)] = None
    alpha: Annotated[float | None, option("X", "Scale of adapters times rank.", f"the rank, {USUAL.rank}", under=ADAPTERS)] = (
        None
    )
    targets: Annotated[
        str | None, option("NAME", "Maps that get adapters: all, mlp or attention.", USUAL.targets, under=ADAPTERS)
    ] = None
    variant: Annotated[str | None, option("NAME", "plain, rslora or dora.", USUAL.variant, under=ADAPTERS)] = None
    dropout: Annotated[
        float | None, option("SHARE", "Of the adapters' input, while training.", f"{USUAL.dropout:g}", under=ADAPTERS)
    ] = None
    ranks: Annotated[
        str | None,
        option("NAME", f"Division of ranks among layers: {', '.join(RANKS)}.", USUAL.ranks, under=ADAPTERS),
    ] = None
    pruned: Annotated[
        float | None,
        option("SHARE", "Share of the adapters' input side that PRILoRA sets to zero.", f"{USUAL.pruned:g}", under=ADAPTERS),
    ] = None


@dataclass(frozen=True)
class ObjectiveOptions:
    """What the student is trained towards, on which tokens."""

    objective: Annotated[
        str | None,
        option(
            "SUM",
            f"Weighted sum, such as next_token + 0.5*forward_kl, of {', '.join(OBJECTIVES)}.",
            "forward_kl, or next_token without a teacher",
            under=TOWARDS,
        ),
    ] = None
    boundaries: Annotated[
        str | None,
        option("NAME", "Where hidden states are compared: interface or every.", USUAL.boundaries, under=TOWARDS),
    ] = None
    predict: Annotated[
        str | None,
        option("NAME", "all tokens, or the answers of chats (rows with messages) alone.", USUAL.predict, under=TOWARDS),
    ] = None
    source: Annotated[
        str | None,
        option("NAME", "given: the text as it is; teacher: text that the teacher writes.", USUAL.source, under=TOWARDS),
    ] = None
    temperature: Annotated[
        float | None, option("X", "Of text that the teacher writes.", f"{USUAL.temperature:g}", under=TOWARDS)
    ] = None
    teacher_cache: Annotated[
        int | None,
        option(
            "N",
            "Keep the teacher's N likeliest tokens of every position on disk and run it once.",
            "none, it runs in every step",
            under=TOWARDS,
        ),
    ] = None
    teacher_bits: Annotated[
        int | None, option("N", "4: the teacher trains the student in NF4.", "as its checkpoint", under=TOWARDS)
    ] = None


@dataclass(frozen=True)
class StepOptions:
    """How the optimiser steps."""

    lr: Annotated[
        str | None,
        option(
            "RATE",
            "Peak learning rate, or auto: found by short runs.",
            "2e-4 x 4096 / hidden size, in place of 2e-4 1e-4 for partial, 1e-4 for new, 5e-5 for full, "
            "1e-3 for norms; at most 0.01",
            under=STEPS,
        ),
    ] = None
    warmup: Annotated[
        float | None,
        option(
            "N", "First steps with a rising rate: a share of all below 1, else their number.", f"{USUAL.warmup:g}", under=STEPS
        ),
    ] = None
    batch: Annotated[
        int | None,
        option("N", "Samples per optimiser step.", f"{MOST_BATCH}, fewer for less than {FEWEST_STEPS} steps", under=STEPS),
    ] = None
    micro_batch: Annotated[int | None, option("N", "Most samples per forward.", USUAL.micro_batch, under=STEPS)] = None
    patience: Annotated[
        int | None, option("N", "Validations without a new best before training stops.", "no stop", under=STEPS)
    ] = None
    checkpointing: Annotated[bool, flag("--checkpointing", "Recompute activations: less memory, more time.", under=STEPS)] = (
        False
    )
    processes: Annotated[
        str | None,
        option("NAME", "Of several: replicate the model in each, or shard its parameters.", USUAL.processes, under=STEPS),
    ] = None


@dataclass(frozen=True)
class HealConfigOptions:
    """All that makes the configuration of a healing."""

    trained: TrainedOptions
    objective: ObjectiveOptions
    adapter: AdapterOptions
    step: StepOptions
