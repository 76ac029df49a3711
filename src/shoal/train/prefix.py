"""Boundary states that training starts from: read as each batch comes, or in rounds where layers are read from disk.

A round reads the prefix once for the batches of many optimiser steps, layer by layer, and keeps their states in memory and
beyond that in a file; then only the trained layer is needed until they are used up. States do not depend on which batches share
a round, so training has the same bits wherever layers live.
Shapes: B samples, T positions, D hidden size.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from shoal.engine.spill import ONE_IN, Spill, free_memory, spill_folder
from shoal.engine.student import TEACHER, Student
from shoal.engine.view import DecoderView, Reading
from shoal.engine.workers import join
from shoal.words.progress import tell
from shoal.words.records import stable_hash
from shoal.words.types import Batch


@dataclass(frozen=True, eq=False)
class AskedBoundaries:
    """Boundaries of several streams: of each student those in 0..L that are needed; with none its stream is not run."""

    students: tuple[Student, ...]
    boundaries: tuple[frozenset[int], ...]

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for what asks the same of the same students."""
        return (tuple(id(student) for student in self.students), self.boundaries)


PrefixStates = list[dict[int, Tensor]]
"""Per stream, the states (B, T, D) of its boundaries."""

Steps = Iterable[tuple[int, list[Batch]]]
"""Optimiser steps with the pieces of their batch."""


class PrefixSource(Protocol):
    """Gives the states of batches that it was told of."""

    def ahead(self, steps: Steps, asked: AskedBoundaries) -> Iterator[tuple[int, list[Batch]]]:
        """The same steps, each when the states of its batches can be had."""
        ...

    def states(self, reading: Reading, asked: AskedBoundaries) -> PrefixStates:
        """Of a batch of the step that :meth:`ahead` gave last."""
        ...


def source_of(view: DecoderView) -> PrefixSource:
    """The one for where the view's layers live."""
    return Rounds(view) if view.residency.layer_major else Live(view)


class Live:
    """Reads each batch when it is asked for; nothing is kept."""

    def __init__(self, view: DecoderView) -> None:
        self._view = view

    def ahead(self, steps: Steps, asked: AskedBoundaries) -> Iterator[tuple[int, list[Batch]]]:
        return iter(steps)

    @torch.no_grad()
    def states(self, reading: Reading, asked: AskedBoundaries) -> PrefixStates:
        found: PrefixStates = []
        for student, wanted in zip(asked.students, asked.boundaries, strict=True):
            stream = self._view.stream(reading, stop=max(wanted), student=student) if wanted else ()
            found.append({at: h_BTD for at, h_BTD in stream if at in wanted})
        return found


class Rounds:
    """Reads the batches of as many steps together as memory and disk hold.

    Args:
        n_bytes: of states in one round; None: a quarter of the memory and a quarter of the disk that are free when it begins.

    ``n_readings`` counts the rounds.
    """

    def __init__(self, view: DecoderView, *, n_bytes: int | None = None) -> None:
        self._view, self._n_bytes = view, n_bytes
        self._held: Spill | None = None
        self._key: tuple[object, ...] = ()
        self._asked: AskedBoundaries | None = None  # This keeps the students alive whose ids are in the key.
        self.n_readings = 0

    def ahead(self, steps: Steps, asked: AskedBoundaries) -> Iterator[tuple[int, list[Batch]]]:
        waiting: list[tuple[int, list[Batch]]] = []
        limit, n_bytes = self._room(), 0
        for step, batches in steps:
            more = sum(self._bytes_of(batch, asked) for batch in batches)
            if waiting and n_bytes + more > limit:
                self._hold([batch for _, one in waiting for batch in one], asked)
                yield from waiting
                waiting, n_bytes = [], 0
            waiting.append((step, batches))
            n_bytes += more
        self._hold([batch for _, one in waiting for batch in one], asked)
        yield from waiting

    def states(self, reading: Reading, asked: AskedBoundaries) -> PrefixStates:
        assert self._held is not None
        name = _name(reading.batch)
        return [{at: self._held.get((i, at, name)) for at in wanted} for i, wanted in enumerate(asked.boundaries)]

    def _hold(self, batches: Sequence[Batch], asked: AskedBoundaries) -> None:
        """Read these batches, unless they are what is held: validation asks for the same ones again and again."""
        key = (asked.key, tuple(_name(batch) for batch in batches))
        if key == self._key or not batches:
            return
        if self._held is not None:
            self._held.close()  # The states go before the next round takes its share of what is free.
        self._held, self._key = Spill(self._view.residency.state_bytes), key
        self._asked = asked
        read_round(self._view, batches, asked, into=self._held)
        self.n_readings += 1

    def _room(self) -> int:
        if self._n_bytes is not None:
            return self._n_bytes
        return free_memory() // ONE_IN + shutil.disk_usage(spill_folder()).free // ONE_IN // join().local_size

    def _bytes_of(self, batch: Batch, asked: AskedBoundaries) -> int:
        """Of the states that are kept, and of those that move through the layers."""
        n_states = sum(len(one) for one in asked.boundaries) + len(asked.students)
        return n_states * batch.ids_BT.numel() * self._view.hidden_size * self._view.dtype.itemsize


TRUNK = -1


@torch.no_grad()
def read_round(view: DecoderView, batches: Sequence[Batch], asked: AskedBoundaries, *, into: Spill) -> None:
    """All batches through a layer before the next one; ``into`` gets states by (stream, boundary, name of the batch).

    Students run as the teacher until the first layer where they differ from it.
    """
    names = [_name(batch) for batch in batches]
    stops = [max(wanted, default=0) for wanted in asked.boundaries]
    parts = [min(_parting(view, student), stop) for student, stop in zip(asked.students, stops, strict=True)]
    own = [i for i, (part, stop) in enumerate(zip(parts, stops, strict=True)) if part < stop]
    trunk_stop = max(parts)
    for at in range(max(stops) + 1):
        runs = [(TRUNK, TEACHER)] if at < trunk_stop else []
        runs += [(i, asked.students[i]) for i in own if parts[i] <= at < stops[i]]
        tell("read ahead", at, max(stops) + 1)
        for batch, name in zip(batches, names, strict=True):
            reading = view.read(batch)
            if at == 0:
                into.put((TRUNK, name), reading.h_BTD)
            for i in own:
                if parts[i] == at:
                    into.put((i, name), into.get((TRUNK, name)))
            for i, wanted in enumerate(asked.boundaries):
                if at in wanted:
                    into.put((i, at, name), into.get((TRUNK if at <= parts[i] else i, name)))
            for i, student in runs:
                into.put((i, name), view.run_layer(at, into.get((i, name)), reading, student=student))
    for name in names:
        for i in (TRUNK, *own):
            into.drop((i, name))


def _parting(view: DecoderView, student: Student) -> int:
    """The first layer where a student differs from the teacher; L: nowhere."""
    layers = range(view.n_layers)
    return next((layer for layer in layers if not student.is_teacher_at(layer)), view.n_layers)


def _name(batch: Batch) -> str:
    """Equal for batches of equal tokens and padding, whose states are equal."""
    mask = b"" if batch.mask_BT is None else batch.mask_BT.cpu().contiguous().numpy().tobytes()
    return stable_hash(list(batch.ids_BT.shape), batch.ids_BT.cpu().contiguous().numpy().tobytes(), mask)
