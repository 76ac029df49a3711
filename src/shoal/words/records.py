"""Records: frozen values that are JSON files, saved whole or not at all, with errors a person can act on."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from shoal.words.reading import read_bytes


def nearest(word: str, known: Iterable[str]) -> str:
    """The tail of an error message for an unknown name: the nearest known one and the whole list."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(names)}"


class Record(BaseModel):
    """A frozen value that is a JSON file: unknown keys are refused, saving is atomic."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")  # NaN is no JSON; "NaN" reads back

    ELSEWHERE: ClassVar[Mapping[str, str]] = {}
    """What people look for among the keys of a record and where it is said instead, by the key that they try."""

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"

    def save(self, path: Path) -> None:
        write_atomically(path, self.to_json().encode())

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What IPython shows of a value at the end of a cell: its text for people, where it has one."""
        printer.text(repr(self) if type(self).__str__ is BaseModel.__str__ else str(self))

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str = "the JSON text") -> Self:
        """Raises ValueError with one line: where, and of every field that is wrong what was got and what is allowed."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ValueError(f"{where}: {explain(error, cls)}") from None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises ValueError as :meth:`from_json`, and where the file cannot be read or is far too large for a record."""
        return cls.from_json(read_bytes(path), where=str(path))

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """``true`` is no number: layer 1 is not meant by it."""
        if _holds_truth(value) and not _allows_truth(cls.model_fields[info.field_name or ""].annotation):
            raise ValueError("holds true or false, a number or text is needed")
        return value


def _holds_truth(value: Any) -> bool:
    return isinstance(value, bool) or isinstance(value, (list, tuple)) and any(isinstance(one, bool) for one in value)


def _allows_truth(annotation: Any) -> bool:
    """Whether a field may hold a truth value: itself, or as one of its kinds or elements."""
    return annotation in (bool, Any, object) or any(_allows_truth(part) for part in get_args(annotation))


def _shown(value: Any) -> str:
    try:
        return str(value)[:60]
    except (ValueError, RecursionError):  # The interpreter writes no number of more than some thousand digits.
        return f"a {type(value).__name__} that is too long to show"


def is_asked(record: type[Record], value: Any, info: ValidationInfo) -> bool:
    """Whether a value was read from a file or an option, and is not what would hold without it.

    A table that needs torch is asked for its names only then: recipes that are written in Python load without torch, and the
    tests look their names up.
    """
    return info.mode == "json" and value != record.model_fields[info.field_name or ""].default


def refuse(problems: Iterable[str]) -> None:
    """Raises ValueError with all of them in one line, where there are any."""
    found = list(problems)
    if found:
        raise ValueError("; ".join(found))


MOST_PROBLEMS = 20
"""Problems of one file that are listed; a file with more is another kind of file, and its list would not be read."""


def explain(error: ValidationError, model: type[Record]) -> str:
    """All problems of a pydantic error in one line, with the nearest field for each unknown key."""
    found = _known_once(list(dict.fromkeys(_problem(one, model) for one in error.errors())))
    more = f"; and {len(found) - MOST_PROBLEMS} more" if len(found) > MOST_PROBLEMS else ""
    return ("" if len(found) == 1 else f"{len(found)} problems: ") + "; ".join(found[:MOST_PROBLEMS]) + more


def _problem(problem: ErrorDetails, model: type[Record]) -> str:
    place = ".".join(str(part) for part in problem["loc"]) or "the top level"
    if problem["type"] == "extra_forbidden":
        key = str(problem["loc"][-1])
        if len(problem["loc"]) == 1 and key in model.ELSEWHERE:
            return f"unknown key {place!r}; {model.ELSEWHERE[key]}"
        if len(problem["loc"]) > 1 and key in model.model_fields:
            return f"unknown key {place!r} here; it stands at the top level, as in {key}: ..."
        below = _below(key, model) if len(problem["loc"]) <= 2 else []
        if below:
            return f"unknown key {place!r} here; it stands below {', '.join(below)}, as in {below[0]}: {{{key}: ...}}"
        return f"unknown key {place!r}; {nearest(key, fields_at(model, problem['loc'][:-1]))}"
    if problem["type"] == "value_error":  # We raised this one, so it says what was got.
        return f"{place}: {problem['ctx']['error']}"
    got = "" if problem["type"] == "missing" else f", got {_shown(problem.get('input'))!r}"
    return f"{place}: {problem['msg'][0].lower()}{problem['msg'][1:]}{got}"


def _below(key: str, model: type[Record]) -> list[str]:
    """The fields of a record whose own records have this key."""
    return [
        name
        for name, field in model.model_fields.items()
        if any(key in one.model_fields for one in models_in(field.annotation))
    ]


def _known_once(problems: Sequence[str]) -> list[str]:
    """Each list of known names behind the last problem that needs it, and nowhere else."""
    tails = [one.partition("known: ")[2] for one in problems]
    return [
        one.removesuffix(f"known: {tail}").rstrip("; ") if tail and tail in tails[k + 1 :] else one
        for k, (one, tail) in enumerate(zip(problems, tails, strict=True))
    ]


def fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Field names of the model found by following ``path`` from ``model`` (best effort through unions and lists)."""
    found: list[type[BaseModel]] = [model]
    for part in path:
        if not isinstance(part, str):
            continue
        deeper = [child for one in found if part in one.model_fields for child in models_in(one.model_fields[part].annotation)]
        if deeper:
            found = deeper
    return sorted({name for one in found for name in one.model_fields})


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The records named anywhere in a type annotation, with the kinds of those that have several."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation, *annotation.__subclasses__()]
    return [model for part in getattr(annotation, "__args__", ()) for model in models_in(part)]


class Provenance(Record):
    """What a number rests on; complete enough to redo it.

    Attributes:
        share: of the text's characters, those of the documents that were read; None in older files.
        text_goes_on: the text was not looked at to its end, so the share is less than that.
    """

    model: str
    model_hash: str
    data: str
    data_hash: str
    n_samples: int
    n_tokens: int
    length: int
    seed: int
    dtype: str
    share: float | None = None
    text_goes_on: bool = False
    versions: dict[str, str] = {}

    @property
    def text_said(self) -> str:
        """Which part of which text was read, for people."""
        part = "" if self.share is None else f"{'less than ' * self.text_goes_on}{100 * self.share:.3g} % of it, "
        return f"{self.data} ({part}{self.n_samples:,} samples of {self.length:,} tokens)"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file under its final name, or nothing: a temporary file beside it, fsync, rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def stable_hash(*parts: Any) -> str:
    """Hex SHA-256 (first 16 digits) of JSON-able parts and bytes, independent of process and platform."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=str).encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Hex SHA-256 (first 16 digits) of a file's bytes, read piece by piece."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
