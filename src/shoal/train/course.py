"""Which training samples are read, in which order, and how they fall into optimiser steps."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from shoal.engine.workers import ALONE, Workers
from shoal.text.samples import Samples
from shoal.train.config import TrainConfig
from shoal.words.types import Batch


@dataclass(frozen=True)
class Course:
    """The samples of one stage in reading order, cut into optimiser steps.

    Attributes:
        samples: in reading order.
        batch: samples per step; the last step may have fewer. ``micro_batch``: most samples per forward.
        first_step: of the run, where the stages before it end.
    """

    samples: Samples
    batch: int
    micro_batch: int
    first_step: int = 0

    @property
    def n_steps(self) -> int:
        return -(-self.samples.n_samples // self.batch)

    @property
    def end(self) -> int:
        """The run's step at which this stage is done."""
        return self.first_step + self.n_steps

    def step(self, index: int) -> list[Batch]:
        """The pieces of one optimiser step; ``index`` counts within the stage."""
        return self._pieces(index, ALONE)

    def steps(self, start: int, workers: Workers = ALONE) -> Iterator[tuple[int, list[Batch]]]:
        """The steps from ``start`` on, with this worker's pieces: sample i of a step goes to worker i mod size.

        A worker that gets none has the first sample, too; :func:`~shoal.train.joint.accumulate` gives it no weight.
        """
        for index in range(start, self.n_steps):
            yield index, self._pieces(index, workers)

    def _pieces(self, index: int, workers: Workers) -> list[Batch]:
        rows = range(self.samples.n_samples)[index * self.batch : (index + 1) * self.batch]
        mine = list(workers.share(rows)) or [rows[0]]
        part = replace(self.samples, ids_NT=self.samples.ids_NT[mine], lengths_N=self.samples.lengths_N[mine])
        return part.batches(self.micro_batch)


def plan_courses(training: Samples, config: TrainConfig) -> tuple[Course, ...]:
    """One course per stage: one pass over the training text, shuffled by the seed, each stage until its tokens are read.

    The order depends on the seed and the number of samples only, so a resumed run reads on where it stopped.

    Raises:
        ValueError: more tokens are asked for than the text holds.
    """
    asked = config.all_tokens()
    if asked is not None and asked > training.n_tokens:
        raise ValueError(
            f"train.tokens={asked} needs more text: the training samples hold {training.n_tokens} tokens of "
            f"{training.data}; give more text, or at most {training.n_tokens} tokens"
        )
    order_N = torch.randperm(training.n_samples, generator=torch.Generator().manual_seed(config.seed))
    read_N = training.lengths_N[order_N].cumsum(0)
    courses: list[Course] = []
    start, wanted, first_step = 0, 0, 0
    for number, tokens in enumerate(config.stage_tokens(training.n_tokens)):
        wanted += tokens
        stop = int(torch.searchsorted(read_N, wanted)) + 1
        if stop <= start:
            raise ValueError(f"train.stages[{number}]: {tokens} tokens are less than one sample; give more")
        rows_N = order_N[start:stop]
        chosen = replace(training, ids_NT=training.ids_NT[rows_N], lengths_N=training.lengths_N[rows_N])
        courses.append(Course(chosen, config.batch, config.micro_batch, first_step))
        start, first_step = stop, courses[-1].end
    return tuple(courses)


def eval_interval(asked: int | None, *, n_steps: int, n_tokens: int, selection_tokens: int) -> int:
    """Optimiser steps between validations: the one asked for, else about twenty validations in the run, fewer (but at least
    two besides the start) where the selection text is long, so that they read at most half as many tokens as training."""
    affordable = n_tokens // (2 * selection_tokens)
    return asked or -(-n_steps // min(20, max(2, affordable)))
