"""Sources of documents: a file, a folder of files, or a hub dataset, named by one string."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.text.formats import (
    TextRow,
    csv_rows,
    hub_parts,
    hub_rows,
    json_rows,
    jsonl_rows,
    parquet_rows,
    text_file,
    txt_documents,
)
from shoal.text.rows import COLUMNS, Chat, at, text_of
from shoal.text.slices import content_digest
from shoal.words.reading import at_home

ROW_FORMATS: Mapping[str, Callable[[Path], Iterator[TextRow]]] = {
    ".jsonl": jsonl_rows,
    ".jsonl.gz": jsonl_rows,
    ".json": json_rows,
    ".json.gz": json_rows,
    ".csv": csv_rows,
    ".csv.gz": csv_rows,
    ".tsv": csv_rows,
    ".tsv.gz": csv_rows,
    ".parquet": parquet_rows,
}
SUFFIXES = (".txt", ".txt.gz", *ROW_FORMATS)
SAID = ".txt, .jsonl, .json, .csv, .tsv (each also as .gz) and .parquet"
OFTEN_ABOUT_TEXT = (".json", ".csv", ".tsv")


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
        spec: a path (one of ``SUFFIXES``, or a folder of such files, read in the order of the names) or
            ``hub:NAME[:CONFIG][:SPLIT]``.
        chat: makes one text of the turns of a row.
        domain_key: dotted name of the field with a row's domain, e.g. ``meta.redpajama_set_name``; None reads no domain.
        field: name of the column that holds a row's text or turns; found unless given.

    Raises:
        ValueError: no such path, a format we do not read (on construction, before anything is read).
    """

    spec: str
    chat: Chat
    domain_key: str | None = None
    field: str | None = None

    def __post_init__(self) -> None:
        refuse_missing(self.spec)

    def documents(self) -> Iterator[Document]:
        """Every document that is not blank, in the order of the source."""
        if self.spec.startswith("hub:"):
            yield from self._of_rows(hub_rows(self.spec.removeprefix("hub:")))
            return
        for path in files_of(path_of(self.spec)):
            reader = ROW_FORMATS.get(suffix_of(path))
            if reader is not None:
                yield from self._of_rows(parquet_rows(path, self._fields) if reader is parquet_rows else reader(path))
            elif self.domain_key is not None:
                raise ValueError(f"{path} names no domains; this mixture needs rows (.jsonl, .parquet) with {self.domain_key}")
            else:
                yield from (Document(text, None, content_digest(text)) for text in txt_documents(path))

    def whole(self) -> str:
        """All of the source as one text: plain files as they stand, rows (blank ones included) joined by an empty line."""
        if self.spec.startswith("hub:"):
            return "\n\n".join(
                text_of(row, where, self.chat, field=self.field) for where, row in hub_rows(self.spec.removeprefix("hub:"))
            )
        texts = []
        for path in files_of(path_of(self.spec)):
            reader = ROW_FORMATS.get(suffix_of(path))
            if reader is None:
                with text_file(path) as file:
                    texts.append(file.read())
                continue
            rows = parquet_rows(path, self._fields) if reader is parquet_rows else reader(path)
            texts += [text_of(row, where, self.chat, field=self.field) for where, row in rows]
        return "\n\n".join(texts)

    @property
    def has_rows(self) -> bool:
        """False where all that is read is plain text, which has no columns."""
        return self.spec.startswith("hub:") or any(suffix_of(path) in ROW_FORMATS for path in files_of(path_of(self.spec)))

    @property
    def _fields(self) -> tuple[str, ...]:
        """The columns of a row that are looked at."""
        asked = COLUMNS if self.field is None else (self.field, self.field.split(".")[0])
        return asked if self.domain_key is None else (*asked, self.domain_key.split(".")[0])

    def _of_rows(self, rows: Iterator[TextRow]) -> Iterator[Document]:
        for where, row in rows:
            text = text_of(row, where, self.chat, field=self.field)
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


def refuse_missing(spec: str) -> None:
    """Raises ValueError for a path that is not there, a format we do not read, or a malformed ``hub:`` name; reads nothing."""
    if spec.startswith("hub:"):
        hub_parts(spec.removeprefix("hub:"))
    else:
        files_of(path_of(spec))


def path_of(spec: str) -> Path:
    """The path that a source names.

    Raises:
        ValueError: a name that no file can have.
    """
    try:
        path = at_home(Path(spec))
        path.exists()
    except (OSError, ValueError) as error:  # 5,000 characters, a link to itself, a user who is not there
        raise ValueError(f"the text {spec[:60]!r} cannot be opened ({getattr(error, 'strerror', None) or error})") from None
    return path


def files_of(path: Path) -> list[Path]:
    """The path itself, or the readable files below a folder, sorted by name; hidden ones and other suffixes are left out.

    Files named ``.json``, ``.csv`` and ``.tsv`` count in a folder only where it holds nothing else to read: beside text they
    mostly describe it.
    """
    if path.is_dir():
        below = [p for p in path.rglob("*") if p.is_file() and not any(s.startswith(".") for s in p.relative_to(path).parts)]
        files = sorted((p for p in below if suffix_of(p) in SUFFIXES), key=lambda p: p.relative_to(path).as_posix())
        files = [p for p in files if suffix_of(p).removesuffix(".gz") not in OFTEN_ABOUT_TEXT] or files
        if not files:
            raise ValueError(f"folder {path} holds no text; put {SAID} files there")
        return files
    if not path.exists():
        raise ValueError(f"no such text: {path}; give a file, a folder, hub:NAME or mix:NAME")
    if suffix_of(path) not in SUFFIXES:
        raise ValueError(f"{path} has the suffix {suffix_of(path)!r}; we read {SAID}, or a folder of those")
    if not path.is_file():
        raise ValueError(f"{path} is no file with an end (a pipe or a device); write it to a file first")
    return [path]


def domain_of(row: Mapping[str, Any], where: str, key: str) -> str:
    """The string at a dotted key."""
    value = at(row, key)
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
