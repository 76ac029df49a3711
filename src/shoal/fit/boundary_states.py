"""States of all batches at one boundary, while a closed form moves them from layer to layer.

They wait in a :class:`~shoal.engine.spill.Spill`: in memory up to its limit, in a file beyond. What nobody holds any more
gives its place back.
Shapes: B samples, T positions, D hidden size.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import Tensor

from shoal.engine.spill import Spill
from shoal.engine.student import Step
from shoal.engine.view import DecoderView, Reading
from shoal.words.types import Batch

BoundaryStates = Sequence[Tensor]
"""Of all batches at one boundary, (B, T, D) each."""


class SpilledStates(Sequence[Tensor]):
    """States in a spill, in the order they were added; dropped from it with the sequence."""

    def __init__(self, spill: Spill) -> None:
        self.spill = spill
        self._keys: list[object] = []
        weakref.finalize(self, _drop, spill, self._keys)

    def append(self, value: Tensor) -> None:
        self._keys.append(object())
        self.spill.put(self._keys[-1], value)

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self.spill.get(key) for key in self._keys[index]]
        return self.spill.get(self._keys[index])


@dataclass(frozen=True, eq=False)
class Between(Sequence[Tensor]):
    """States ``share`` of the way from one boundary to another, made as they are asked for, in fp32 at least."""

    near: BoundaryStates
    far: BoundaryStates
    share: float

    def __len__(self) -> int:
        return len(self.near)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        near_BTD, far_BTD = self.near[index], self.far[index]
        exact = torch.promote_types(near_BTD.dtype, torch.float32)
        return torch.lerp(near_BTD.to(exact), far_BTD.to(exact), self.share)


def _drop(spill: Spill, keys: list[object]) -> None:
    for key in keys:
        spill.drop(key)


def emptied(states: BoundaryStates) -> SpilledStates:
    """No states yet, in the spill of these; in one of their own where they are a plain list."""
    return SpilledStates(states.spill if isinstance(states, SpilledStates) else Spill())


def read_all(view: DecoderView, batches: Iterable[Batch]) -> tuple[list[Reading], SpilledStates]:
    """Readings without their states, which only layers' arguments are needed of later on, and boundary 0."""
    readings, states = [], SpilledStates(Spill(view.residency.state_bytes))
    for batch in batches:
        reading = view.read(batch)
        states.append(reading.h_BTD)
        readings.append(replace(reading, h_BTD=torch.empty(0)))
    return readings, states


def advance(view: DecoderView, layer: int, step: Step, readings: Sequence[Reading], states: BoundaryStates) -> SpilledStates:
    """The states behind a layer."""
    after = emptied(states)
    for h_BTD, reading in zip(states, readings, strict=True):
        after.append(view.run_step(layer, step, h_BTD, reading))
    return after
