"""The one pass front to back over a student's layers: its own inputs, the teacher's boundaries as targets.

Fits and pruners are bodies of this loop:

    for here in walk(view, student, batches, goals={layer: Goal(layer + 1)}):
        for reading, seen in here.seen([Tap("mlp_map_in", here.layer)]):
            ...                        # what the layer's maps read, in the student as it is by now
        here.set(values)               # the layers behind read what this layer makes of its input with these values

Teacher and student advance together, layer by layer, with the states of all batches, so each layer is read once. Until the two
differ they share one set of states. A walk without a teacher (``teacher=False``) has no targets and costs one stream.

Shapes: B samples, T positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from shoal.engine.spill import Spill
from shoal.engine.student import Step, Student
from shoal.engine.view import DecoderView, Reading, Tap
from shoal.engine.workers import ALONE, Workers
from shoal.fit.boundary_states import Between, Borrowed, BoundaryStates, advance, free, read_all
from shoal.fit.held_out import LayerEnds
from shoal.fit.sums import folds_of
from shoal.words.types import Batch

LayerValues = Mapping[str, Tensor]
"""New values of a layer's parameters, by name inside the layer."""


@dataclass(frozen=True)
class Goal:
    """Where the output of a layer should arrive.

    Attributes:
        boundary: the teacher's boundary; the student has no layer of its own between the layer and that boundary.
        share: the part of the teacher's change from right behind the layer to ``boundary`` that the layer is asked to make up.
            Below 1 it leaves the rest to later layers.
    """

    boundary: int
    share: float = 1.0


class Here:
    """A layer where the walk stops for its body.

    Attributes:
        view, workers: the model's view, and the processes that share the batches.
        layer, goal: the layer, and where its output should arrive.
        is_last: no layer behind reads what this one makes, so the walk ends with it.
        readings, folds: recorded arguments of the batches, and the fold of each of their samples (empty without a teacher).
    """

    def __init__(self, streams: _Streams, layer: int, goal: Goal, student: Student, *, is_last: bool) -> None:
        self.view, self.workers = streams.view, streams.workers
        self.layer, self.goal, self.is_last = layer, goal, is_last
        self.readings, self.folds = streams.readings, streams.folds
        self._streams = streams
        self._step = student.step(layer)  # None, or a module, where the body sets the states behind the place itself
        self._own: LayerValues = (self._step.overrides or {}) if self._step is not None else {}
        self._behind = [one for left_out in range(layer, goal.boundary) for one in student.behind(left_out)]
        self._outputs: BoundaryStates | None = None

    @property
    def inputs(self) -> BoundaryStates:
        """The student's states before the layer."""
        return self._streams.ours

    @torch.no_grad()
    def ends(self, *, passing: Callable[[int], None] | None = None) -> LayerEnds:
        """Run the teacher on to the goal, and return the layer's inputs with the states its output should arrive at.

        Args:
            passing: called with each layer between this one and the goal, while its weights are in memory.
        """
        assert self._streams.has_teacher, "a walk without a teacher has no targets"
        near = None
        if self.goal.share < 1.0:
            self._streams.teacher_to(self.layer + 1)
            near = self._streams.hold()
        self._streams.teacher_to(self.goal.boundary, passing=passing, behind=self.layer)
        far = self._streams.teacher
        goals = far if near is None else Between(near, far, self.goal.share)
        return LayerEnds(self.readings, self.inputs, goals, self.folds, self.workers)

    @torch.no_grad()
    def run(
        self, h_BTD: Tensor, reading: Reading, *, values: LayerValues | None = None, needs: Sequence[Tap] = ()
    ) -> tuple[Tensor, dict[Tap, Tensor]]:
        """The student's layer on one batch: its output, and what passed at the taps.

        Args:
            values: parameters that replace the student's own.
        """
        seen: dict[Tap, Tensor] = {}
        with self.view.tapped(self.layer, needs, seen):
            output_BTD = self.view.run_step(self._with(values), h_BTD, reading)
        return output_BTD, seen

    def seen(self, needs: Sequence[Tap]) -> Iterator[tuple[Reading, dict[Tap, Tensor]]]:
        """What passes at the taps of the student's layer, batch by batch."""
        for h_BTD, reading in zip(self.inputs, self.readings, strict=True):
            yield reading, self.run(h_BTD, reading, needs=needs)[1]

    def set(self, values: LayerValues | None = None, *, outputs: BoundaryStates | None = None) -> None:
        """Go on with new values of the layer.

        Args:
            outputs: the states behind the layer, where the body has them already; else the layer is run for them.
        """
        if values:
            self._step = self._with(values)
        self._outputs = outputs

    @property
    def own(self) -> LayerValues:
        """Parameters in which the student's layer differs from the source's before the body sets any."""
        return self._own

    def _with(self, values: LayerValues | None) -> Step:
        assert self._step is not None, "no layer runs here"
        return replace(self._step, overrides={**(self._step.overrides or {}), **values}) if values else self._step

    def leave(self) -> None:
        """Move teacher and student on behind the layer; the walk calls this when the body is done."""
        streams = self._streams
        if not self.is_last:
            streams.teacher_to(self.goal.boundary)
            outputs = self._outputs
            if outputs is None and self._step is not None:
                outputs = advance(self.view, self._step, self.readings, streams.ours)
            streams.move(ours=outputs)
            for step in self._behind:
                streams.move(ours=advance(self.view, step, self.readings, streams.ours))
        streams.let_go()


@dataclass(eq=False)
class _Streams:
    """Where teacher and student stand, with the states of all batches at one boundary each.

    Attributes:
        ours, teacher: those states; one object until the two differ. They are empty where a worker has no batch to share.
        has_teacher: whether a teacher goes along; without one ``teacher`` is empty.
        known: the teacher's states at some boundaries, which are not run again.
        spill: where states of either wait.
        at: the boundary the teacher stands at.
    """

    view: DecoderView
    readings: Sequence[Reading]
    folds: Sequence[Tensor]
    ours: BoundaryStates
    teacher: BoundaryStates
    has_teacher: bool
    known: Mapping[int, BoundaryStates]
    workers: Workers
    spill: Spill
    at: int = 0
    _held: list[BoundaryStates] = field(default_factory=list)

    def begin(self, first: int, student: Student) -> int:
        """The boundary to begin at: the last known one up to ``first`` that the student reaches as the teacher, else 0."""
        before = [at for at in self.known if at <= first and all(student.is_teacher_at(layer) for layer in range(at))]
        self.at = max(before, default=0) if self.has_teacher else 0
        if self.at in self.known:
            states = Borrowed(self.known[self.at], self.spill)
            self.move(ours=states, teacher=states)
        return self.at

    def step(self, layer: int, student: Student) -> None:
        """Both move on behind a layer that has no body."""
        stay_one = self.ours is self.teacher and student.is_teacher_at(layer)
        for step in () if stay_one else student.steps(layer):
            self.move(ours=advance(self.view, step, self.readings, self.ours))
        self.teacher_to(layer + 1)
        if stay_one:
            self.move(ours=self.teacher)

    def teacher_to(self, boundary: int, *, passing: Callable[[int], None] | None = None, behind: int = -1) -> None:
        """Run the teacher, if there is one, to a boundary, unless its states there are known.

        Args:
            passing: called with each layer that the teacher passes, from the one after ``behind`` on.
        """
        if not self.has_teacher or boundary <= self.at:
            return
        for layer in range(self.at, boundary):
            if boundary not in self.known:
                self.move(teacher=advance(self.view, Step(layer), self.readings, self.teacher))
            if passing is not None and layer > behind:
                passing(layer)
        if boundary in self.known:
            self.move(teacher=Borrowed(self.known[boundary], self.spill))
        self.at = boundary

    def move(self, *, ours: BoundaryStates | None = None, teacher: BoundaryStates | None = None) -> None:
        """Put student or teacher on other states; states that neither of them stands on any more are freed."""
        left = [self.ours, self.teacher]
        self.ours = self.ours if ours is None else ours
        self.teacher = self.teacher if teacher is None else teacher
        self._free_unused(left)

    def hold(self) -> BoundaryStates:
        """The teacher's states as they are now; they outlast its next moves, up to :meth:`let_go`."""
        self._held.append(self.teacher)
        return self.teacher

    def let_go(self) -> None:
        """Free what was held."""
        held, self._held = self._held, []
        self._free_unused(held)

    def _free_unused(self, left: Sequence[BoundaryStates]) -> None:
        used = (self.ours, self.teacher, *self._held)
        for one in left:
            if not any(one is other for other in used):
                free(one)


@torch.no_grad()
def walk(
    view: DecoderView,
    student: Student,
    batches: Sequence[Batch],
    *,
    goals: Mapping[int, Goal],
    teacher: bool = True,
    known: Mapping[int, BoundaryStates] | None = None,
    after_layer: Callable[[int], None] | None = None,
    workers: Workers = ALONE,
) -> Generator[Here, None, None]:
    """Stop at every layer that has a goal, front to back, with what the layers before it were set to in place.

    Args:
        student: runs at the other layers as it is.
        goals: layer to the boundary that its output is fitted to; the layers in between are left out, what is put in runs.
        teacher: False: there are no targets, and nothing but the student runs.
        known: the teacher's states of this process's batches at some boundaries, so that they are not run again.
        after_layer: called with each finished layer, for progress.
        workers: the processes that share the batches; folds are those of all samples.
    Raises:
        CannotRefit: too few samples for the folds of a walk with a teacher.
    """
    spill = Spill(view.residency.state_bytes)
    try:
        readings, boundary = read_all(view, workers.share(batches), spill)
        folds = [one.to(view.device) for one in workers.share(folds_of(batches))] if teacher else []
        streams = _Streams(view, readings, folds, boundary, boundary if teacher else (), teacher, known or {}, workers, spill)
        layer, last = streams.begin(min(goals), student), max(goals)
        while layer <= last:
            with view.residency.layer(layer):
                if layer in goals:
                    here = Here(streams, layer, goals[layer], student, is_last=layer == last)
                    yield here
                    here.leave()
                else:
                    streams.step(layer, student)
            if after_layer is not None:
                after_layer(layer)
            layer = goals[layer].boundary if layer in goals else layer + 1
    finally:
        spill.close()
