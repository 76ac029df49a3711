"""The options of ``shoal heal`` in groups; their names are those of :class:`shoal.train.heal.config.HealConfig`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from shoal.train.heal.presets import PRESETS
from shoal.train.heal.ranks import RANKS


@dataclass(frozen=True)
class TrainedOptions:
    """What is trained, and for how long."""

    method: Annotated[str | None, typer.Option("--method", help="lora, qlora, partial, full or norms.  [default: lora]")] = None
    tokens: Annotated[int | None, typer.Option("--tokens", help="Training tokens.  [default: up to 1 M]")] = None
    preset: Annotated[
        str | None,
        typer.Option("--preset", help=f"A paper's way to heal: {', '.join(PRESETS)}; options override it."),
    ] = None
    layers: Annotated[int | None, typer.Option("--layers", help="Last layers that partial trains.  [default: 3]")] = None
    head: Annotated[
        str | None, typer.Option("--head", help="train or keep: the output head in partial healing.  [default: train]")
    ] = None
    keep_zeros: Annotated[bool, typer.Option("--keep-zeros", help="Zeros of a pruned student stay zero.")] = False
    merge: Annotated[
        str | None,
        typer.Option("--merge", help="original, dequantised, apart, or auto: the best measured.  [default: auto]"),
    ] = None


@dataclass(frozen=True)
class AdapterOptions:
    """The adapters of lora and qlora."""

    rank: Annotated[int | None, typer.Option("--rank", help="Rank of adapters, on average.  [default: 16]")] = None
    alpha: Annotated[float | None, typer.Option("--alpha", help="Scale of adapters times rank.  [default: the rank]")] = None
    targets: Annotated[
        str | None, typer.Option("--targets", help="Maps that get adapters: all, mlp or attention.  [default: all]")
    ] = None
    variant: Annotated[str | None, typer.Option("--variant", help="plain, rslora or dora.  [default: plain]")] = None
    ranks: Annotated[
        str | None,
        typer.Option("--ranks", help=f"Division of ranks among layers: {', '.join(RANKS)}.  [default: uniform]"),
    ] = None
    pruned: Annotated[
        float | None,
        typer.Option("--pruned", help="Share of the adapters' input side that PRILoRA sets to zero.  [default: 0]"),
    ] = None


@dataclass(frozen=True)
class ObjectiveOptions:
    """What the student is trained towards, on which tokens."""

    objective: Annotated[
        str | None,
        typer.Option(
            "--objective",
            help="Weighted sum, such as next_token + 0.5*forward_kl.  [default: forward_kl, or next_token without a teacher]",
        ),
    ] = None
    boundaries: Annotated[
        str | None,
        typer.Option("--boundaries", help="Where hidden states are compared: interface or every.  [default: interface]"),
    ] = None
    predict: Annotated[
        str | None,
        typer.Option("--predict", help="all tokens, or the answers of chats (rows with messages) alone.  [default: all]"),
    ] = None
    source: Annotated[
        str | None,
        typer.Option("--source", help="given: the text as it is; teacher: text that the teacher writes.  [default: given]"),
    ] = None
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="Of text that the teacher writes.  [default: 1]")
    ] = None
    teacher_cache: Annotated[
        int | None,
        typer.Option(
            "--teacher-cache", help="Keep the teacher's N likeliest tokens of every position on disk and run it once."
        ),
    ] = None


@dataclass(frozen=True)
class StepOptions:
    """How the optimiser steps."""

    lr: Annotated[
        str | None,
        typer.Option("--lr", help="Peak learning rate, or auto: found by short runs.  [default: the method's, by width]"),
    ] = None
    batch: Annotated[int | None, typer.Option("--batch", help="Samples per optimiser step.  [default: 8]")] = None
    micro_batch: Annotated[int | None, typer.Option("--micro-batch", help="Samples per forward.  [default: 4]")] = None
    patience: Annotated[
        int | None,
        typer.Option("--patience", help="Validations without a new best before training stops.  [default: never]"),
    ] = None
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Recompute activations: less memory, more time.")] = (
        False
    )
    processes: Annotated[
        str | None,
        typer.Option(
            "--processes", help="Of several: replicate the model in each, or shard its parameters.  [default: replicate]"
        ),
    ] = None


@dataclass(frozen=True)
class HealConfigOptions:
    """All that makes the configuration of a healing."""

    trained: TrainedOptions
    objective: ObjectiveOptions
    adapter: AdapterOptions
    step: StepOptions
