"""One pass over batches: any number of students and observers share one reading of text and weights.

The order of layers and batches belongs to the residency of the view; what an observer or a sink sees does not depend on it.
Shapes: B samples, T positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

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
) -> None:
    """Run batches through the observed stream (if observers are given) and all students, sharing every common prefix.

    Args:
        observers: fed from the stream of ``observed``, the teacher's unless given; a removed layer is an identity of it and has
            no taps inside.
        students: their boundary L goes to ``sink``; include ``TEACHER`` to get the teacher's.
        stop: run only layers below it (for observers; students need all layers).
        after_batch: called when a batch is done, for progress.
        workers: who share the batches. Observers, new ones, end with the sums over all; the sink sees the batches of this one.
    Raises:
        ValueError: NaN or infinite states at boundary L of the observed stream, or without observers of the first student. A
            further student may overflow (a bad cut in float16); its sink sees it.
    """
    assert stop is None or not students, "students need every layer"
    batches = workers.share(batches)
    n_layers = view.n_layers if stop is None else stop
    streams = [observed, *students] if observers else list(students)
    if view.residency.layer_major:
        _run_by_layer(view, list(batches), streams, observers, sink, n_layers, after_batch)
    else:
        _run_by_batch(view, batches, streams, observers, sink, n_layers, after_batch)
    for observer in observers if workers.size > 1 else ():
        observer.load_state(workers.sum(observer.state()))


def _run_by_batch(
    view: DecoderView,
    batches: Iterable[Batch],
    streams: Sequence[Student],
    observers: Sequence[Observer],
    sink: Sink | None,
    stop: int,
    after_batch: Callable[[Batch], None] | None,
) -> None:
    """Each batch through all layers before the next one."""
    shelf: dict[Tap, Tensor] = {}
    for batch in batches:
        reading = view.read(batch)
        taps = {tap for observer in observers for tap in observer.taps(view)}
        shelf = _fitting(shelf, taps, reading.h_BTD)
        values, finals = _run_batch(view, reading, streams, taps, stop, shelf)
        for observer in observers:
            observer.update(reading.batch, {tap: values[tap] for tap in observer.taps(view)})
        if sink is not None:
            sink(reading, finals[1:] if observers else finals)
        if after_batch is not None:
            after_batch(batch)


def _run_batch(
    view: DecoderView, reading: Reading, streams: Sequence[Student], taps: set[Tap], stop: int, shelf: dict[Tap, Tensor]
) -> tuple[dict[Tap, Tensor], list[Tensor]]:
    """Advance all streams layer by layer; streams with equal history are one group and run once."""
    groups: list[tuple[list[int], Tensor]] = [(list(range(len(streams))), reading.h_BTD)]
    values: dict[Tap, Tensor] = {}
    watched = 0 if taps else -1
    for layer in range(stop):
        if Tap("boundary", layer) in taps:
            values[Tap("boundary", layer)] = _shelved(shelf, Tap("boundary", layer), _state_of(groups, watched))
        inside = [tap for tap in taps if tap.index == layer and tap.kind != "boundary"]
        advanced: list[tuple[list[int], Tensor]] = []
        for members, h in groups:
            by_step: dict[tuple[object, ...], list[int]] = {}
            for member in members:
                by_step.setdefault(streams[member].step(layer).key, []).append(member)
            for alike in by_step.values():
                wanted = inside if watched in alike else []
                with view.tapped(layer, wanted, values):
                    advanced.append((alike, view.run_step(layer, streams[alike[0]].step(layer), h, reading)))
        groups = advanced
    if Tap("boundary", stop) in taps:
        values[Tap("boundary", stop)] = _shelved(shelf, Tap("boundary", stop), _state_of(groups, watched))
    finals = [_state_of(groups, member) for member in range(len(streams))]
    _refuse_nonfinite(view, finals[0])
    return values, finals


def _run_by_layer(
    view: DecoderView,
    batches: Sequence[Batch],
    streams: Sequence[Student],
    observers: Sequence[Observer],
    sink: Sink | None,
    stop: int,
    after_batch: Callable[[Batch], None] | None,
) -> None:
    """All batches through a layer before the next one, so that each weight is read once; states wait in a :class:`Spill`.

    The same layers run on the same batches as in :func:`_run_batch`, and everything is delivered in batch order at the end.
    """
    taps = {tap for observer in observers for tap in observer.taps(view)}
    watched = 0 if taps else -1
    waiting = Spill(view.residency.state_bytes)
    unpadded: dict[int, Reading] = {}  # those whose arguments all batches of their shape share, so that they can be held

    def reading_of(i: int) -> Reading:
        return unpadded[i] if i in unpadded else view.read(batches[i])

    try:
        for i, batch in enumerate(batches):
            reading = view.read(batch)
            waiting.put((0, i), reading.h_BTD)
            if batch.mask_BT is None and batch.branches is None:
                unpadded[i] = replace(reading, h_BTD=reading.h_BTD.new_empty(0))
        groups: list[tuple[list[int], int]] = [(list(range(len(streams))), 0)]
        n_groups = 1
        boundary: dict[int, int] = {}  # tapped boundary -> group whose states it is
        for layer in range(stop):
            if Tap("boundary", layer) in taps:
                boundary[layer] = _group_of(groups, watched)
            inside = [tap for tap in taps if tap.index == layer and tap.kind != "boundary"]
            split: list[tuple[list[int], int, int]] = []  # members, group before, group after
            for members, group in groups:
                by_step: dict[tuple[object, ...], list[int]] = {}
                for member in members:
                    by_step.setdefault(streams[member].step(layer).key, []).append(member)
                for alike in by_step.values():
                    if streams[alike[0]].step(layer).action == "skip":
                        split.append((alike, group, group))
                    else:
                        split.append((alike, group, n_groups))
                        n_groups += 1
            for i in range(len(batches)):
                reading = reading_of(i)
                for alike, before, after in split:
                    if after == before:
                        continue
                    seen: dict[Tap, Tensor] = {}
                    with view.tapped(layer, inside if watched in alike else [], seen):
                        step = streams[alike[0]].step(layer)
                        waiting.put((after, i), view.run_step(layer, step, waiting.get((before, i)), reading))
                    for tap, value in seen.items():
                        waiting.put((tap, i), value)
            groups = [(alike, after) for alike, _, after in split]
            live = {after for _, after in groups} | set(boundary.values())
            for _, before, _ in split:
                if before not in live:
                    for i in range(len(batches)):
                        waiting.drop((before, i))
        if Tap("boundary", stop) in taps:
            boundary[stop] = _group_of(groups, watched)
        view.residency.settle(range(stop - 1))
        for i, batch in enumerate(batches):
            reading = reading_of(i)
            finals = [waiting.get((_group_of(groups, member), i)) for member in range(len(streams))]
            _refuse_nonfinite(view, finals[0])
            _deliver(view, reading.batch, observers, waiting, {tap: (_key_of(tap, boundary), i) for tap in taps})
            if sink is not None:
                sink(reading, finals[1:] if observers else finals)
            if after_batch is not None:
                after_batch(batch)
    finally:
        waiting.close()


def _deliver(
    view: DecoderView, batch: Batch, observers: Sequence[Observer], waiting: Spill, keys: Mapping[Tap, tuple[object, int]]
) -> None:
    """A batch's tapped values to all observers, sample by sample; they share what is read."""
    for row in range(len(batch.ids_BT) if observers else 0):
        values = {tap: waiting.get_sample(key, row) for tap, key in keys.items()}
        for observer in observers:
            observer.update(batch.sample(row), {tap: values[tap] for tap in observer.taps(view)})


def _key_of(tap: Tap, boundary: Mapping[int, int]) -> object:
    return boundary[tap.index] if tap.kind == "boundary" else tap


def _group_of(groups: Sequence[tuple[list[int], int]], member: int) -> int:
    return next(group for members, group in groups if member in members)


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


def _state_of(groups: Sequence[tuple[list[int], Tensor]], member: int) -> Tensor:
    return next(h for members, h in groups if member in members)


def _refuse_nonfinite(view: DecoderView, h_BTD: Tensor) -> None:
    if not torch.isfinite(h_BTD).all():
        raise ValueError(
            f"the hidden states of this {view.family} model are NaN or infinite on this text; "
            "check the weights, or run with --dtype float32 or bfloat16"
        )
