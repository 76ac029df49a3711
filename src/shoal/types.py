"""The words of Shoal as values: units, spans, batches, tables of scores, and records that are files.

Everything here is plain data; nothing imports torch at run time, so the command starts fast.
Indices are 0-based and always the teacher's. Boundary ``l`` is the residual stream entering layer ``l``; boundary ``L`` is
the output of the last layer before the final norm.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

if TYPE_CHECKING:
    from torch import Tensor

UnitKind = Literal["layer", "attn", "mlp"]


def nearest(word: str, known: Iterable[str]) -> str:
    """The tail of an error message for an unknown name: the nearest known one and the whole list."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(names)}"


@dataclass(frozen=True, order=True)
class Unit:
    """A removable part of the decoder. Removing it zeroes its contribution to the residual stream."""

    kind: UnitKind
    index: int

    def __str__(self) -> str:
        return f"{self.kind}.{self.index}"


@dataclass(frozen=True, order=True)
class Span:
    """Consecutive layers ``start .. stop-1`` (half-open, 0-based)."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"span [{self.start}, {self.stop}) needs 0 <= start < stop")

    @property
    def n(self) -> int:
        return self.stop - self.start

    @property
    def layers(self) -> range:
        return range(self.start, self.stop)

    def __contains__(self, layer: int) -> bool:
        return self.start <= layer < self.stop

    def __str__(self) -> str:
        return f"layers {self.start}..{self.stop - 1} (0-based, inclusive)"


def spans_of(layers: Iterable[int]) -> tuple[Span, ...]:
    """The maximal runs of consecutive layers in a set of layers, in order."""
    runs: list[Span] = []
    for layer in sorted(set(layers)):
        if runs and runs[-1].stop == layer:
            runs[-1] = Span(runs[-1].start, layer + 1)
        else:
            runs.append(Span(layer, layer + 1))
    return tuple(runs)


@dataclass(frozen=True)
class Batch:
    """Token ids of some samples of one length.

    Attributes:
        ids_BT: int64 token ids.
        mask_BT: bool, True on real tokens; ``None`` when nothing is padded. Padding is on the right.
        index: position of this batch in its pass, from 0; the engine delivers batches in this order.
        branches: for rows that are trees instead of lines (many continuations of one context); ``None`` for plain text.
    """

    ids_BT: Tensor
    mask_BT: Tensor | None = None
    index: int = 0
    branches: Branches | None = None

    def to(self, device: Any) -> Batch:
        mask = None if self.mask_BT is None else self.mask_BT.to(device)
        branches = None if self.branches is None else self.branches.to(device)
        return Batch(self.ids_BT.to(device), mask, self.index, branches)

    def sample(self, row: int) -> Batch:
        """One of its samples, with the batch's padding and position."""
        mask = None if self.mask_BT is None else self.mask_BT[row : row + 1]
        branches = None if self.branches is None else self.branches.sample(row)
        return Batch(self.ids_BT[row : row + 1], mask, self.index, branches)


@dataclass(frozen=True)
class Branches:
    """Rows that are trees: what each token sees, and where it stands.

    Attributes:
        sees_BTT: bool, entry (t, s) is True where token t sees token s; every token sees itself, padding sees only itself.
        positions_BT: int64, the position of each token in its own branch.
    """

    sees_BTT: Tensor
    positions_BT: Tensor

    def to(self, device: Any) -> Branches:
        return Branches(self.sees_BTT.to(device), self.positions_BT.to(device))

    def sample(self, row: int) -> Branches:
        return Branches(self.sees_BTT[row : row + 1], self.positions_BT[row : row + 1])


@dataclass(frozen=True)
class SpanTable:
    """A score for every span: ``values[start, stop]`` for 0 <= start < stop <= L, NaN elsewhere.

    Attributes:
        criterion: name of the score, e.g. ``angular``.
        tokens: which tokens were averaged: ``last``, ``rest`` (all but padding and sinks), ``every`` (all but padding),
            ``sink``.
        values, stderr: (L+1, L+1) float64; stderr is the standard error of the mean over samples.
        unit: unit of the values, for people.
        higher_is_more_redundant: direction; the best span is the arg-max if True, the arg-min if False.
        n_samples: samples averaged.
        parts: (R, L+1, L+1), the same means over R disjoint parts of the samples, or None where they were not kept; how much
            a choice by this table depends on the samples is read from them.
    """

    criterion: str
    tokens: str
    values: np.ndarray
    stderr: np.ndarray
    unit: str
    higher_is_more_redundant: bool
    n_samples: int
    parts: np.ndarray | None = None

    @property
    def name(self) -> str:
        return f"{self.criterion}/{self.tokens}"

    @property
    def n_layers(self) -> int:
        return int(self.values.shape[0]) - 1

    def __getitem__(self, span: Span) -> float:
        return float(self.values[span.start, span.stop])

    def cost(self, span: Span) -> float:
        """The value with the sign that makes lower more redundant."""
        return -self[span] if self.higher_is_more_redundant else self[span]


class Record(BaseModel):
    """A frozen value that is a JSON file: unknown keys are refused, saving is atomic."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")  # NaN is no JSON; "NaN" reads back

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"

    def save(self, path: Path) -> None:
        write_atomically(path, self.to_json().encode())

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str = "the JSON text") -> Self:
        """Raises ValueError with one line: where, which field, what was got, what is allowed."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ValueError(f"{where}: {explain(error, cls)}") from None

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls.from_json(Path(path).read_bytes(), where=str(path))


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem of a pydantic error in one line, with the nearest field for an unknown key."""
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"]) or "the top level"
    if problem["type"] == "extra_forbidden":
        key = str(problem["loc"][-1])
        return f"unknown key {place!r}; {nearest(key, fields_at(model, problem['loc'][:-1]))}"
    if problem["type"] == "value_error":  # raised by us: it says what was got
        return f"{place}: {problem['ctx']['error']}"
    got = "" if problem["type"] == "missing" else f", got {str(problem.get('input'))[:60]!r}"
    return f"{place}: {problem['msg'][0].lower()}{problem['msg'][1:]}{got}"


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
    """The records named anywhere in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in models_in(part)]


class Provenance(Record):
    """What a number rests on; complete enough to redo it."""

    model: str
    model_hash: str
    data: str
    data_hash: str
    n_samples: int
    n_tokens: int
    length: int
    seed: int
    dtype: str
    versions: dict[str, str] = {}


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
