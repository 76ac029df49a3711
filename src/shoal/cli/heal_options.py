"""The options of ``shoal heal`` in groups; names and defaults are those of :class:`shoal.train.heal.config.HealConfig`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from shoal.cli.help import ADAPTERS, STEPS, TOWARDS, TRAINED, default
from shoal.train.heal.config import DEFAULT_HEAL_TOKENS, HealConfig
from shoal.train.heal.presets import PRESETS
from shoal.train.heal.ranks import RANKS
from shoal.words.counts import parse_count

USUAL = HealConfig()


@dataclass(frozen=True)
class TrainedOptions:
    """What is trained, and for how long."""

    method: Annotated[
        str | None,
        typer.Option("--method", metavar="NAME", help="lora, qlora, partial, new, full or norms." + default(USUAL.method)),
    ] = None
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens",
            parser=parse_count,
            metavar="N",
            help="Training tokens." + default(f"{DEFAULT_HEAL_TOKENS:,}, or all that the text holds"),
        ),
    ] = None
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="NAME",
            help=f"A paper's way to heal: {', '.join(PRESETS)}; options override it." + default("none"),
        ),
    ] = None
    layers: Annotated[
        int | None,
        typer.Option(
            "--layers",
            metavar="N",
            help="Last layers that partial trains." + default(USUAL.layers),
            rich_help_panel=TRAINED,
        ),
    ] = None
    head: Annotated[
        str | None,
        typer.Option(
            "--head",
            metavar="NAME",
            help="train or keep: the output head in partial healing." + default(USUAL.head),
            rich_help_panel=TRAINED,
        ),
    ] = None
    keep_zeros: Annotated[
        bool,
        typer.Option("--keep-zeros", help="Zeros of a pruned student stay zero.", rich_help_panel=TRAINED),
    ] = False
    regrow: Annotated[
        float | None,
        typer.Option(
            "--regrow",
            metavar="SHARE",
            help="With --keep-zeros and --method full: every 100 steps that share of the weights becomes zero and as many "
            "zeros grow where the gradient is largest, over all maps together." + default("0, zeros stay where they are"),
            rich_help_panel=TRAINED,
        ),
    ] = None
    merge: Annotated[
        str | None,
        typer.Option(
            "--merge",
            metavar="NAME",
            help="original, dequantised, apart, or auto: the best measured." + default(USUAL.merge),
            rich_help_panel=ADAPTERS,
        ),
    ] = None


@dataclass(frozen=True)
class AdapterOptions:
    """The adapters of lora and qlora."""

    rank: Annotated[
        int | None,
        typer.Option(
            "--rank",
            metavar="N",
            help="Rank of adapters, on average." + default(USUAL.rank),
            rich_help_panel=ADAPTERS,
        ),
    ] = None
    alpha: Annotated[
        float | None,
        typer.Option(
            "--alpha",
            metavar="X",
            help="Scale of adapters times rank." + default(f"the rank, {USUAL.rank}"),
            rich_help_panel=ADAPTERS,
        ),
    ] = None
    targets: Annotated[
        str | None,
        typer.Option(
            "--targets",
            metavar="NAME",
            help="Maps that get adapters: all, mlp or attention." + default(USUAL.targets),
            rich_help_panel=ADAPTERS,
        ),
    ] = None
    variant: Annotated[
        str | None,
        typer.Option(
            "--variant",
            metavar="NAME",
            help="plain, rslora or dora." + default(USUAL.variant),
            rich_help_panel=ADAPTERS,
        ),
    ] = None
    ranks: Annotated[
        str | None,
        typer.Option(
            "--ranks",
            metavar="NAME",
            help=f"Division of ranks among layers: {', '.join(RANKS)}." + default(USUAL.ranks),
            rich_help_panel=ADAPTERS,
        ),
    ] = None
    pruned: Annotated[
        float | None,
        typer.Option(
            "--pruned",
            metavar="SHARE",
            help="Share of the adapters' input side that PRILoRA sets to zero." + default(f"{USUAL.pruned:g}"),
            rich_help_panel=ADAPTERS,
        ),
    ] = None


@dataclass(frozen=True)
class ObjectiveOptions:
    """What the student is trained towards, on which tokens."""

    objective: Annotated[
        str | None,
        typer.Option(
            "--objective",
            metavar="SUM",
            help="Weighted sum, such as next_token + 0.5*forward_kl." + default("forward_kl, or next_token without a teacher"),
            rich_help_panel=TOWARDS,
        ),
    ] = None
    boundaries: Annotated[
        str | None,
        typer.Option(
            "--boundaries",
            metavar="NAME",
            help="Where hidden states are compared: interface or every." + default(USUAL.boundaries),
            rich_help_panel=TOWARDS,
        ),
    ] = None
    predict: Annotated[
        str | None,
        typer.Option(
            "--predict",
            metavar="NAME",
            help="all tokens, or the answers of chats (rows with messages) alone." + default(USUAL.predict),
            rich_help_panel=TOWARDS,
        ),
    ] = None
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="NAME",
            help="given: the text as it is; teacher: text that the teacher writes." + default(USUAL.source),
            rich_help_panel=TOWARDS,
        ),
    ] = None
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            metavar="X",
            help="Of text that the teacher writes." + default(f"{USUAL.temperature:g}"),
            rich_help_panel=TOWARDS,
        ),
    ] = None
    teacher_cache: Annotated[
        int | None,
        typer.Option(
            "--teacher-cache",
            metavar="N",
            help="Keep the teacher's N likeliest tokens of every position on disk and run it once."
            + default("none, it runs in every step"),
            rich_help_panel=TOWARDS,
        ),
    ] = None


@dataclass(frozen=True)
class StepOptions:
    """How the optimiser steps."""

    lr: Annotated[
        str | None,
        typer.Option(
            "--lr",
            metavar="RATE",
            help="Peak learning rate, or auto: found by short runs."
            + default(
                "2e-4 x 4096 / hidden size, in place of 2e-4 1e-4 for partial, 1e-4 for new, 5e-5 for full, "
                "1e-3 for norms; at most 0.01"
            ),
            rich_help_panel=STEPS,
        ),
    ] = None
    batch: Annotated[
        int | None,
        typer.Option("--batch", metavar="N", help="Samples per optimiser step." + default(USUAL.batch), rich_help_panel=STEPS),
    ] = None
    micro_batch: Annotated[
        int | None,
        typer.Option(
            "--micro-batch", metavar="N", help="Samples per forward." + default(USUAL.micro_batch), rich_help_panel=STEPS
        ),
    ] = None
    patience: Annotated[
        int | None,
        typer.Option(
            "--patience",
            metavar="N",
            help="Validations without a new best before training stops." + default("no stop"),
            rich_help_panel=STEPS,
        ),
    ] = None
    checkpointing: Annotated[
        bool,
        typer.Option("--checkpointing", help="Recompute activations: less memory, more time.", rich_help_panel=STEPS),
    ] = False
    processes: Annotated[
        str | None,
        typer.Option(
            "--processes",
            metavar="NAME",
            help="Of several: replicate the model in each, or shard its parameters." + default(USUAL.processes),
            rich_help_panel=STEPS,
        ),
    ] = None


@dataclass(frozen=True)
class HealConfigOptions:
    """All that makes the configuration of a healing."""

    trained: TrainedOptions
    objective: ObjectiveOptions
    adapter: AdapterOptions
    step: StepOptions
