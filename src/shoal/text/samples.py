"""Documents as samples of token ids: packed blocks, or one padded sample per document."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from shoal.text.sources import Document, groups
from shoal.text.start import start_tokens
from shoal.words.records import stable_hash
from shoal.words.types import Batch

Packing = Literal["packed", "padded"]
PACKINGS: tuple[Packing, ...] = ("packed", "padded")

# Documents are tokenised in groups of about this many characters: enough for a tokenizer's threads, little to waste.
GROUP_CHARACTERS = 100_000


@dataclass(frozen=True)
class Samples:
    """Token ids of one slice. Legend: N samples, T tokens per sample.

    Attributes:
        ids_NT: int64. Packed: full. Padded: right-padded with the pad id, or 0 where the tokenizer has none.
        lengths_N: int64, real tokens of each sample; at least 2 (nothing is predicted in fewer), at most T.
        slice: ``calibration``, ``training``, ``selection`` or ``evaluation``; ``whole``: all of the text, in its own order.
        data: name of the text, for people.
        data_hash: ``SETTINGS-CONTENT``. The first half is a hash of tokenizer, length, packing, slice and seed, the second
            of the ids and lengths. It does not depend on names of files.
        seed: of the order of the documents.
        start: the tokens that every sample begins with, as the tokenizer begins a text; empty where it adds none.
        share: of the text's characters, those of the documents that were read for these samples; None: not known.
        goes_on: the text goes on beyond what was looked at, so its share is less than ``share``.
    """

    ids_NT: Tensor
    lengths_N: Tensor
    slice: str
    data: str
    data_hash: str
    seed: int
    start: tuple[int, ...] = ()
    share: float | None = None
    goes_on: bool = False

    @property
    def n_samples(self) -> int:
        return int(self.ids_NT.shape[0])

    @property
    def length(self) -> int:
        """Tokens per sample, padding included."""
        return int(self.ids_NT.shape[1])

    @property
    def n_tokens(self) -> int:
        """Real tokens, padding excluded."""
        return int(self.lengths_N.sum())

    def batches(self, batch_size: int) -> list[Batch]:
        """Batches in the order of the samples, numbered from 0; the last may be smaller.

        A batch is cut to its longest sample; its mask is None where nothing is padded then.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} needs to be 1 or more")
        batches = []
        for index, start in enumerate(range(0, self.n_samples, batch_size)):
            lengths_B = self.lengths_N[start : start + batch_size]
            longest = int(lengths_B.max())
            ids_BT = self.ids_NT[start : start + batch_size, :longest]
            mask_BT = torch.arange(longest)[None] < lengths_B[:, None]
            batches.append(Batch(ids_BT, None if bool(mask_BT.all()) else mask_BT, index))
        return batches

    def take(self, n: int) -> Samples:
        """The first n samples; equal, hash included, to asking the corpus for n.

        Raises:
            ValueError: n is not in 1..n_samples.
        """
        if not 1 <= n <= self.n_samples:
            raise ValueError(f"n={n} needs 1..{self.n_samples}, the samples there are")
        ids_NT, lengths_N = self.ids_NT[:n], self.lengths_N[:n]
        settings = self.data_hash.partition("-")[0]
        share = None if self.share is None else self.share * int(lengths_N.sum()) / self.n_tokens
        data_hash = f"{settings}-{hash_ids(ids_NT, lengths_N)}"
        return replace(self, ids_NT=ids_NT, lengths_N=lengths_N, data_hash=data_hash, share=share)


def hash_ids(ids_NT: Tensor, lengths_N: Tensor) -> str:
    """The content half of ``data_hash``."""
    return stable_hash(list(ids_NT.shape), ids_NT.contiguous().numpy().tobytes(), lengths_N.contiguous().numpy().tobytes())


def tokenizer_hash(tokenizer: Any) -> str:
    """Identity of a tokenizer: its full pipeline where it has one to show, else its vocabulary; and its special tokens."""
    special = [getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad")]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        pipeline = json.loads(backend.to_str())
        # Left behind by whoever called it last, and not used here.
        identity: Any = {key: value for key, value in pipeline.items() if key not in ("truncation", "padding")}
    else:
        identity = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else type(tokenizer).__qualname__
    return stable_hash(identity, special)


def token_ids(documents: Iterable[Document], tokenizer: Any, *, special_tokens: bool) -> Iterator[tuple[Document, np.ndarray]]:
    """Each document with its ids (int64, any length), tokenised in groups, no further ahead than one group.

    With ``special_tokens`` the tokenizer adds its own (usually BOS); start tokens that the text already spells (chat templates
    do) are not doubled.
    """
    start = list(start_tokens(tokenizer)) if special_tokens else []
    for group in groups(documents, GROUP_CHARACTERS):
        texts = [document.text for document in group]
        encoded = tokenizer(texts, add_special_tokens=special_tokens, verbose=False)["input_ids"]
        for document, ids in zip(group, encoded, strict=True):
            doubled = start and list(ids[: 2 * len(start)]) == start + start
            yield document, np.asarray(ids[len(start) :] if doubled else ids, dtype=np.int64)


def separator(tokenizer: Any) -> int | None:
    """The id between packed documents: EOS, else BOS, else none."""
    eos = getattr(tokenizer, "eos_token_id", None)
    return eos if eos is not None else getattr(tokenizer, "bos_token_id", None)


def whole_samples(text: str, tokenizer: Any, *, length: int, data: str) -> Samples:
    """All of a text as consecutive packed samples, in its own order; what does not fill one is left out.

    Raises:
        ValueError: less text than one sample.
    """
    packer = Packer(tokenizer, n=len(text) + 1, length=length)
    packer.add(text_ids(text, tokenizer))
    if not packer.blocks:
        raise ValueError(
            f"the whole of {data} is {packer.n_tokens:,} token{'s' * (packer.n_tokens != 1)}, less than one sample of "
            f"{length:,}; give more text, or --length {max(2, packer.n_tokens)} or less"
        )
    ids_NT, lengths_N = packer.tensors()
    settings = stable_hash(tokenizer_hash(tokenizer), length, "whole")
    start, data_hash = tuple(packer.start.tolist()), f"{settings}-{hash_ids(ids_NT, lengths_N)}"
    # What does not fill a sample at the end is not read, and in a short text that is a good part of it.
    share = 1 - packer.n_left / packer.n_tokens
    return Samples(ids_NT, lengths_N, "whole", data, data_hash, 0, start, share=share)


def text_ids(text: str, tokenizer: Any) -> np.ndarray:
    """(T,) the ids of a text in one piece, without what the tokenizer puts in front of it."""
    return np.asarray(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)


class Packer:
    """Fills n blocks of T tokens: documents one after the other, the separator between them, cut into blocks.

    A document may go on in the next block. What does not fill a block is dropped. Every block begins with the start tokens
    that the tokenizer adds, and holds T tokens with them; where the text spells them itself at that place (chat templates do),
    they are not doubled. ``n_tokens``: tokens of the text so far, start tokens left out.
    """

    def __init__(self, tokenizer: Any, *, n: int, length: int) -> None:
        between = separator(tokenizer)
        self.between = np.asarray([] if between is None else [between], dtype=np.int64)
        self.start = np.asarray(start_tokens(tokenizer), dtype=np.int64)
        if len(self.start) >= length:
            raise ValueError(
                f"length={length} leaves no room for text: the tokenizer begins every text with {len(self.start)} tokens of"
                f" its own; give at least {len(self.start) + 1}"
            )
        self.n, self.length = n, length
        self.blocks: list[np.ndarray] = []
        self.n_tokens = 0
        self._rest = np.asarray([], dtype=np.int64)

    @property
    def n_samples(self) -> int:
        """Whole blocks so far, ``n`` at most."""
        return min(self.n, len(self.blocks))

    @property
    def full(self) -> bool:
        return self.n_samples == self.n

    @property
    def n_left(self) -> int:
        """Tokens that do not fill a block so far."""
        return len(self._rest)

    def add(self, ids: np.ndarray) -> None:
        """Append a document and cut off every block that is whole now."""
        stream = np.concatenate([self._rest, self.between if self.n_tokens else self._rest[:0], ids])
        self.n_tokens += len(stream) - len(self._rest)
        at = 0
        while not self.full:
            spelled = len(self.start) and np.array_equal(stream[at : at + len(self.start)], self.start)
            own = self.start[:0] if spelled else self.start
            stop = at + self.length - len(own)
            if stop > len(stream):
                break
            self.blocks.append(np.concatenate([own, stream[at:stop]]))
            at = stop
        self._rest = stream[at:]

    def tensors(self) -> tuple[Tensor, Tensor]:
        """ids_NT and lengths_N."""
        ids_NT = np.stack(self.blocks) if self.blocks else np.zeros((0, self.length), dtype=np.int64)
        return torch.from_numpy(ids_NT), torch.full((self.n_samples,), self.length, dtype=torch.int64)


class Padder:
    """Fills n samples of at most T tokens: the beginning of one document each, padded on the right.

    Documents of fewer than two tokens are left out.
    """

    def __init__(self, tokenizer: Any, *, n: int, length: int) -> None:
        self.start = np.asarray(start_tokens(tokenizer), dtype=np.int64)
        pad = getattr(tokenizer, "pad_token_id", None)
        self.pad = 0 if pad is None else pad
        self.n, self.length = n, length
        self.rows: list[np.ndarray] = []
        self.n_tokens = 0

    @property
    def n_samples(self) -> int:
        return len(self.rows)

    @property
    def full(self) -> bool:
        return self.n_samples >= self.n

    def add(self, ids: np.ndarray) -> None:
        if len(ids) >= 2:
            self.rows.append(ids[: self.length])
            self.n_tokens += len(self.rows[-1])

    def tensors(self) -> tuple[Tensor, Tensor]:
        """ids_NT and lengths_N."""
        ids_NT = np.full((self.n_samples, self.length), self.pad, dtype=np.int64)
        for row, ids in zip(ids_NT, self.rows, strict=True):
            row[: len(ids)] = ids
        return torch.from_numpy(ids_NT), torch.tensor([len(row) for row in self.rows], dtype=torch.int64)
