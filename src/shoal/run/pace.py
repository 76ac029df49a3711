"""What the stages count their time by: rates that are measured on the machine as it is, and sizes of the run.

Four rates are measured in a few seconds: a token through all layers, a token through the head with its comparison, fp32
products (the sums of a repair) and fp64 factorisations (its solves). A stage counts tokens and solves by what it does. Where
the cut will lie is not known yet, so it is taken in the middle; what is said is minutes or hours, not seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from shoal.measure.counted import head_blocks
from shoal.measure.one_pass import compare_tokens
from shoal.recipes.recipe import Recipe
from shoal.run.job import Inputs, samples_of
from shoal.words.model_shape import ModelShape
from shoal.words.progress import tell
from shoal.words.records import Record
from shoal.words.types import Batch

PROBE_TOKENS, HEAD_TOKENS = 512, 64
PRODUCT_SIZE, FACTOR_SIZE = 768, 512
# A trained token takes so many forwards (the student, its gradient, what is computed again, the teacher) and so many heads.
TRAINING, TRAINING_HEADS = 5, 3


class StageRates(Record):
    """Seconds per token through all layers and through the head with a comparison; flops per second of products and solves."""

    layers: float
    compared: float
    products: float
    solves: float


@dataclass(frozen=True, eq=False)
class Pace:
    """A run, as far as its time can be told before it begins. Times are seconds of one of its processes."""

    inputs: Inputs
    rates: StageRates

    @property
    def recipe(self) -> Recipe:
        return self.inputs.recipe

    @property
    def share(self) -> float:
        """The part of every text that a process reads."""
        return 1 / self.inputs.workers.size

    @property
    def shape(self) -> ModelShape:
        view = self.inputs.view
        wide = int(getattr(view.config, "intermediate_size", None) or 4 * view.hidden_size)
        return ModelShape(n_layers=view.n_layers, hidden=view.hidden_size, ffn=wide)

    @property
    def n_fit(self) -> int:
        """Tokens of the repair, of all processes together."""
        return self.recipe.fit.n_tokens(self.inputs.widest_map)

    def tokens(self, slice: str) -> float:
        """Tokens of the slice ``calibration``, ``selection`` or ``evaluation`` that a process reads."""
        length = self.inputs.length
        return samples_of(self.recipe.text, slice, length) * length * self.share

    def layers(self, n_tokens: float) -> float:
        """So many tokens through all layers."""
        return n_tokens * self.rates.layers

    def judging(self, n_tokens: float) -> float:
        """So many tokens through a student, its logits compared with the teacher's."""
        return n_tokens * (self.rates.layers + self.rates.compared)

    def training(self, n_tokens: float) -> float:
        """So many tokens, of all processes together, to train on."""
        return (TRAINING * self.rates.layers + TRAINING_HEADS * self.rates.compared) * n_tokens * self.share


def measure_rates(inputs: Inputs) -> StageRates:
    """Some seconds of work on this machine; one process measures for all that share the job."""
    return inputs.workers.from_first(lambda: _measured(inputs))


def _measured(inputs: Inputs) -> StageRates:
    view = inputs.view
    n = min(inputs.length, PROBE_TOKENS)
    ids = torch.zeros(1, n, dtype=torch.long)
    where = torch.zeros(1, n, dtype=torch.bool)
    where[:, :HEAD_TOKENS] = True

    ends: list[torch.Tensor] = []

    @torch.no_grad()
    def through_layers() -> None:
        *_, (_, end_BTD) = view.stream(view.read(Batch(ids)))
        ends[:] = [end_BTD]
        end_BTD.float().sum().item()  # The sum waits for a card.

    @torch.no_grad()
    def through_head() -> None:
        for _, (logits,) in head_blocks([view], ends, where):
            compare_tokens(logits, [logits], torch.zeros(len(logits), dtype=torch.long, device=logits.device))[
                0
            ].kl_N.sum().item()

    square = torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, device=view.device)
    positive = torch.eye(FACTOR_SIZE, dtype=torch.float64, device=view.device)
    works = (
        through_layers,
        through_head,
        lambda: (square @ square).sum().item(),
        lambda: torch.cholesky_solve(positive, torch.linalg.cholesky(positive)).sum().item(),
    )
    of_layers, of_head, of_product, of_solve = (_seconds(work, k) for k, work in enumerate(works))
    return StageRates(
        layers=of_layers / n,
        compared=of_head / min(n, HEAD_TOKENS),
        products=2 * PRODUCT_SIZE**3 / of_product,
        solves=solve_flops(FACTOR_SIZE, FACTOR_SIZE) / of_solve,
    )


def _seconds(work: Callable[[], object], k: int) -> float:
    """The fastest of two runs and more after one that warms up; ``k`` of the four works are done.

    Work of milliseconds is repeated for a quarter of a second: beside other work one run of it can take fifty times as long.
    """
    times: list[float] = []
    while len(times) < 3 or len(times) < 12 and sum(times) < 0.25:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
        tell("measure the pace", 3 * k + min(3, len(times)), 12)
    return max(min(times[1:]), 1e-9)


def solve_flops(n: int, n_outputs: int) -> float:
    """A factorisation of n by n, and the answers of so many outputs by it."""
    return n**3 / 3 + 2 * n**2 * n_outputs
