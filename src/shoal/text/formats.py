"""Files and streams of text, one function per format. A ``.txt`` file gives pieces of text, the others give rows.

Everything is an iterator: nothing is read before it is asked for (a ``.json`` file, which is one value, is read whole). A row
is a dictionary of columns (:mod:`shoal.text.rows` says which are looked at); it travels with the place it came from, for
messages.
"""

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

# A .txt document closes at the first blank line after this many characters.
DOCUMENT_CHARACTERS = 2000
# Text without blank lines closes at the first line end after this many; longer lines are cut.
LONGEST_PARAGRAPH = 8000

TextRow = tuple[str, dict[str, Any]]


@contextmanager
def text_file(path: Path) -> Iterator[TextIO]:
    """The file as UTF-8 text, unpacked if its name ends in ``.gz``. What cannot be read becomes a one-line ValueError."""
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix.lower() == ".gz" else open(path, encoding="utf-8-sig")
        ) as file:
            yield file
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it to UTF-8") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file ({error}); write it again") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}); check the file and its permissions") from None


def txt_documents(path: Path) -> Iterator[str]:
    """Documents of a plain text file: consecutive paragraphs, grouped until about 2000 characters.

    Paragraphs end at blank lines. A document closes at the first blank line after 2000 characters; where there is no blank
    line, at the first line end after 8000 (lines longer than that are cut). The borders depend on the text alone.
    """
    lines: list[str] = []
    size = 0
    with text_file(path) as file:
        while line := file.readline(LONGEST_PARAGRAPH):
            if "\0" in line:
                raise ValueError(f"{path} is binary (it holds a zero byte); give a UTF-8 text file")
            if lines or line.strip():  # No document starts with a blank line.
                lines.append(line)
                size += len(line)
            if size >= (LONGEST_PARAGRAPH if line.strip() else DOCUMENT_CHARACTERS):
                yield "".join(lines).strip()
                lines, size = [], 0
    if lines:
        yield "".join(lines).strip()


def jsonl_rows(path: Path) -> Iterator[TextRow]:
    """One JSON object per line; blank lines are skipped.

    Raises:
        ValueError: a line that is not a JSON object, with its number (from 1).
    """
    with text_file(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            row = parsed(line, where, do="write one JSON object per line")
            if not isinstance(row, dict):
                raise ValueError(f"{where} is a JSON {type(row).__name__}; write one JSON object per line")
            yield where, row


def parsed(text: str, where: str, *, do: str) -> Any:
    """A JSON text as a value.

    Args:
        where: file and line, for messages; ``do``: what to do about it.
    Raises:
        ValueError: not JSON, nested too deeply, or a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error.msg}); {do}") from None
    except RecursionError:
        raise ValueError(f"{where} is not JSON (nested too deeply); {do}") from None
    except ValueError:  # The interpreter limits the digits of a number.
        raise ValueError(f"{where} is not JSON (it holds a number of too many digits); {do}") from None


def json_rows(path: Path) -> Iterator[TextRow]:
    """Rows of one JSON value: a list of objects or texts, or an object that holds such a list. Lines of JSON are read as such.

    Raises:
        ValueError: not JSON, or nothing in it that is a list of rows.
    """
    with text_file(path) as file:
        content = file.read()
    if not content.strip():
        return
    try:
        value = parsed(content, str(path), do="write one list of objects, or one object per line (.jsonl)")
    except ValueError as error:
        if "Extra data" not in str(error):
            raise
        yield from jsonl_rows(path)  # Many files on the hub are named so.
        return
    if isinstance(value, dict):
        lists = [name for name, one in value.items() if isinstance(one, list) and one and isinstance(one[0], dict)]
        if len(lists) > 1 or not lists or is_row(value):
            yield f"{path}, row 1", value
            return
        value = value[lists[0]]
    if not isinstance(value, list):
        raise ValueError(
            f"{path} holds a JSON {type(value).__name__}; write one list of objects, or one object per line (.jsonl)"
        )
    for number, row in enumerate(value, start=1):
        where = f"{path}, row {number}"
        if not isinstance(row, dict | str):
            raise ValueError(f"{where} is a JSON {type(row).__name__}; every row must be an object or a text")
        yield where, row if isinstance(row, dict) else {"text": row}


def is_row(value: dict[str, Any]) -> bool:
    """True for an object that is one row: its list holds the turns of a chat."""
    return any(isinstance(value.get(name), list) for name in ("messages", "conversations", "conversation"))


def csv_rows(path: Path) -> Iterator[TextRow]:
    """Rows of a table with a header line; columns are separated by commas, tabs (``.tsv``), or semicolons where no comma is.

    Raises:
        ValueError: a row with more values than the header has, or what is no table.
    """
    csv.field_size_limit(sys.maxsize)  # 131,072 characters would be less than a book
    with text_file(path) as file:
        header = file.readline()
        is_tsv = ".tsv" in "".join(path.suffixes[-2:]).lower()
        mark = "\t" if is_tsv else ";" if ";" in header and "," not in header else ","
        names = next(csv.reader([header], delimiter=mark), [])
        try:
            for number, row in enumerate(csv.DictReader(file, names, delimiter=mark), start=1):
                where = f"{path}, row {number}"
                if row.pop(None, None) is not None:  # DictReader puts what is too much under None.
                    raise ValueError(f"{where} has more than the {len(names)} values of the header; put quotes around its text")
                yield where, row
        except csv.Error as error:
            raise ValueError(f"{path} is not a table of text ({error}); write it as CSV with a header line") from None


def parquet_rows(path: Path, fields: Collection[str] = ()) -> Iterator[TextRow]:
    """Rows of a parquet file, read a thousand at a time.

    Args:
        fields: columns to read; all of them where the file has none of these. Other columns, such as embeddings, stay on disk.
    """
    try:
        import pyarrow.parquet
        from pyarrow import ArrowException
    except ImportError:
        raise ValueError(f"reading {path} needs pyarrow; install it with: pip install 'shoal[data]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            columns = [name for name in file.schema_arrow.names if name in fields] or None
            for batch in file.iter_batches(batch_size=1000, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a whole parquet file ({first_line(error)}); write it again") from None


def hub_rows(spec: str) -> Iterator[TextRow]:
    """Rows of a hub dataset, streamed: ``NAME[:CONFIG][:SPLIT]``, split ``train`` unless given.

    A single part after the name is a split if it is ``train``, ``validation`` or ``test``, else a configuration;
    ``NAME::SPLIT`` names any split without a configuration.
    """
    name, config, split = hub_parts(spec)
    try:
        import datasets
    except ImportError:
        raise ValueError(f"reading hub:{spec} needs datasets; install it with: pip install 'shoal[data]'") from None
    try:
        for number, row in enumerate(datasets.load_dataset(name, config, split=split, streaming=True), start=1):
            yield f"hub:{spec}, row {number}", dict(row)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"hub:{spec} cannot be read ({first_line(error)}); check name, config {config!r}, split {split!r} and the network"
        ) from None


def hub_parts(spec: str) -> tuple[str, str | None, str]:
    """Name, configuration and split of ``NAME[:CONFIG][:SPLIT]``."""
    name, *rest = spec.split(":")
    if not name or len(rest) > 2:
        raise ValueError(f"hub:{spec} is not a hub dataset; write hub:NAME, hub:NAME:CONFIG:SPLIT or hub:NAME::SPLIT")
    if len(rest) == 1:
        rest = ["", rest[0]] if rest[0] in ("train", "validation", "test") else [rest[0], ""]
    config, split = rest or ("", "")
    return name, config or None, split or "train"


def first_line(error: BaseException) -> str:
    """What a library's error says, in one short line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
