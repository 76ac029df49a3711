"""What a model loses without sets of its units, by any metric, measured by running it; the engine behind v(S).

All sets of a call share one reading of the text and every common prefix of layers; calls share boundary states that are kept
between them (engine/boundary_cache.py). Logits exist for some hundred tokens of one student at a time, and for a metric of
hidden states not at all.
Shapes: B samples, T positions, N counted tokens, n of them in a block, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from shoal.engine.boundary_cache import BoundaryCache
from shoal.engine.passes import run_pass
from shoal.engine.student import TEACHER, Student
from shoal.engine.view import DecoderView, Reading
from shoal.engine.workers import ALONE, Workers
from shoal.measure.counted import ELSEWHERE, TOKENS_PER_HEAD, head_of
from shoal.measure.divergence import predicts
from shoal.measure.metrics import METRICS, Metric
from shoal.measure.set_function import CountedSets, UnitSet
from shoal.measure.value_file import ValueFile
from shoal.words.records import stable_hash
from shoal.words.types import Batch, Unit

MOST_TOGETHER = 64
"""Sets of one pass: boundary L of all of them is in memory at the same time."""


class RemovalLosses:
    """Losses by one metric on fixed batches: what :class:`~shoal.measure.set_function.CountedSets` calls for new sets.

    Args:
        view: the teacher.
        batches: the text, read again at every call.
        metric: a name of :data:`~shoal.measure.metrics.METRICS`.
        cache_bytes: memory for boundary states between calls; None: a quarter of what is free at the first call.
        after_batch: called when a batch is done, for progress.
        workers: who share every call; all of them must ask for the same sets.

    ``overrides`` are new parameters of layers, by name inside the layer, that all students have and the teacher has not.
    ``n_passes`` counts readings of the text, ``n_layer_runs`` how often a layer was run on a batch, by halves
    where one of its sublayers did not run.
    """

    def __init__(
        self,
        view: DecoderView,
        batches: Sequence[Batch],
        metric: str = "kl",
        *,
        cache_bytes: int | None = None,
        after_batch: Callable[[Batch], None] | None = None,
        workers: Workers = ALONE,
    ) -> None:
        self.view = view
        # Kept states are found by the index of their batch, so that has to be its own, whoever made the batches.
        self.batches = [replace(batch, index=i) for i, batch in enumerate(batches)]
        self.metric = METRICS.named(metric)
        self.overrides: Mapping[int, Mapping[str, Tensor]] = {}
        self.n_passes = 0
        self.n_layer_runs = 0.0
        self._cache = BoundaryCache(cache_bytes)
        self._after_batch = after_batch
        self._workers = workers

    @torch.no_grad()
    def __call__(self, sets: Sequence[UnitSet]) -> list[float]:
        """The loss without each set, in order.

        Raises:
            ValueError: a sublayer that this family cannot leave out, NaN or infinite states of the teacher, or text without two
                tokens in a row.
        """
        return [
            loss for start in range(0, len(sets), MOST_TOGETHER) for loss in self._pass(sets[start : start + MOST_TOGETHER])
        ]

    def _pass(self, sets: Sequence[UnitSet]) -> list[float]:
        sums = [MetricSums(self.metric, self._workers) for _ in sets]

        def sink(reading: Reading, ends: list[Tensor]) -> None:
            compare_ends(self.view, ends[0], ends[1:], reading.batch, sums)

        n_runs = run_pass(
            self.view,
            self.batches,
            students=[TEACHER, *(Student(one, self.overrides) for one in sets)],
            sink=sink,
            after_batch=self._after_batch,
            workers=self._workers,
            cache=self._cache,
        )
        self.n_layer_runs += float(self._workers.sum({"n_runs": torch.tensor(n_runs, dtype=torch.float64)})["n_runs"])
        self.n_passes += 1
        return [one.result() for one in sums]


class MetricSums:
    """Sums of one student over batches.

    Args:
        workers: who share the batches; the result is that of all batches in order, bit for bit.
    """

    def __init__(self, metric: Metric, workers: Workers = ALONE) -> None:
        self.metric = metric
        self._workers = workers
        self._per_batch: list[Tensor] = []

    def add_batch(self, pieces: Sequence[Tensor]) -> None:
        """The sums of a batch's samples, or of pieces of them, in order; no pieces where no token of it counts."""
        self._per_batch.append(torch.stack(list(pieces)).sum(0) if pieces else torch.zeros(0, dtype=torch.float64))

    def result(self) -> float:
        """Raises ValueError: no sample has two real tokens in a row."""
        filled = [one for one in self._workers.gather(self._per_batch) if len(one)]
        if not filled:
            raise ValueError("no token to measure on: every sample is shorter than 2 tokens; give longer text")
        return self.metric.sums().result(torch.stack(filled).sum(0))


def compare_ends(
    view: DecoderView, teacher_BTD: Tensor, students_BTD: Sequence[Tensor], batch: Batch, sums: Sequence[MetricSums]
) -> None:
    """Count one batch for every student, by boundary L of teacher and students, in pieces of its counted tokens."""
    if not sums:
        return
    metric = sums[0].metric
    counted_BT = predicts(batch.ids_BT, batch.mask_BT)
    pieces: list[list[Tensor]] = [[] for _ in sums]
    for row, at in _pieces(counted_BT, whole_samples=metric.per_sample):
        next_n = batch.ids_BT[row, at + 1]
        rows = [end_BTD[row][at.to(end_BTD.device)] for end_BTD in (teacher_BTD, *students_BTD)]
        teacher_nX = None if metric.needs == "text" else _compared(view, rows[0], metric)
        for found, end_BTD, h_nD in zip(pieces, students_BTD, rows[1:], strict=True):
            is_teacher = end_BTD is teacher_BTD and teacher_nX is not None  # A student that lacks nothing needs no second head.
            student_nX = teacher_nX if is_teacher else _compared(view, h_nD, metric)
            assert student_nX is not None
            found.append(metric.sums().add(student_nX if teacher_nX is None else teacher_nX, student_nX, next_n))
    for found, one in zip(pieces, sums, strict=True):
        one.add_batch(found)


def _compared(view: DecoderView, h_nD: Tensor, metric: Metric) -> Tensor:
    """What a metric compares, of some tokens at boundary L."""
    return h_nD if metric.needs == "hidden" else head_of(view, h_nD)


def _pieces(counted_BT: Tensor, *, whole_samples: bool) -> Iterator[tuple[int, Tensor]]:
    """(row, positions) of the counted tokens of a batch, so many at a time that their logits stay small."""
    size = TOKENS_PER_HEAD if counted_BT.device.type == "cpu" else ELSEWHERE
    for row, counted_T in enumerate(counted_BT):
        at = counted_T.nonzero()[:, 0]
        for piece in at.split(max(1, len(at)) if whole_samples else size):
            if len(piece):
                yield row, piece


def removal_function(
    view: DecoderView,
    batches: Sequence[Batch],
    units: Sequence[Unit],
    *,
    metric: str = "kl",
    limit: int | None = None,
    folder: Path | None = None,
    about: Mapping[str, object] | None = None,
    workers: Workers = ALONE,
    after_batch: Callable[[Batch], None] | None = None,
) -> CountedSets:
    """v(S) of a model: the loss by a metric when units are left out, memoised and counted.

    Args:
        units: those that a search may leave out.
        metric: a name of :data:`~shoal.measure.metrics.METRICS`.
        limit: most sets to be measured.
        folder: where values are kept across processes; None: nowhere.
        about: what the values depend on beside metric and tokens (model, dtype); needed with ``folder``.
    Raises:
        ValueError: no such metric, or a folder without ``about``.
    """
    measure = RemovalLosses(view, batches, metric, workers=workers, after_batch=after_batch)
    file = None
    if folder is not None:
        if not about:
            raise ValueError(
                "values that are kept in a folder need to say what they are of: pass about, the model's hash at least"
            )
        file = ValueFile(folder, {**about, "metric": metric, "text": hash_of_tokens(batches)}, workers=workers)
    return CountedSets(measure, units, limit=limit, file=file)


def hash_of_tokens(batches: Sequence[Batch]) -> str:
    """Identity of the text that is measured: ids and padding of all batches, in order."""
    parts: list[bytes] = []
    for batch in batches:
        tensors = (batch.ids_BT, torch.ones_like(batch.ids_BT) if batch.mask_BT is None else batch.mask_BT.long())
        parts.extend(one.cpu().contiguous().numpy().tobytes() for one in tensors)
        parts.append(repr(tuple(batch.ids_BT.shape)).encode())
    return stable_hash(*parts)
