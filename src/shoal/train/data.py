"""Which training samples are read, in which order, and how they fall into optimiser steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from shoal.text.samples import Samples
from shoal.train.config import DEFAULT_TOKENS, TrainConfig
from shoal.types import Batch


@dataclass(frozen=True)
class Course:
    """The samples of a run in reading order, cut into optimiser steps.

    Attributes:
        samples: in reading order.
        batch: samples per step; the last step may have fewer. ``micro_batch``: most samples per forward.
    """

    samples: Samples
    batch: int
    micro_batch: int

    @property
    def n_steps(self) -> int:
        return -(-self.samples.n_samples // self.batch)

    def step(self, index: int) -> list[Batch]:
        """The pieces of one optimiser step."""
        rows = slice(index * self.batch, (index + 1) * self.batch)
        part = replace(self.samples, ids_NT=self.samples.ids_NT[rows], lengths_N=self.samples.lengths_N[rows])
        return part.batches(self.micro_batch)

    def steps(self, start: int) -> Iterator[tuple[int, list[Batch]]]:
        for index in range(start, self.n_steps):
            yield index, self.step(index)


def plan_course(training: Samples, config: TrainConfig) -> Course:
    """One pass over the training text, shuffled by the seed, until ``config.tokens`` real tokens are read.

    The order depends on the seed and the number of samples only, so a resumed run reads on where it stopped.

    Raises:
        ValueError: more tokens are asked for than the text holds.
    """
    if config.tokens is not None and config.tokens > training.n_tokens:
        raise ValueError(
            f"train.tokens={config.tokens} needs more text: the training samples hold {training.n_tokens} tokens of "
            f"{training.data}; give more text, or at most {training.n_tokens} tokens"
        )
    order_N = torch.randperm(training.n_samples, generator=torch.Generator().manual_seed(config.seed))
    read_N = training.lengths_N[order_N].cumsum(0)
    wanted = min(DEFAULT_TOKENS, training.n_tokens) if config.tokens is None else config.tokens
    n_samples = int(torch.searchsorted(read_N, wanted)) + 1
    order_N = order_N[:n_samples]
    chosen = replace(training, ids_NT=training.ids_NT[order_N], lengths_N=training.lengths_N[order_N])
    return Course(chosen, config.batch, config.micro_batch)


def eval_interval(config: TrainConfig, *, n_steps: int, n_tokens: int, selection_tokens: int) -> int:
    """Optimiser steps between validations: the configured one, else about twenty validations in the run, fewer (but at least
    two besides the start) where the selection text is long, so that they read at most half as many tokens as training."""
    if config.eval_every is not None:
        return config.eval_every
    affordable = n_tokens // (2 * selection_tokens)
    return -(-n_steps // min(20, max(2, affordable)))
