"""One pass over text, and the tables that come out of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from shoal.engine.passes import Observer, run_pass
from shoal.engine.student import TEACHER, Student
from shoal.engine.workers import ALONE, Workers
from shoal.measure.anatomy import Anatomy
from shoal.measure.gram import GramObserver
from shoal.words.reading import guarded, read_bytes
from shoal.words.records import Provenance, Record, nearest, stable_hash, write_atomically
from shoal.words.refusal import in_one_line
from shoal.words.types import Batch, SpanTable

if TYPE_CHECKING:
    from torch import Tensor

    from shoal.engine.view import DecoderView

FILE, VALUES = "scan.json", "scan.safetensors"


class TableObserver(Observer, Protocol):
    """An observer whose sums become tables of spans."""

    def tables(self) -> Sequence[SpanTable]: ...


class Asked(Record):
    """What a recipe states of a scan: the text (fields of its ``text``), the seed, and further observers."""

    text: dict[str, Any] = {}
    seed: int = 0
    observers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scan:
    """What one pass measured.

    Attributes:
        tables: by name, ``criterion/tokens``.
        anatomy: norms and sinks per boundary.
        provenance: model, text and seed it rests on; ``n_samples`` and ``n_tokens`` are what was really read.
        asked: what the recipe of the scan states, so that whoever reads the scan asks for the same.
    """

    tables: Mapping[str, SpanTable]
    anatomy: Anatomy
    provenance: Provenance
    asked: Asked | None = None

    @property
    def n_layers(self) -> int:
        return len(self.anatomy.norm_rest) - 1

    @in_one_line
    def __getitem__(self, name: str) -> SpanTable:
        """Raises ValueError: no such table (says which there are)."""
        if name not in self.tables:
            of_tokens = sorted(known for known in self.tables if known.startswith(f"{name}/"))
            if of_tokens:
                raise ValueError(f"{name!r} of which tokens? {', '.join(of_tokens)}")
            raise ValueError(f"the scan has no table {name!r}; {nearest(name, self.tables)}")
        return self.tables[name]

    def __repr__(self) -> str:
        """A few lines: what was measured on what. A table is ``scan["angular/last"]``."""
        return f"scan of {self.n_layers} layers on {self.provenance.text_said}\ntables: {', '.join(sorted(self.tables))}"

    def save(self, folder: Path) -> None:
        """Write ``scan.safetensors`` (values), then ``scan.json`` (the rest, with the hash of the values)."""
        from safetensors.numpy import save

        named = [(f"{name}.{array}", getattr(table, array)) for name, table in self.tables.items() for array in ARRAYS]
        arrays = {key: np.ascontiguousarray(array) for key, array in named if array is not None}
        content = save(arrays)
        write_atomically(Path(folder) / VALUES, content)
        heads = tuple(
            TableHead(
                criterion=table.criterion,
                tokens=table.tokens,
                unit=table.unit,
                higher_is_more_redundant=table.higher_is_more_redundant,
                n_samples=table.n_samples,
            )
            for table in self.tables.values()
        )
        ScanFile(
            values_hash=stable_hash(content),
            provenance=self.provenance,
            anatomy=self.anatomy,
            tables=heads,
            asked=self.asked,
        ).save(Path(folder) / FILE)

    @classmethod
    @in_one_line
    def load(cls, folder: Path) -> Scan:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: a file is damaged, or the two files are not of one scan.
        """
        from safetensors.numpy import load

        file, path = ScanFile.load(Path(folder) / FILE), Path(folder) / VALUES
        if not path.exists():
            raise ValueError(f"{path} is missing; {FILE} beside it needs it, so scan again")
        content = read_bytes(path, most=MOST_VALUES)
        if stable_hash(content) != file.values_hash:
            raise ValueError(f"{path} does not belong to {FILE} beside it (or is damaged); scan again")
        with guarded(f"{path} cannot be read"):
            arrays = load(content)
        n = len(file.anatomy.norm_rest)
        tables: dict[str, SpanTable] = {}
        for head in file.tables:
            name = f"{head.criterion}/{head.tokens}"
            values, stderr, parts = (arrays.get(f"{name}.{array}") for array in ARRAYS)
            if values is None or stderr is None:
                raise ValueError(f"{path} has no values for {name!r}; scan again")
            shapes = [one.shape[-2:] for one in (values, stderr, parts) if one is not None]
            if values.ndim != 2 or stderr.ndim != 2 or set(shapes) != {(n, n)} or (parts is not None and parts.ndim != 3):
                raise ValueError(f"{path} has values of another shape for {name!r}, ({n}, {n}) is needed; scan again")
            tables[name] = SpanTable(
                criterion=head.criterion,
                tokens=head.tokens,
                values=values,
                stderr=stderr,
                unit=head.unit,
                higher_is_more_redundant=head.higher_is_more_redundant,
                n_samples=head.n_samples,
                parts=parts,
            )
        return cls(tables, file.anatomy, file.provenance, file.asked)


MOST_VALUES = 2**30  # A file of scores has at most so many bytes; a table of a hundred layers has 80 kB.
ARRAYS = ("values", "stderr", "parts")


class TableHead(Record):
    """A :class:`SpanTable` without its values."""

    criterion: str
    tokens: str
    unit: str
    higher_is_more_redundant: bool
    n_samples: int


class ScanFile(Record):
    """``scan.json``."""

    values_hash: str
    provenance: Provenance
    anatomy: Anatomy
    tables: tuple[TableHead, ...]
    asked: Asked | None = None


def scan(
    view: DecoderView,
    batches: Iterable[Batch],
    *,
    provenance: Provenance,
    observers: Sequence[TableObserver] = (),
    observed: Student = TEACHER,
    after_batch: Callable[[Batch], None] | None = None,
    workers: Workers = ALONE,
) -> Scan:
    """Measure every span with every pairwise criterion in one pass.

    Args:
        batches: calibration text; every batch is read once.
        provenance: of model and text; its counts are replaced by what was read.
        observers: further observers fed by the same pass, e.g. :class:`~shoal.measure.cka.CkaObserver`.
        observed: the student whose stream is measured; its removed layers change nothing, so they score 0.
        after_batch: called when a batch is done, for progress.
        workers: who share the batches; given the same ones, all of them return the same scan.
    Raises:
        ValueError: no batches, or NaN or infinite states.
    """
    gram = GramObserver(view.n_layers)
    everyone = [gram, *observers]
    run_pass(view, batches, observers=everyone, observed=observed, after_batch=after_batch, workers=workers)
    return finish(gram, observers, provenance=provenance)


def finish(gram: GramObserver, observers: Sequence[TableObserver] = (), *, provenance: Provenance) -> Scan:
    """The scan of observers that have seen everything; shards are joined before, by :func:`add_states`."""
    anatomy = gram.anatomy()
    if anatomy.n_samples == 0:
        if anatomy.n_zero:
            raise ValueError(
                f"the hidden states of all {anatomy.n_zero:,} tokens are exactly zero at some boundary: weights of a layer or "
                "of the embedding are all zero; the checkpoint is damaged, use another"
            )
        raise ValueError("the scan got no samples; give it text for at least one")
    norms = anatomy.norm_sink if anatomy.n_sinks else anatomy.norm_rest  # a start token that embeds as zero is no sink
    if not math.isfinite(sum(norms)):
        raise ValueError("the hidden states are NaN or infinite on this text; check the weights, or use float32 or bfloat16")
    tables = [table for observer in (gram, *observers) for table in observer.tables()]
    counted = provenance.model_copy(update={"n_samples": anatomy.n_samples, "n_tokens": anatomy.n_tokens})
    return Scan({table.name: table for table in tables}, anatomy, counted)


def add_states(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The state of an observer that saw all shards, in the order given: sums add."""
    total = {name: value.clone() for name, value in states[0].items()}
    for state in states[1:]:
        for name, value in state.items():
            total[name] += value
    return total
