"""Student against teacher by position: does the loss grow with the context?

Per token, from both next-token distributions p (teacher) and q (student): KL(p || q) in nats, the overlap sum min(p, q), and
whether the most likely token is the same. The mean overlap is the expected acceptance of speculative sampling: the share of
tokens drafted by the student that the teacher would keep (arXiv 2211.17192). Position t predicts token t + 1 and has t + 1
tokens of context. Sums are per position, in fp64, so they are additive over batches; the result is in octaves of the position.
Shapes: B samples, T positions, V vocabulary.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from shoal.engine.workers import ALONE, Workers
from shoal.measure.oracle import TokenFigures
from shoal.words.records import Record


class Positions(Record):
    """Means over the tokens at positions ``start .. stop-1``."""

    start: int
    stop: int
    n_tokens: int
    kl: float
    acceptance: float
    agreement: float


class ByPosition(Record):
    """Means over all tokens, and in octaves of the position: 0, 1, 2..3, 4..7, up to the longest sample."""

    n_tokens: int
    kl: float
    acceptance: float
    agreement: float
    octaves: tuple[Positions, ...]


class PositionSums:
    """fp64 sums per position from which :class:`ByPosition` follows; additive over batches.

    Args:
        workers: who share the batches, each its own; the result is that of all batches in order, bit for bit.
    """

    def __init__(self, workers: Workers = ALONE) -> None:
        self._workers = workers
        self._per_batch: list[Tensor] = []

    def add(self, found: TokenFigures) -> None:
        """Count one batch; its figures by :func:`shoal.measure.oracle.token_figures`, with their overlap."""
        assert found.overlap_BT is not None
        figures = (found.kl_BT, found.overlap_BT, found.agreement_BT, torch.ones_like(found.overlap_BT))
        # A padded position may hold NaN, which a multiplication by 0 would keep; `where` drops it.
        self._per_batch.append(torch.stack([torch.where(found.counted_BT, one.double(), 0.0).sum(0) for one in figures]).cpu())

    def result(self) -> ByPosition:
        """Raises ValueError: no token was counted."""
        per_batch = self._workers.gather(self._per_batch)
        sums_4T = torch.zeros(4, max((one.shape[1] for one in per_batch), default=0), dtype=torch.float64)
        for one in per_batch:
            sums_4T[:, : one.shape[1]] += one
        every = _means(sums_4T, 0, sums_4T.shape[1])
        if not every.n_tokens:
            raise ValueError("no token to measure on: every sample is shorter than 2 tokens; give longer text")
        return ByPosition(
            n_tokens=every.n_tokens,
            kl=every.kl,
            acceptance=every.acceptance,
            agreement=every.agreement,
            octaves=tuple(
                found for start, stop in _octaves(sums_4T.shape[1]) if (found := _means(sums_4T, start, stop)).n_tokens
            ),
        )


def _means(sums_4T: Tensor, start: int, stop: int) -> Positions:
    *sums, n_tokens = sums_4T[:, start:stop].sum(1).tolist()
    kl, acceptance, agreement = (total / max(n_tokens, 1) for total in sums)
    return Positions(start=start, stop=stop, n_tokens=int(n_tokens), kl=kl, acceptance=acceptance, agreement=agreement)


def _octaves(n_positions: int) -> Iterator[tuple[int, int]]:
    """[0, 1), [1, 2), [2, 4), [4, 8), ... cut at ``n_positions``."""
    start, stop = 0, 1
    while start < n_positions:
        yield start, min(stop, n_positions)
        start, stop = stop, 2 * stop
