"""A corpus: documents, a tokenizer and a seed; samples of any slice on demand.

Reading. A source is read in windows of 16 million characters. The documents of a window are shuffled (sorted by a hash
of the seed and their text); windows keep their order. So a text up to that size is shuffled whole, and a larger one, or a
stream, is read no further than the samples asked for. The first window stays in memory; what lies beyond is read again by
each call. The same arguments give the same bits, and fewer samples are a prefix of more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from shoal.text.chat import chat_of
from shoal.text.mixture import Interleave, Mixture, by_domain, parse_mixture
from shoal.text.samples import PACKINGS, Packer, Packing, Padder, Samples, hash_ids, token_ids, tokenizer_hash
from shoal.text.slices import SLICE_SHARES, check_slice, order_key, slice_of
from shoal.text.sources import Document, TextSource, groups
from shoal.words.records import nearest, stable_hash

WINDOW_CHARACTERS = 2**24


def bundled_text() -> Path:
    """The text sample inside the package."""
    return Path(str(resources.files("shoal") / "assets" / "sample.txt.gz"))


def open_corpus(spec: str | Path | Sequence[str | Path], tokenizer: Any, *, seed: int = 0, field: str | None = None) -> Corpus:
    """Open text for slicing and sampling.

    Args:
        spec: a path (``.txt``, ``.jsonl``, ``.json``, ``.csv``, ``.parquet``, a folder), ``hub:NAME[:CONFIG][:SPLIT]``, a
            weighted mixture ``0.7*A+0.3*B``, a preset ``mix:slimpajama[=PATH]``, or several sources read as one text.
        tokenizer: a Hugging Face tokenizer.
        seed: of the order of the documents. Which slice a document is in does not depend on it.
        field: column of the rows that holds the text or the turns of a chat; found by its name (:mod:`shoal.text.rows`) unless
            given.

    Raises:
        ValueError: one line, for anything the user can mend: a missing path, a format we do not read, no text in it. The
            first window of every source is read here; what is wrong further on is found when it is reached.
    """
    return Corpus(parse_mixture(spec), tokenizer, seed=seed, field=field)


class Corpus:
    """Documents with a tokenizer, cut into slices. Made by ``open_corpus``."""

    def __init__(
        self, mixture: Mixture, tokenizer: Any, *, seed: int = 0, field: str | None = None, window: int = WINDOW_CHARACTERS
    ) -> None:
        self.mixture = mixture
        self.tokenizer = tokenizer
        self.seed = seed
        chat = chat_of(tokenizer)
        self._readers = {
            part.sources: Reader([TextSource(spec, chat, mixture.domain_key, field) for spec in part.sources], window)
            for part in mixture.parts
        }
        if field is not None and not any(source.has_rows for reader in self._readers.values() for source in reader.sources):
            raise ValueError(f"--field {field!r} names a column, and {self.name} is plain text; leave it out")

    @property
    def name(self) -> str:
        """The text for people: how it was named, or that it is the bundled one."""
        return "the bundled sample" if self.mixture.name == str(bundled_text()) else self.mixture.name

    def documents(self, slice: str) -> Interleave:
        """The documents of one slice in the order of the seed, no document twice, in the mixture's proportions."""
        check_slice(slice)
        whole = {sources: reader.shuffled(slice, seed=self.seed) for sources, reader in self._readers.items()}
        split = {
            sources: by_domain(stream, [part.domain for part in self.mixture.parts if part.domain is not None])
            for sources, stream in whole.items()
        }
        return Interleave(
            self.mixture,
            [whole[part.sources] if part.domain is None else split[part.sources][part.domain] for part in self.mixture.parts],
        )

    def samples(self, slice: str, *, n: int, length: int, packing: Packing = "packed", fewest: int | None = None) -> Samples:
        """n samples of ``length`` tokens from one slice; where the text ends before, those it holds (at least ``fewest``).

        Packed: documents joined by EOS (BOS where there is none), cut to ``length``, the tail dropped; every block begins with
        the start tokens that the tokenizer adds, which count into ``length``, and never mixes slices. Padded: the first
        ``length`` tokens of one document each, with the special tokens the tokenizer adds.

        Raises:
            ValueError: unknown slice or packing, n < 1, length < 2, or too little text, saying how much is needed.
        """
        check_slice(slice)
        if packing not in PACKINGS:
            raise ValueError(f"unknown packing {packing!r}; {nearest(packing, PACKINGS)}")
        if n < 1 or length < 2:
            raise ValueError(f"n={n}, length={length} needs at least 1 sample of at least 2 tokens")
        least = n if fewest is None else min(fewest, n)
        filler = (Packer if packing == "packed" else Padder)(self.tokenizer, n=n, length=length)
        documents = self.documents(slice)
        n_characters = 0
        for document, ids in token_ids(documents, self.tokenizer, special_tokens=packing == "padded"):
            n_characters += len(document.text)
            if len(ids):
                filler.add(ids)
            if filler.full:
                break
        else:
            if filler.n_samples < least:
                raise ValueError(self._too_little(slice, filler, documents, n_characters, least))
        ids_NT, lengths_N = filler.tensors()
        settings = stable_hash(tokenizer_hash(self.tokenizer), length, packing, slice, self.seed)
        data_hash, start = f"{settings}-{hash_ids(ids_NT, lengths_N)}", tuple(filler.start.tolist())
        return Samples(ids_NT, lengths_N, slice, self.name, data_hash, self.seed, start, *self._share(n_characters))

    def whole(self) -> str:
        """All of the text in one piece, as papers read a test set: plain text as it stands, rows joined by an empty line.

        Raises:
            ValueError: a mixture, which has no end that is its own.
        """
        if len(self.mixture.parts) > 1:
            raise ValueError(f"{self.name} is a mixture, and only a text can be read whole; give one text")
        (reader,) = self._readers.values()
        text = "\n\n".join(source.whole() for source in reader.sources)
        if not text.strip():
            raise ValueError(f"{self.name} holds no text; give a text with words in it")
        return text

    def _share(self, n_characters: int) -> tuple[float, bool]:
        """What so many characters are of the text that was looked at, and whether there is more of it."""
        readers = list(self._readers.values())
        return n_characters / sum(reader.n_characters for reader in readers), not all(one.is_all for one in readers)

    def _too_little(self, slice: str, filler: Packer | Padder, documents: Interleave, n_characters: int, n: int) -> str:
        """One line: what the slice has, what is needed, how much text that is, what to do."""
        length, share = filler.length, SLICE_SHARES[slice]
        if isinstance(filler, Packer):
            length -= len(filler.start)
            per_token = n_characters / filler.n_tokens if filler.n_tokens else 4.0
            has, needs = f"{filler.n_tokens:,} tokens", f"{n:,} x {length:,} = {n * length:,}"
            needs += " (beside the start token of each sample)" if len(filler.start) else ""
            total = n * length * per_token / share
        else:
            per_document = n_characters / len(filler.rows) if filler.rows else 4.0 * length
            has, needs = f"{len(filler.rows):,} documents of two tokens or more", f"{n:,}"
            total = n * per_document / share
        read = sum(reader.n_characters for reader in self._readers.values())
        notes = f"; {documents.n_repeated:,} repeated documents were skipped" if documents.n_repeated else ""
        notes += f"; the part {documents.ended} ran out first" if len(self.mixture.parts) > 1 else ""
        return (
            f"too little text in {self.name}: its slice {slice!r} has {has}, but {needs} are needed{notes}; that takes about"
            f" {amount(total)} characters in all ({share:.0%} go to {slice}), and {amount(read)} were found:"
            " give more text, or ask for fewer or shorter samples"
        )


class Reader:
    """Documents of sources that are read one after the other, in windows. ``n_characters``: read by the last call so far."""

    def __init__(self, sources: Sequence[TextSource], window: int) -> None:
        self.sources = sources
        self.window = window
        self.n_characters = 0
        self.first = next(groups(self._documents(), window), [])
        if not self.first:
            raise ValueError(f"{' and '.join(one.spec for one in sources)} holds no text; give a text with words in it")

    @property
    def is_all(self) -> bool:
        """True where the first window is all of the text."""
        return characters(self.first) < self.window

    def _documents(self) -> Iterator[Document]:
        for source in self.sources:
            yield from source.documents()

    def shuffled(self, slice: str, *, seed: int) -> Iterator[Document]:
        """The documents of one slice, shuffled within windows; repeated ones included."""
        for window in self._windows():
            chosen = [document for document in window if slice_of(document.digest) == slice]
            yield from sorted(chosen, key=lambda document: order_key(document.digest, seed))

    def _windows(self) -> Iterator[list[Document]]:
        self.n_characters = characters(self.first)
        yield self.first
        if self.n_characters >= self.window:
            for window in groups(islice(self._documents(), len(self.first), None), self.window):
                self.n_characters += characters(window)
                yield window


def characters(documents: Sequence[Document]) -> int:
    """Characters of all documents."""
    return sum(len(document.text) for document in documents)


def amount(characters: float) -> str:
    """``1.3 M``, ``40 k``, ``200``."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if characters >= size:
            return f"{characters / size:.2g} {letter}" if characters < 10 * size else f"{characters / size:.0f} {letter}"
    return f"{characters:.0f}"
