"""Additive sums from which a linear map's best change follows, whatever the ridge, the folds and the constraint.

Per token t with weight w the map reads h and the stream misses r (target minus what the student has). Kept: sums of
w [h,1][h,1]^T, w [h,1] r^T and w |r|^2. Products in fp32 (TF32 off; fp64 for fp64 models), sums in fp64. Sinks are kept apart
by their first moments: their norm is 100-1000 times the rest and would own every sum; a constraint on their mean takes their
place.

Shapes: N tokens, F inputs of the map, E = F + 1 (the last is the constant 1), D outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from shoal.engine.tensors import exact_bmm
from shoal.fit.fit_result import CannotRefit
from shoal.words.records import stable_hash
from shoal.words.types import Batch

N_FOLDS = 5
"""Fold 0 is held out from every fit; ridges are cross-validated over the other four."""

HELD_OUT = 10
"""One sample in that many is held out."""


class Sums:
    """Sums over the tokens of one fold. Sums add and subtract: shards give the whole, which minus a fold is its complement."""

    n_tokens: Tensor

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))  # type: ignore[arg-type]

    def __sub__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, one.name) - getattr(other, one.name) for one in fields(self)))  # type: ignore[arg-type]

    def add_tokens(self, h_NF: Tensor, r_ND: Tensor, *, weights_N: Tensor, sinks_N: Tensor) -> None:
        """Add real tokens of one fold, in place.

        Args:
            h_NF: what the site reads; r_ND: target minus the student's stream.
            weights_N: weights of the tokens that are no sinks, at least 0.
            sinks_N: bool; sinks do not enter the second moments.
        """
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class MapSums(Sums):
    """Sums for a linear map.

    Attributes:
        hh_EE, hr_ED, rr: weighted second moments of the tokens that are no sinks.
        n_tokens: number of those tokens.
        sink_E, sink_r_D: sums of [h, 1] and r over the sinks, unweighted; ``sink_E[-1]`` is their number.
    """

    hh_EE: Tensor
    hr_ED: Tensor
    rr: Tensor
    n_tokens: Tensor
    sink_E: Tensor
    sink_r_D: Tensor

    @property
    def mean_diagonal(self) -> float:
        """Mean second moment of the inputs, the constant left out: the unit of a ridge."""
        return float(self.hh_EE.diagonal()[:-1].sum()) / max(1, len(self.hh_EE) - 1)

    def add_tokens(self, h_NF: Tensor, r_ND: Tensor, *, weights_N: Tensor, sinks_N: Tensor) -> None:
        dtype = torch.promote_types(torch.promote_types(h_NF.dtype, r_ND.dtype), torch.float32)
        h_NE, r_ND = torch.nn.functional.pad(h_NF.to(dtype), (0, 1), value=1.0), r_ND.to(dtype)
        self.sink_E.add_(h_NE[sinks_N].sum(0, dtype=torch.float64))
        self.sink_r_D.add_(r_ND[sinks_N].sum(0, dtype=torch.float64))
        root_N1 = weights_N[~sinks_N].to(dtype).sqrt()[:, None]
        h_NE, r_ND = h_NE[~sinks_N] * root_N1, r_ND[~sinks_N] * root_N1
        add_gram(self.hh_EE, h_NE)
        self.hr_ED.add_(exact_bmm(h_NE.mT[None], r_ND[None])[0])
        self.rr.add_(r_ND.square().sum(dtype=torch.float64))
        self.n_tokens.add_(len(h_NE))


def add_gram(total_EE: Tensor, h_NE: Tensor, *, n_blocks: int = 4) -> None:
    """Add h^T h in place, as blocks of rows from the diagonal on: the other half is their mirror image."""
    edges = torch.linspace(0, h_NE.shape[1], n_blocks + 1).round().int().tolist()
    for start, stop in zip(edges, edges[1:], strict=False):
        rows = exact_bmm(h_NE[:, start:stop].mT[None], h_NE[None, :, start:])[0]
        total_EE[start:stop, start:].add_(rows)
        total_EE[stop:, start:stop].add_(rows[:, stop - start :].mT)


def no_sums(n_inputs: int, n_outputs: int, *, device: torch.device | str = "cpu") -> MapSums:
    """Sums over no token."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=device)

    n_ones = n_inputs + 1
    return MapSums(
        zeros(n_ones, n_ones), zeros(n_ones, n_outputs), zeros(), zeros(), zeros(n_ones), zeros(n_outputs)
    )  # fmt: skip


def folds_of(batches: Sequence[Batch]) -> list[Tensor]:
    """Per batch (B,) int64: the fold of each sample, by the rank of the hash of its real tokens.

    Folds do not depend on the order of samples or on batching, and equal samples share one. The folds of the fit differ in size
    by at most one different sample.

    Raises:
        CannotRefit: fewer than three different samples: one is held out and a ridge needs two folds.
    """
    hashes = [[_hash_of(batch, row) for row in range(len(batch.ids_BT))] for batch in batches]
    different = sorted({one for batch in hashes for one in batch})
    if len(different) < 3:
        raise CannotRefit(f"{len(different)} different samples are too few to fit and check a repair; at least 3, better 20")
    fitted = [digest for rank, digest in enumerate(different) if rank % HELD_OUT]
    folds = {digest: 0 for digest in different} | {digest: 1 + rank % (N_FOLDS - 1) for rank, digest in enumerate(fitted)}
    return [torch.tensor([folds[digest] for digest in batch]) for batch in hashes]


def _hash_of(batch: Batch, row: int) -> str:
    ids_T = batch.ids_BT[row] if batch.mask_BT is None else batch.ids_BT[row][batch.mask_BT[row].bool()]
    return stable_hash(ids_T.cpu().contiguous().numpy().tobytes())
