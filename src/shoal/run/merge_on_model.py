"""What the merging selectors ask, answered by running the model: students of merged layers against their source.

Merged weights are made when a row is tried and let go when no row of the next try has them. What was tried is kept in the run
folder, so that a search that was killed goes on from it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from shoal.edits.inserted_layers import alike
from shoal.edits.merge_rules import MergeRule
from shoal.edits.merged_layers import merge_of, merged
from shoal.edits.table import Edit
from shoal.engine.passes import run_pass
from shoal.engine.student import TEACHER, Student
from shoal.engine.view import DecoderView, Reading
from shoal.engine.workers import ALONE, Workers
from shoal.measure.metrics import METRICS
from shoal.measure.removals import MetricSums, compare_ends
from shoal.select.merging.row_trial import MergedGroup, Row
from shoal.words.records import Record
from shoal.words.types import Batch, Unit

MOST_AT_ONCE = 4
"""Rows of one pass: the merged weights of all of them are in memory at the same time."""


class TriedRows(Record):
    """``merging.json``: the loss of every row that was tried, for one text, metric and model."""

    key: str
    losses: dict[str, float] = {}


class MergesOnModel:
    """A :class:`~shoal.select.merging.row_trial.RowTrial` of a view.

    Args:
        batches: the text, read again for every call.
        rule: of the merges; it says which parameters they write.
        metric: a name of :data:`~shoal.measure.metrics.METRICS`.
        file: where what was tried is kept; ``key``: what it depends on.
        after_batch: called when a batch is done, for progress.

    ``chosen`` says what the row that was proposed reaches.
    """

    def __init__(
        self,
        view: DecoderView,
        batches: Sequence[Batch],
        rule: MergeRule,
        *,
        metric: str,
        file: Path,
        key: str,
        workers: Workers = ALONE,
        after_batch: Callable[[Batch], None] | None = None,
    ) -> None:
        self._view, self._batches, self._rule, self._workers = view, batches, rule, workers
        self._metric, self._file, self._after_batch = METRICS.named(metric), file, after_batch
        known = workers.from_first(lambda: TriedRows.load(file) if file.is_file() else TriedRows(key=key))
        self._tried = known if known.key == key else TriedRows(key=key)
        self._weights: dict[MergedGroup, dict[str, Tensor]] = {}
        self.chosen = ""

    @property
    def n_tried(self) -> int:
        """Rows that were run, by this process or before."""
        return len(self._tried.losses)

    def losses(self, rows: Sequence[Row]) -> list[float]:
        """As the protocol says.

        Raises:
            ValueError: layers that cannot be merged; NaN or infinite states of the source.
        """
        new = [row for row in dict.fromkeys(rows) if _said(row) not in self._tried.losses]
        for start in range(0, len(new), MOST_AT_ONCE):
            some = new[start : start + MOST_AT_ONCE]
            found = {_said(row): loss for row, loss in zip(some, self._run(some), strict=True)}
            self._tried = self._tried.model_copy(update={"losses": {**self._tried.losses, **found}})
            self._workers.on_first(lambda: self._tried.save(self._file))
        return [self._tried.losses[_said(row)] for row in rows]

    def chose(self, similarity: float, threshold: float) -> None:
        self.chosen = f"similarity {similarity:.3f} at the threshold {threshold:.3f}"

    def are_alike(self, layers: Sequence[int]) -> bool:
        modules = self._view.model.get_submodule(self._view.layers_path)
        return all(alike(modules[layers[0]], modules[layer]) for layer in layers[1:])

    def edits(self, row: Row) -> tuple[Edit, ...]:
        return tuple(merge_of(self._view, group.layers, self._rule, group.weights) for group in row if len(group.layers) > 1)

    def _run(self, rows: Sequence[Row]) -> list[float]:
        wanted = {group for row in rows for group in row if len(group.layers) > 1}
        self._weights = {group: self._weights.get(group) or self._merged(group) for group in wanted}
        sums = [MetricSums(self._metric, self._workers) for _ in rows]

        def sink(reading: Reading, ends: list[Tensor]) -> None:
            compare_ends(self._view, ends[0], ends[1:], reading.batch, sums)

        students = [TEACHER, *(self._student(row) for row in rows)]
        run_pass(self._view, self._batches, students=students, sink=sink, after_batch=self._after_batch, workers=self._workers)
        return [one.result() for one in sums]

    def _merged(self, group: MergedGroup) -> dict[str, Tensor]:
        edit = merge_of(self._view, group.layers, self._rule, group.weights)
        return {name.removeprefix(edit.prefix()): value for name, value in merged(edit, self._view).items()}

    def _student(self, row: Row) -> Student:
        several = [group for group in row if len(group.layers) > 1]
        gone = frozenset(Unit("layer", layer) for group in several for layer in group.layers[1:])
        return Student(removed=gone, overrides={group.layers[0]: self._weights[group] for group in several})


def _said(row: Row) -> str:
    """A row in one line, as the file of what was tried names it: ``0 1 2*-1+3*1+4*1 5``."""
    return " ".join(
        "+".join(f"{layer}*{weight:g}" for layer, weight in zip(group.layers, group.weights, strict=True))
        if len(group.layers) > 1
        else str(group.layers[0])
        for group in row
    )
