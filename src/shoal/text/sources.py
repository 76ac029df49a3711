"""Sources of documents: a file, a folder of files, or a hub dataset, named by one string."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.text.formats import Row, hub_parts, hub_rows, jsonl_rows, parquet_rows, txt_documents
from shoal.text.slices import content_digest

Chat = Callable[[list[dict[str, Any]]], str]

ROW_FORMATS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": jsonl_rows,
    ".jsonl.gz": jsonl_rows,
    ".parquet": parquet_rows,
}
SUFFIXES = (".txt", ".txt.gz", *ROW_FORMATS)


@dataclass(frozen=True)
class Document:
    """One text, the domain its row names (if asked for), and the digest that decides its slice."""

    text: str
    domain: str | None
    digest: bytes


@dataclass(frozen=True)
class TextSource:
    """Documents of one place, read anew by every call of ``documents``.

    Attributes:
        spec: a path (``.txt``, ``.txt.gz``, ``.jsonl``, ``.jsonl.gz``, ``.parquet``, or a folder of those, read in the order
            of the names) or ``hub:NAME[:CONFIG][:SPLIT]``.
        chat: turns the ``messages`` of a row into text.
        domain_key: dotted name of the field with a row's domain, e.g. ``meta.redpajama_set_name``; None reads no domain.

    Raises:
        ValueError: no such path, a format we do not read (on construction, before anything is read).
    """

    spec: str
    chat: Chat
    domain_key: str | None = None

    def __post_init__(self) -> None:
        if self.spec.startswith("hub:"):
            hub_parts(self.spec.removeprefix("hub:"))
        else:
            files_of(Path(self.spec).expanduser())

    def documents(self) -> Iterator[Document]:
        """Every document that is not blank, in the order of the source."""
        if self.spec.startswith("hub:"):
            yield from self._of_rows(hub_rows(self.spec.removeprefix("hub:")))
            return
        for path in files_of(Path(self.spec).expanduser()):
            reader = ROW_FORMATS.get(suffix_of(path))
            if reader is not None:
                yield from self._of_rows(parquet_rows(path, self._fields) if reader is parquet_rows else reader(path))
            elif self.domain_key is not None:
                raise ValueError(f"{path} names no domains; this mixture needs rows (.jsonl, .parquet) with {self.domain_key}")
            else:
                yield from (Document(text, None, content_digest(text)) for text in txt_documents(path))

    @property
    def _fields(self) -> tuple[str, ...]:
        """The fields of a row that are looked at."""
        return ("text", "messages") if self.domain_key is None else ("text", "messages", self.domain_key.split(".")[0])

    def _of_rows(self, rows: Iterator[Row]) -> Iterator[Document]:
        for where, row in rows:
            text = text_of(row, where, self.chat)
            if not text.strip():
                continue
            domain = None if self.domain_key is None else domain_of(row, where, self.domain_key)
            try:
                yield Document(text, domain, content_digest(text))
            except UnicodeEncodeError:
                raise ValueError(f"{where} holds half a character (a lone surrogate); write the text as valid UTF-8") from None


def suffix_of(path: Path) -> str:
    """``.txt``, or ``.txt.gz`` where the file is packed; lower case."""
    return "".join(path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:]).lower()


def files_of(path: Path) -> list[Path]:
    """The path itself, or the readable files below a folder, sorted by name; hidden ones and other suffixes are left out."""
    if path.is_dir():
        below = [p for p in path.rglob("*") if p.is_file() and not any(s.startswith(".") for s in p.relative_to(path).parts)]
        files = sorted((p for p in below if suffix_of(p) in SUFFIXES), key=lambda p: p.relative_to(path).as_posix())
        if not files:
            raise ValueError(f"folder {path} holds no text; put {', '.join(SUFFIXES)} files there")
        return files
    if not path.exists():
        raise ValueError(f"no such text: {path}; give a file, a folder, hub:NAME or mix:NAME")
    if suffix_of(path) not in SUFFIXES:
        raise ValueError(f"{path} has the suffix {suffix_of(path)!r}; we read {', '.join(SUFFIXES)}, or a folder of those")
    return [path]


def text_of(row: Mapping[str, Any], where: str, chat: Chat) -> str:
    """The text of a row: its ``text``, or its ``messages`` through the chat template."""
    if row.get("text") is not None:
        if not isinstance(row["text"], str):
            raise ValueError(f"{where}: text is a {type(row['text']).__name__}; it must be a string")
        return row["text"]
    messages = row.get("messages")
    if messages is None:
        found = ", ".join(sorted(row)) or "nothing"
        raise ValueError(f"{where} has neither text nor messages, only {found}; name one of them so")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError(f"{where}: messages must be a list of objects with role and content")
    try:
        return chat(messages)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def domain_of(row: Mapping[str, Any], where: str, key: str) -> str:
    """The string at a dotted key."""
    value: Any = row
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if not isinstance(value, str):
        raise ValueError(f"{where} has no domain; this mixture needs {key} in every row")
    return value


def groups(documents: Iterable[Document], n_characters: int) -> Iterator[list[Document]]:
    """Consecutive documents, grouped until ``n_characters``."""
    group: list[Document] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document.text)
        if size >= n_characters:
            yield group
            group, size = [], 0
    if group:
        yield group
