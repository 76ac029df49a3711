"""States of all batches at one boundary, while a walk moves them from layer to layer.

They wait in a :class:`~shoal.engine.spill.Spill`: in memory up to its limit, in a file beyond. Whoever moves on from a boundary
frees its states, so that the next ones take their place.

Shapes: B samples, T positions, D hidden size.
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import Tensor

from shoal.engine.spill import Spill
from shoal.engine.student import Step
from shoal.engine.view import DecoderView, Reading
from shoal.words.progress import tell
from shoal.words.types import Batch

BoundaryStates = Sequence[Tensor]
"""States of all batches at one boundary, (B, T, D) each."""


class _Listed(Sequence[Tensor]):
    """A sequence of states that are made, one by one, when they are asked for."""

    @abstractmethod
    def at(self, index: int) -> Tensor:
        """The states of one batch."""

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self.at(one) for one in range(*index.indices(len(self)))]
        return self.at(index)


class SpilledStates(_Listed):
    """States in a spill, in the order they were added, until :meth:`free`.

    Args:
        spill: the place where the states wait; several sequences share it.
    """

    def __init__(self, spill: Spill) -> None:
        self.spill = spill
        self._keys: list[object] = []

    def append(self, value: Tensor) -> None:
        self._keys.append(object())
        self.spill.put(self._keys[-1], value)

    def free(self) -> None:
        """Drop all states from the spill; the sequence is empty afterwards. A second call does nothing."""
        for key in self._keys:
            self.spill.drop(key)
        self._keys.clear()

    def __len__(self) -> int:
        return len(self._keys)

    def at(self, index: int) -> Tensor:
        return self.spill.get(self._keys[index])


@dataclass(frozen=True, eq=False)
class Borrowed(_Listed):
    """States of somebody else, who frees them; what follows from them waits in ``spill``."""

    states: BoundaryStates
    spill: Spill

    def __len__(self) -> int:
        return len(self.states)

    def at(self, index: int) -> Tensor:
        return self.states[index]


@dataclass(frozen=True, eq=False)
class Between(_Listed):
    """States ``share`` of the way from one boundary to another, computed when they are asked for, in fp32 at least."""

    near: BoundaryStates
    far: BoundaryStates
    share: float

    def __len__(self) -> int:
        return len(self.near)

    def at(self, index: int) -> Tensor:
        near_BTD, far_BTD = self.near[index], self.far[index]
        exact = torch.promote_types(near_BTD.dtype, torch.float32)
        return torch.lerp(near_BTD.to(exact), far_BTD.to(exact), self.share)


def free(states: BoundaryStates) -> None:
    """Give back what the states take in their spill; states that a caller holds in a plain list stay as they are."""
    if isinstance(states, SpilledStates):
        states.free()


def emptied(states: BoundaryStates) -> SpilledStates:
    """No states yet, in the spill of the given ones, or in a spill of their own where those are a plain list."""
    return SpilledStates(states.spill if isinstance(states, (SpilledStates, Borrowed)) else Spill())


def read_all(view: DecoderView, batches: Iterable[Batch], spill: Spill) -> tuple[list[Reading], SpilledStates]:
    """Readings of all batches, and their states at boundary 0.

    The readings come without their states: the layers need only the arguments that were recorded with them.
    """
    readings, states = [], SpilledStates(spill)
    for batch in batches:
        reading = view.read(batch)
        states.append(reading.h_BTD)
        readings.append(replace(reading, h_BTD=torch.empty(0)))
    return readings, states


def advance(view: DecoderView, step: Step, readings: Sequence[Reading], states: BoundaryStates) -> SpilledStates:
    """The states behind a step; those before it stay until they are freed."""
    after = emptied(states)
    for i, (h_BTD, reading) in enumerate(zip(states, readings, strict=True)):
        tell("run a layer", i, len(readings))
        after.append(view.run_step(step, h_BTD, reading))
    return after
