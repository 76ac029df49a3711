"""One pass over batches: any number of students and observers share one reading of text and weights.

The order of layers and batches belongs to the residency of the view; what an observer or a sink sees does not depend on it.
Shapes: B samples, T positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from shoal.engine.boundary_cache import BoundaryCache
from shoal.engine.route import START, Hop, Route, Work, route_of, work_for
from shoal.engine.spill import Spill
from shoal.engine.student import TEACHER, Student
from shoal.engine.view import DecoderView, Reading, Tap
from shoal.engine.workers import ALONE, Workers
from shoal.words.types import Batch


class Observer(Protocol):
    """Collects sums over samples of one stream, by default the teacher's; so it can be sharded over workers, saved, resumed."""

    def taps(self, view: DecoderView) -> Sequence[Tap]:
        """What it needs."""
        ...

    def update(self, batch: Batch, values: Mapping[Tap, Tensor]) -> None:
        """One batch, in batch order; or its samples one after the other, which must add the same bits.

        Where layers are read from disk they come one by one, so that no more states than one sample's wait in memory for it.
        ``values``: (B, T, ...) in the model's dtype, on the view's device; not to be edited, and overwritten after ``update``
        returns, so copy what must outlive it.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """The sums, by name."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what :meth:`state` returned."""
        ...


Sink = Callable[[Reading, list[Tensor]], None]
"""Receives, per batch, boundary L of every student (in the order given)."""


@torch.no_grad()
def run_pass(
    view: DecoderView,
    batches: Iterable[Batch],
    *,
    observers: Sequence[Observer] = (),
    students: Sequence[Student] = (),
    sink: Sink | None = None,
    observed: Student = TEACHER,
    stop: int | None = None,
    after_batch: Callable[[Batch], None] | None = None,
    workers: Workers = ALONE,
    cache: BoundaryCache | None = None,
) -> float:
    """Run batches through the observed stream (if observers are given) and all students, sharing every common prefix.

    Args:
        observers: fed from the stream of ``observed``, the teacher's unless given; a removed layer is an identity of it and has
            no taps inside.
        students: their boundary L goes to ``sink``; include ``TEACHER`` to get the teacher's.
        stop: run only layers below it (for observers; students need all layers).
        after_batch: called when a batch, or that much of the work on all of them, is done; for progress.
        workers: who share the batches. Observers, new ones, end with the sums over all; the sink sees the batches of this one.
        cache: states of earlier passes over the same batches, known by their index, which then need not run again; it keeps
            this pass's, too.
    Returns:
        How many times a layer was run on a batch, by this worker; half a time where one of its sublayers did not run.
    Raises:
        ValueError: NaN or infinite states at boundary L of the observed stream, or without observers of the first student. A
            further student may overflow (a bad cut in float16); its sink sees it.
    """
    assert stop is None or not students, "students need every layer"
    batches = workers.share(batches)
    streams = [observed, *students] if observers else list(students)
    n_layers = view.n_layers if stop is None else stop
    route = route_of(streams, n_layers, watched=0 if observers else None)
    job = _Pass(view, n_layers, route, observers, sink, after_batch, cache or BoundaryCache(0))
    job.cache.begin()
    n_runs = _run_by_layer(job, list(batches)) if view.residency.layer_major else _run_by_batch(job, batches)
    for observer in observers if workers.size > 1 else ():
        observer.load_state(workers.sum(observer.state()))
    return n_runs


@dataclass(frozen=True)
class _Pass:
    """What both orders of layers and batches share: the route of all streams, and who is told of what.

    With observers the first stream is theirs, and no student of the sink.
    """

    view: DecoderView
    n_layers: int
    route: Route
    observers: Sequence[Observer]
    sink: Sink | None
    after_batch: Callable[[Batch], None] | None
    cache: BoundaryCache

    @cached_property
    def taps(self) -> set[Tap]:
        """What all observers need."""
        return {tap for observer in self.observers for tap in observer.taps(self.view)}

    @cached_property
    def boundaries(self) -> dict[Tap, int]:
        """The node whose states each tapped boundary is."""
        n_boundaries = len(self.route.watched)
        return {tap: self.route.watched[tap.index] for tap in self.taps if tap.kind == "boundary" and tap.index < n_boundaries}

    def inside(self, hop: Hop) -> list[Tap]:
        """What is observed inside the layer of a hop."""
        return [tap for tap in self.taps if tap.index == hop.step.layer and tap.kind != "boundary"] if hop.is_watched else []

    def work_for(self, batch: Batch) -> Work:
        """What has to be run for a batch; the rest is known from earlier passes."""
        return work_for(
            self.route,
            (*self.route.ends, *self.boundaries.values()),
            is_known=lambda node: self.cache.has(self.route.histories[node], batch.index),
            is_tapped=lambda hop: bool(self.inside(hop)),
        )

    def borrowed(self, work: Work, batch: Batch) -> dict[int, Tensor]:
        """States of earlier passes that this batch begins with, by node."""
        return {node: self.cache.get(self.route.histories[node], batch.index) for node in sorted(work.borrowed)}

    def run(self, hop: Hop, h_BTD: Tensor, reading: Reading, tapped: dict[Tap, Tensor]) -> Tensor:
        """The states behind a hop; what is observed inside its layer is put into ``tapped``."""
        with self.view.tapped(hop.step.layer, self.inside(hop), tapped):
            after_BTD = self.view.run_step(hop.step, h_BTD, reading)
        if hop.is_shared:
            self.cache.put(self.route.histories[hop.after], reading.batch.index, after_BTD)
        return after_BTD

    def runs_of(self, work: Work) -> float:
        """Layers that a batch was run through; one whose left-out sublayer did not run counts half."""
        return sum(self.view.share_run(hop.step) for here in work.hops for hop in here)

    def finish(self, reading: Reading, ends: list[Tensor]) -> None:
        """Tell the sink of boundary L of every stream of a batch; its observers have seen it before."""
        if self.sink is not None:
            self.sink(reading, ends[1:] if self.observers else ends)

    def report(self, batches: Iterable[Batch]) -> None:
        """So much is done, for progress."""
        if self.after_batch is not None:
            for batch in batches:
                self.after_batch(batch)


def _run_by_batch(job: _Pass, batches: Iterable[Batch]) -> float:
    """Each batch through all layers before the next one."""
    shelf: dict[Tap, Tensor] = {}
    n_runs = 0.0
    for batch in batches:
        reading = job.view.read(batch)
        shelf = _fitting(shelf, set(job.boundaries), reading.h_BTD)
        work = job.work_for(batch)
        values, ends = _run_batch(job, work, reading, shelf)
        n_runs += job.runs_of(work)
        for observer in job.observers:
            observer.update(reading.batch, {tap: values[tap] for tap in observer.taps(job.view)})
        job.finish(reading, ends)
        job.report([batch])
    return n_runs


def _run_batch(job: _Pass, work: Work, reading: Reading, shelf: dict[Tap, Tensor]) -> tuple[dict[Tap, Tensor], list[Tensor]]:
    """Tapped values of a batch, and boundary L of every stream. States that no later layer reads are let go."""
    values: dict[Tap, Tensor] = {}
    states = {START: reading.h_BTD, **job.borrowed(work, reading.batch)}
    last_reads = _last_reads(work, job.route.ends)
    taps_at: dict[int, list[Tap]] = {}
    for tap, node in job.boundaries.items():
        taps_at.setdefault(node, []).append(tap)

    def shelve(node: int) -> None:
        for tap in taps_at.get(node, ()):
            values[tap] = _shelved(shelf, tap, states[node])

    for node in tuple(states):
        shelve(node)
    for stop, hops in enumerate(work.hops):
        for hop in hops:
            states[hop.after] = job.run(hop, states[hop.before], reading, values)
            shelve(hop.after)
        for node in [node for node in states if last_reads.get(node, -1) <= stop]:
            del states[node]
    ends = [states[node] for node in job.route.ends]
    _refuse_nonfinite(job.view, ends[0])
    return values, ends


def _run_by_layer(job: _Pass, batches: Sequence[Batch]) -> float:
    """All batches through a layer before the next one, so that each weight is read once; states wait in a :class:`Spill`.

    The same layers run on the same batches as in :func:`_run_by_batch`, and everything is delivered in batch order at the end.
    No batch is done before the last layer is, so what is reported on the way is as many batches as what has run is a share.
    """
    waiting = Spill(job.view.residency.state_bytes)
    readings = _Readings(job.view, batches)
    kept = {*job.route.ends, *job.boundaries.values()}
    works: list[Work] = []
    try:
        for i, batch in enumerate(batches):
            waiting.put((START, i), readings.first(i).h_BTD)
            works.append(job.work_for(batch))
            for node, h_BTD in job.borrowed(works[i], batch).items():
                waiting.put((node, i), h_BTD)
        n, n_stops, n_told = len(batches), len(job.route.hops), 0
        for stop in range(len(job.route.hops)):
            for i, work in enumerate(works):
                _run_stop(job, work.hops[stop], readings, i, waiting)
                due = (stop * n + i + 1) // (n_stops + 1)
                job.report(batches[n_told:due])
                n_told = due
            for i, work in enumerate(works):
                last_reads = _last_reads(work, kept)
                for node in {hop.before for hop in work.hops[stop]}:
                    if last_reads[node] <= stop:
                        waiting.drop((node, i))
        job.view.residency.settle(range(job.n_layers - 1))
        for i in range(len(batches)):
            reading = readings[i]
            at_end = {node: waiting.get((node, i)) for node in dict.fromkeys(job.route.ends)}
            ends = [at_end[node] for node in job.route.ends]
            _refuse_nonfinite(job.view, ends[0])
            _deliver(job, reading.batch, i, waiting)
            job.finish(reading, ends)
        job.report(batches[n_told:])
    finally:
        waiting.close()
    return sum(map(job.runs_of, works))


def _run_stop(job: _Pass, hops: Sequence[Hop], readings: _Readings, i: int, waiting: Spill) -> None:
    """One batch through all hops of a stop."""
    for hop in hops:
        seen: dict[Tap, Tensor] = {}
        waiting.put((hop.after, i), job.run(hop, waiting.get((hop.before, i)), readings[i], seen))
        for tap, value in seen.items():
            waiting.put((tap, i), value)


class _Readings:
    """The arguments of every layer for every batch, read again for a batch unless all batches of its shape share them."""

    def __init__(self, view: DecoderView, batches: Sequence[Batch]) -> None:
        self._view, self._batches = view, batches
        self._shared: dict[int, Reading] = {}

    def first(self, i: int) -> Reading:
        """A batch with its boundary 0, which later readings of it may lack."""
        batch, reading = self._batches[i], self._view.read(self._batches[i])
        if batch.mask_BT is None and batch.branches is None:
            self._shared[i] = replace(reading, h_BTD=reading.h_BTD.new_empty(0))
        return reading

    def __getitem__(self, i: int) -> Reading:
        return self._shared[i] if i in self._shared else self._view.read(self._batches[i])


def _last_reads(work: Work, kept: Collection[int]) -> dict[int, int]:
    """The last stop that reads the states of each node; of those that are kept, no stop is the last."""
    reads = {hop.before: stop for stop, hops in enumerate(work.hops) for hop in hops}
    return {**reads, **dict.fromkeys(kept, len(work.hops))}


def _deliver(job: _Pass, batch: Batch, i: int, waiting: Spill) -> None:
    """A batch's tapped values to all observers, sample by sample; the observers share what is read."""
    keys: dict[Tap, object] = {tap: job.boundaries.get(tap, tap) for tap in job.taps}
    for row in range(len(batch.ids_BT) if job.observers else 0):
        values = {tap: waiting.get_sample((key, i), row) for tap, key in keys.items()}
        for observer in job.observers:
            observer.update(batch.sample(row), {tap: values[tap] for tap in observer.taps(job.view)})


def _fitting(shelf: dict[Tap, Tensor], taps: set[Tap], h_BTD: Tensor) -> dict[Tap, Tensor]:
    """Memory for the tapped boundaries of a batch, one block, kept from batch to batch while it is large enough.

    Keeping what layers return instead makes the allocator give back and fetch pages all along the pass: 10 % of the forward
    (24 layers, d = 512, glibc). Only on a CPU: devices have an allocator of their own that keeps its blocks.
    """
    boundaries = {tap for tap in taps if tap.kind == "boundary"}
    if h_BTD.device.type != "cpu" or not boundaries:
        return {}
    n, dtype = h_BTD.numel(), h_BTD.dtype
    if shelf.keys() == boundaries and all(len(place) >= n and place.dtype == dtype for place in shelf.values()):
        return shelf
    block = torch.empty(len(boundaries), n, dtype=dtype)
    return dict(zip(sorted(boundaries), block, strict=True))


def _shelved(shelf: dict[Tap, Tensor], tap: Tap, h_BTD: Tensor) -> Tensor:
    """A copy of the state in its place on the shelf; the state itself where there is none."""
    if tap not in shelf or shelf[tap].dtype != h_BTD.dtype or len(shelf[tap]) < h_BTD.numel():
        return h_BTD
    return shelf[tap][: h_BTD.numel()].view(h_BTD.shape).copy_(h_BTD)


def _refuse_nonfinite(view: DecoderView, h_BTD: Tensor) -> None:
    if not torch.isfinite(h_BTD).all():
        raise ValueError(
            f"the hidden states of this {view.family} model are NaN or infinite on this text; "
            "check the weights, or run with --dtype float32 or bfloat16"
        )
