"""Training text as the Trainer reads it: token ids, and which of them are to be predicted.

Shapes: N samples, T positions, B samples of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from shoal.text.samples import Samples

IGNORED = -100
"""Label of a token that nobody has to predict: the Trainer's own number for it."""


@dataclass(frozen=True, eq=False)
class TextRows(Dataset[dict[str, Any]]):
    """Samples in reading order.

    Attributes:
        ids_NT: int64, padded on the right.
        lengths_N: real tokens of each sample.
        predicted_NT: bool, True on tokens whose prediction is trained and measured; None: all real tokens.
        data, data_hash: name and identity of the text.
    """

    ids_NT: Tensor
    lengths_N: Tensor
    predicted_NT: Tensor | None
    data: str
    data_hash: str

    @classmethod
    def of(cls, samples: Samples) -> TextRows:
        """Every real token of the samples is predicted from those before it."""
        return cls(samples.ids_NT, samples.lengths_N, None, samples.data, samples.data_hash)

    def __len__(self) -> int:
        return len(self.ids_NT)

    def __getitem__(self, index: int) -> dict[str, Any]:
        length = int(self.lengths_N[index])
        ids_T = self.ids_NT[index, :length]
        labels_T = ids_T
        if self.predicted_NT is not None:
            labels_T = ids_T.masked_fill(~self.predicted_NT[index, :length], IGNORED)
        return {"index": index, "ids": ids_T, "labels": labels_T}

    @property
    def n_tokens(self) -> int:
        return int(self.lengths_N.sum())

    def shuffled(self, seed: int, n: int) -> TextRows:
        """The first n samples of a shuffle that depends on the seed and on how many samples there are."""
        order_N = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:n]
        predicted = None if self.predicted_NT is None else self.predicted_NT[order_N]
        return TextRows(self.ids_NT[order_N], self.lengths_N[order_N], predicted, self.data, self.data_hash)

    def first(self, n: int) -> TextRows:
        """The first n samples in the same order."""
        return self.slice(0, n)

    def slice(self, start: int, stop: int) -> TextRows:
        """Samples start .. stop - 1, fewer where there are fewer."""
        predicted = None if self.predicted_NT is None else self.predicted_NT[start:stop]
        return TextRows(self.ids_NT[start:stop], self.lengths_N[start:stop], predicted, self.data, self.data_hash)

    def batches(self, size: int) -> list[dict[str, Tensor]]:
        """All samples in order, ``size`` at a time."""
        return [collate([self[i] for i in range(at, min(at + size, len(self)))]) for at in range(0, len(self), size)]


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch cut to its longest sample: ``index`` (B,), ``input_ids``, ``labels`` and, where something is padded,
    ``attention_mask`` (B, T), True on real tokens."""
    longest = max(len(row["ids"]) for row in rows)
    ids_BT = torch.zeros(len(rows), longest, dtype=torch.int64)
    labels_BT = torch.full((len(rows), longest), IGNORED, dtype=torch.int64)
    mask_BT = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        length = len(row["ids"])
        ids_BT[i, :length], labels_BT[i, :length], mask_BT[i, :length] = row["ids"], row["labels"], True
    batch = {"index": torch.tensor([row["index"] for row in rows]), "input_ids": ids_BT, "labels": labels_BT}
    return batch if bool(mask_BT.all()) else {**batch, "attention_mask": mask_BT}


def counted(labels_BT: Tensor) -> Tensor:
    """Positions (B, T-1) whose next token is to be predicted."""
    return labels_BT[:, 1:] != IGNORED
