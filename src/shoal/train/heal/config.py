"""What a healing trains, on what and for how long. Plain data, free of torch, so that recipes load fast."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from shoal.edits.base import MOST_LAYERS
from shoal.edits.replace.contract import MOST_WIDTH
from shoal.train.config import Beta, ObjectiveSum
from shoal.train.heal.quiet import quiet_training
from shoal.train.heal.ranks import RANKS
from shoal.train.heal.table import TRAINABLE
from shoal.train.objectives import weighted_sum
from shoal.words.counts import SampleCount, SeedNumber, StepCount, TokenCount
from shoal.words.records import Record, is_asked, refuse

DEFAULT_HEAL_TOKENS = 1_000_000
SHORT_HEAL_TOKENS = 98_304
"""Tokens of a short healing, worth more than a longer repair: docs/decisions/0021-the-default-heals.md."""
MICRO_BATCH = 4
MOST_BATCH, FEWEST_STEPS, FEWEST_TOKENS, SHORTEST = 8, 192, 512, 256
"""Little text is cut into small steps: of SmolLM2 98,304 tokens leave less in 192 steps of 512 tokens than in 96 of 1,024, and
24,576 tokens in 48 steps do what 49,152 do in 24 (``docs/healing.md``)."""


class HealConfig(Record):
    """Options of one healing; counts of steps are optimiser steps.

    Attributes:
        method: an entry of ``train.heal.table.TRAINABLE``.
        rank: of the adapters; the average over layers where ``ranks`` is a schedule that varies.
        alpha: scale of the adapters' output is alpha / rank (alpha / sqrt(rank) for rslora). None: alpha = rank.
        dropout: of the adapters' input, while training.
        targets: the linear maps that get adapters.
        variant: ``plain`` LoRA, ``rslora`` (arXiv 2312.03732) or ``dora`` (arXiv 2402.09353).
        ranks: how the adapters' budget is divided among layers; an entry of ``train.heal.ranks.RANKS``.
        pruned: share of every adapter's A that is set to zero again and again while it trains, by ``|A|`` times the running
            norm of its input (PRILoRA, arXiv 2401.11316).
        prune_every: optimiser steps between two such times.
        prune_decay: decay of the running norm.
        layers: last layers that ``partial`` trains; ``head``: whether it trains the output head as well.
        objective: weighted sum of names in ``train.objectives``. None: ``forward_kl`` with a teacher, else ``next_token``.
        boundaries: where objectives on hidden states compare: behind each cut (``interface``), or behind every layer.
        teacher_cache: likeliest tokens of every position that are kept on disk, so that the teacher does not run in every step;
            None: it does.
        teacher_bits: of the teacher's linear maps while it trains the student: 4 (NF4, by bitsandbytes). What that moves is
            measured; the evaluation compares with the teacher as its checkpoint is. None: as its checkpoint.
        predict: what is trained and measured: every token of the text (``all``), or what assistants say in chats (``answers``).
        source: the ``given`` text, or text that the ``teacher`` writes behind the first tokens of each of its samples.
        temperature: at which the teacher writes.
        tokens: training tokens, one pass over the text. None: 1 M, fewer where the text holds fewer.
        lr: peak learning rate; ``auto`` finds it by short runs; None: the method's own for the width of the model.
        floor: the final learning rate as a share of the peak (cosine).
        warmup: first steps with a rising rate: a share of all steps below 1, a number of steps from 1, of which at
            most a tenth of all are taken.
        weight_decay, betas, clip: AdamW's, and the largest gradient norm.
        batch: samples per optimiser step over all processes. None: 8; where the text would give fewer than 192 steps, shorter
            samples unless their length is asked for, and fewer of them, but 512 tokens at least.
        micro_batch: most samples per forward of one process; gradients accumulate in between.
        checkpointing: recompute activations in the backward pass, which takes a third more time and far less memory.
        processes: how several processes share the training: each has the whole model (``replicate``, DDP), or a part of every
            trained parameter (``shard``, FSDP2, for ``full``).
        eval_every: steps between validations; None: about twenty in the run.
        patience: validations without a new best after which training stops; None: it never stops early.
        merge: how adapters enter the checkpoint; an entry of ``train.heal.merge.MERGES``, or ``auto``, the best of them.
        most_lost: nats per token by which merging may worsen the measure; above it the merge is refused.
        keep_zeros: zeros of the student's matrices stay zero through training and merging.
        regrow, regrow_every, regrow_in: share of the other weights of each matrix that is set to zero every ``regrow_every``
            steps, the smallest, while as many grow where the gradient is largest: among the zeros of ``all`` matrices (arXiv
            2210.14012), or of each ``map``. It falls to nothing at three quarters of the training.
        optional: left out, and said so, where the run cannot train beside its teacher, or where the recipe names how the cut is
            mended; a training that fails in one process leaves the student that was cut and repaired.
        seed: of adapters, dropout and the order of the samples; the recipe's, where that is given and this is not.
    """

    method: str = "lora"
    rank: int = Field(default=16, ge=1, le=MOST_WIDTH)
    alpha: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["all", "mlp", "attention"] = "all"
    variant: Literal["plain", "rslora", "dora"] = "plain"
    ranks: str = "uniform"
    pruned: float = Field(default=0.0, ge=0, lt=1)
    prune_every: StepCount = 40
    prune_decay: float = Field(default=0.9, ge=0, lt=1)
    layers: int = Field(default=3, ge=0, le=MOST_LAYERS)
    head: Literal["train", "keep"] = "train"
    objective: ObjectiveSum | None = None
    boundaries: Literal["interface", "every"] = "interface"
    teacher_cache: int | None = Field(default=None, ge=1, le=MOST_WIDTH)
    teacher_bits: Literal[4] | None = None
    predict: Literal["all", "answers"] = "all"
    source: Literal["given", "teacher"] = "given"
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    tokens: TokenCount | None = None
    lr: float | Literal["auto"] | None = None
    floor: float = Field(default=0.1, ge=0, le=1)
    warmup: float = Field(default=0.05, ge=0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    clip: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    batch: SampleCount | None = None
    micro_batch: SampleCount = MICRO_BATCH
    checkpointing: bool = False
    processes: Literal["replicate", "shard"] = "replicate"
    eval_every: StepCount | None = None
    patience: StepCount | None = None
    merge: str = "auto"
    most_lost: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    keep_zeros: bool = False
    regrow: float = Field(default=0.0, ge=0, lt=1)
    regrow_every: StepCount = 100
    regrow_in: Literal["all", "map"] = "all"
    optional: bool = False
    seed: SeedNumber = 0

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        return TRAINABLE.named(value).name

    @field_validator("ranks")
    @classmethod
    def _known_ranks(cls, value: str) -> str:
        RANKS.named(value)
        return value

    @field_validator("merge")
    @classmethod
    def _known_merge(cls, value: str, info: ValidationInfo) -> str:
        if is_asked(cls, value, info):
            with quiet_training():
                from shoal.train.heal.merge import merge_named

            merge_named(value, is_quantised="method" not in info.data or TRAINABLE.named(info.data["method"]).is_quantised)
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> HealConfig:
        refuse(self._conflicts())
        return self

    @property
    def n_batch(self) -> int:
        """The batch of a settled config."""
        assert self.batch is not None, "the batch is settled when the text is known"
        return self.batch

    def sample_length(self, n_tokens: int, length: int) -> int:
        """Tokens of a training sample where nobody asked for a length: halved while the text gives too few steps of one."""
        while self.batch is None and n_tokens < FEWEST_STEPS * length and length % 2 == 0 and length >= 2 * SHORTEST:
            length //= 2
        return length

    def settled(self, n_samples: float, per_sample: float, n_processes: int = 1) -> HealConfig:
        """With the batch of a training on so many samples of so many tokens, and with pieces of it that fill it.

        A batch that is not asked for halves until the samples give enough steps, as long as a step keeps enough tokens and
        every process a sample.

        Raises:
            ValueError: the batch that is asked for cannot be divided among the processes.
        """
        batch = self.batch
        if batch is None:
            batch = MOST_BATCH
            while batch > n_processes and n_samples < FEWEST_STEPS * batch and batch * per_sample >= 2 * FEWEST_TOKENS:
                batch //= 2
            batch = max(1, batch // n_processes) * n_processes
        if batch % n_processes:
            raise ValueError(f"batch={batch} needs to be a multiple of the {n_processes} processes")
        own = batch // n_processes
        pieces = max(n for n in range(1, min(own, self.micro_batch) + 1) if own % n == 0)
        return self.model_copy(update={"batch": batch, "micro_batch": pieces})

    def unread(self) -> Iterator[tuple[str, str]]:
        """Fields that nothing reads beside the others, each with the reason."""
        own = TRAINABLE.named(self.method).options
        readers: dict[str, list[str]] = {}
        for name, one in TRAINABLE.items():
            for field in one.options:
                readers.setdefault(field, []).append(name)
        for field, by in readers.items():
            if field not in own:
                yield field, f"it is about method {' and '.join(by)}, not {self.method}"
        if "pruned" in own and not self.pruned:
            yield from dict.fromkeys(("prune_every", "prune_decay"), "no weights of adapters are pruned; add pruned").items()
        if "regrow" in own and not self.regrow:
            yield from dict.fromkeys(("regrow_every", "regrow_in"), "no zeros move; add regrow").items()
        if self.source != "teacher":
            yield "temperature", "the teacher writes no text without source teacher"
        if self.objective is None or "boundary" not in weighted_sum(self.objective).needs:
            yield "boundaries", "the objective compares no hidden states"

    def _conflicts(self) -> Iterator[str]:
        if isinstance(self.lr, float) and not 0 < self.lr < math.inf:
            yield f"lr={self.lr:g} needs to be a finite number above 0, or auto"
        if self.processes == "shard" and self.method != "full":
            yield f"processes shard is for method full; {self.method} trains little enough to replicate it"
        if self.predict == "answers" and self.source == "teacher":
            yield "predict answers reads conversations, and the teacher writes plain text; leave out one of them"
        if self.pruned and self.variant != "plain":
            yield f"pruned={self.pruned:g} is defined for plain LoRA, not for {self.variant}; leave one of them out"
        if self.regrow and not (self.keep_zeros and self.method in ("full", "partial") and self.processes == "replicate"):
            raise ValueError(
                f"regrow={self.regrow:g} moves zeros that are kept among weights that are trained whole; add keep_zeros, with "
                "method full or partial, and processes replicate"
            )
        if self.keep_zeros and (self.variant == "dora" or self.dropout or self.method == "qlora"):
            yield (
                "keep_zeros is exact for lora without dropout, plain or rslora, and for methods without adapters; "
                "leave out dora, dropout or qlora"
            )
