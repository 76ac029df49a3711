"""The teacher's likeliest tokens of every position of the training text, on disk, so that it need not run in every step.

Kept are the log-probabilities of the k likeliest tokens and their ids; the rest of the mass is spread evenly over the other
tokens when it is read. ``topk_forward_kl(k)`` reads nothing of that rest but its mass, so for it the cache is exact up to fp16.
Shapes: N samples, T positions, K kept tokens, B samples of a batch, V vocabulary.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shoal.train.heal.streams import Streams
from shoal.train.heal.teachers import Teacher
from shoal.train.heal.text_rows import TextRows
from shoal.words.records import Record

IDS, LOGS, DONE = "ids.npy", "logs.npy", "done.json"
PER_WRITE = 8  # So many samples lie between two records of how far the writing has come.


class CacheProgress(Record):
    """How many samples are on disk, and of what."""

    n_samples: int
    key: str


class CachedTeacher:
    """Answers for a teacher from disk where the training text is asked for; the selection text is the teacher's own.

    Made by :func:`fill_cache`.
    """

    def __init__(self, folder: Path, teacher: Teacher, *, n_vocabulary: int) -> None:
        self.ids_NTK = np.load(folder / IDS, mmap_mode="r")
        self.logs_NTK = np.load(folder / LOGS, mmap_mode="r")
        self.teacher, self.n_vocabulary = teacher, n_vocabulary

    @property
    def n_bytes(self) -> int:
        """On disk."""
        return int(self.ids_NTK.nbytes + self.logs_NTK.nbytes)

    def training(self, batch: dict[str, Tensor], boundaries: Iterable[int]) -> Streams:
        assert not tuple(boundaries), "a cache of logits has no hidden states"
        rows, (_, length) = batch["index"].cpu().numpy(), batch["input_ids"].shape
        ids_BTK = torch.from_numpy(self.ids_NTK[rows, :length].astype(np.int64))
        logs_BTK = torch.from_numpy(self.logs_NTK[rows, :length].astype(np.float32))
        device = batch["input_ids"].device
        return Streams(spread(ids_BTK.to(device), logs_BTK.to(device), self.n_vocabulary), {})

    def selection(self, batch: dict[str, Tensor]) -> Tensor:
        return self.teacher.selection(batch)


def spread(ids_BTK: Tensor, logs_BTK: Tensor, n_vocabulary: int) -> Tensor:
    """Log-probabilities (B, T, V): the kept ones, and what they leave evenly over all other tokens."""
    n_rest = n_vocabulary - ids_BTK.shape[-1]
    if n_rest == 0:
        return torch.empty(*ids_BTK.shape[:-1], n_vocabulary, device=ids_BTK.device).scatter_(-1, ids_BTK, logs_BTK)
    # 1 - sum as -expm1(logsumexp): the rest may be far smaller than the rounding of the sum, and is never taken as 0.
    rest_BT1 = -torch.expm1(logs_BTK.logsumexp(-1, keepdim=True).clamp(max=-1e-7))
    even_BTV = (rest_BT1 / n_rest).log().expand(*ids_BTK.shape[:-1], n_vocabulary)
    return even_BTV.scatter(-1, ids_BTK, logs_BTK)


def cut_off(full: Streams, k: int) -> Streams:
    """A teacher's answers as a cache of k tokens would give them."""
    logs_BTV = full.logits_BTV.float().log_softmax(-1)
    top = logs_BTV.topk(min(k, logs_BTV.shape[-1]), dim=-1)
    return Streams(spread(top.indices, top.values.half().float(), logs_BTV.shape[-1]), {})


def kind_of_id(n_vocabulary: int) -> type:
    """What numbers of tokens are stored as."""
    return np.uint16 if n_vocabulary <= 2**16 else np.int32


def bytes_per_token(k: int, n_vocabulary: int) -> int:
    """What a cache of k tokens takes on disk for every token of the training text."""
    return k * (np.dtype(kind_of_id(n_vocabulary)).itemsize + np.dtype(np.float16).itemsize)


def _take_room(*files: Path) -> None:
    """Raises OSError where the disk has no room for what a map only promises; a write into it would kill the process."""
    if not hasattr(os, "posix_fallocate"):
        return
    for path in files:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


@torch.no_grad()
def fill_cache(
    folder: Path, teacher: Teacher, rows: TextRows, *, k: int, n_vocabulary: int, key: str, device: str = "cpu",
    tell: Callable[[int, int], None] | None = None,
) -> CachedTeacher:  # fmt: skip
    """Write a cache, or go on with one of the same key that was not finished.

    Args:
        rows: the training text in the order in which it is trained on.
        k: tokens kept per position.
        key: identity of teacher and text.
    Raises:
        ValueError: k is above the vocabulary.
    """
    if k > n_vocabulary:
        raise ValueError(f"teacher_cache={k} is more than the vocabulary of {n_vocabulary}; give at most that")
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / DONE
    found = CacheProgress.load(record) if record.exists() else None
    done = found.n_samples if found is not None and found.key == key else 0
    shape = (len(rows), rows.ids_NT.shape[1], k)
    mode = "r+" if done else "w+"
    ids_NTK = np.lib.format.open_memmap(folder / IDS, mode=mode, dtype=kind_of_id(n_vocabulary), shape=shape)
    logs_NTK = np.lib.format.open_memmap(folder / LOGS, mode=mode, dtype=np.float16, shape=shape)
    _take_room(folder / IDS, folder / LOGS)
    for at in range(done, len(rows), PER_WRITE):
        part = rows.slice(at, at + PER_WRITE)
        batch = {name: value.to(device) for name, value in part.batches(PER_WRITE)[0].items()}
        logs_BTV = teacher.training(batch, ()).logits_BTV.float().log_softmax(-1)
        top = logs_BTV.topk(k, dim=-1)
        n, length = top.indices.shape[:2]
        ids_NTK[at : at + n, :length] = top.indices.cpu().numpy().astype(ids_NTK.dtype)
        logs_NTK[at : at + n, :length] = top.values.cpu().numpy().astype(np.float16)
        ids_NTK.flush()
        logs_NTK.flush()
        CacheProgress(n_samples=at + n, key=key).save(record)
        if tell is not None:
            tell(at + n, len(rows))
    return CachedTeacher(folder, teacher, n_vocabulary=n_vocabulary)
