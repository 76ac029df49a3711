"""A teacher's logits on disk, whole, so that many trainings on one text run the teacher once.

Unlike a healing's own cache nothing is left out but digits: logits are kept in fp16. Rows are read, not mapped, so that they
are no part of the memory that a process is measured with.
Shapes: N rows of equal length T, B rows of a batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoal.train.heal.streams import Streams
from shoal.train.heal.text_rows import TextRows


class StoredLogits:
    """A file that grows from the front; a row that was not written to its end is written again.

    Args:
        rows: every row as long as the others; a file of another text or teacher has to have another name.
    """

    def __init__(self, path: Path, rows: TextRows, n_vocabulary: int) -> None:
        assert int(rows.lengths_N.min()) == int(rows.lengths_N.max()), "rows are packed to one length"
        self.path, self.rows, self.shape = path, rows, (rows.ids_NT.shape[1], n_vocabulary)
        self.row_bytes = 2 * self.shape[0] * n_vocabulary

    @property
    def n_rows(self) -> int:
        """Whole rows on disk."""
        return self.path.stat().st_size // self.row_bytes if self.path.exists() else 0

    @torch.no_grad()
    def fill(self, model: Any, n: int, *, batch_size: int = 4) -> int:
        """Write the first n rows, those that are not there; how many were written."""
        begin = self.n_rows
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "r+b" if begin else "wb") as file:
            file.truncate(begin * self.row_bytes)
            file.seek(0, 2)
            for at in range(begin, n, batch_size):
                batch = self.rows.slice(at, min(at + batch_size, n)).batches(batch_size)[0]
                logits_BTV = model(input_ids=batch["input_ids"], use_cache=False).logits
                file.write(logits_BTV.half().numpy().tobytes())
        return max(0, n - begin)

    def read(self, index_B: Tensor) -> Tensor:
        """(B, T, V) in fp32."""
        found = []
        with open(self.path, "rb") as file:
            for row in index_B.tolist():
                file.seek(row * self.row_bytes)
                found.append(np.frombuffer(file.read(self.row_bytes), dtype=np.float16).reshape(self.shape))
        return torch.from_numpy(np.stack(found)).float()


class StoredTeacher:
    """Answers from two files: one of the training text, one of the text that decides."""

    def __init__(self, training: StoredLogits, selection: StoredLogits) -> None:
        self.of_training, self.of_selection = training, selection

    def training(self, batch: dict[str, Tensor], boundaries: Iterable[int]) -> Streams:
        assert not tuple(boundaries), "logits on disk have no hidden states"
        return Streams(self.of_training.read(batch["index"]), {})

    def selection(self, batch: dict[str, Tensor]) -> Tensor:
        return self.of_selection.read(batch["index"])
