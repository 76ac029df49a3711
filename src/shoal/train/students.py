"""Replacements in training: any number of them read one teacher stream per batch.

The teacher runs once, without gradients, up to the last boundary any of them needs. Each replacement runs with the recorded
arguments of the layer it inherits from, so under the masks it will have in the checkpoint. The trained parameters are fp32
masters inside one module; what is validated and saved is a second copy in the model's own dtype.
Shapes: B samples, T positions, D hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from shoal.decoder import TEACHER, DecoderView, Reading, Student
from shoal.decoder.student import Step
from shoal.replace import Replacement, attach
from shoal.replace.overlay import load_values
from shoal.train.objectives import Objective
from shoal.types import Batch, Span


@dataclass(frozen=True, eq=False)
class Start:
    """A replacement to train.

    Attributes:
        span: the layers it stands for; its target is the teacher's boundary ``span.stop``.
        replacement: its description.
        student: everything else the student has (removed layers, refits, replacements elsewhere). What of it lies before the
            span shapes the input: several cuts are trained front to back with student inputs and teacher targets.
    """

    span: Span
    replacement: Replacement
    student: Student = TEACHER

    def reads_teacher(self) -> bool:
        """True when the student is the teacher up to the span, so its input is the teacher's own boundary."""
        layers = range(self.span.start)
        return all(self.student.step(layer).key == TEACHER.step(layer).key for layer in layers)


class Trainee(nn.Module):
    """One replacement in training: fp32 master parameters, and the copy that would be saved.

    Args:
        bfloat16: run the master under bfloat16 autocast.
    """

    def __init__(self, view: DecoderView, start: Start, *, bfloat16: bool = False) -> None:
        super().__init__()
        self.start, self._view, self._bfloat16 = start, view, bfloat16
        module = start.replacement.build(view, start.span)
        self.deployed = attach(start.replacement, start.span, module.requires_grad_(False))
        self.master = copy.deepcopy(module).float().requires_grad_()

    @property
    def student(self) -> Student:
        """The whole student with the replacement as last deployed."""
        other = self.start.student
        name = f"{self.start.replacement.name} over {self.start.span}"
        return Student(other.removed, other.overrides, (*other.attached, self.deployed), name=name)

    def forward(self, h_BTD: Tensor, reading: Reading) -> Tensor:
        """Boundary ``span.start`` to the student's boundary ``span.stop``, through the master, with gradients."""
        calls = list(reading.calls)
        for source, _ in self.deployed.parts:
            call = calls[source]
            calls[source] = replace(call, args=_in_fp32(call.args), kwargs={k: _in_fp32(v) for k, v in call.kwargs.items()})
        step = Step("module", module=self.master, args_from=self.deployed.args_from)
        with torch.autocast(h_BTD.device.type, torch.bfloat16, enabled=self._bfloat16):
            return self._view.run_step(self.start.span.start, step, h_BTD.float(), replace(reading, calls=tuple(calls)))

    def deployed_forward(self, h_BTD: Tensor, reading: Reading) -> Tensor:
        """As :meth:`forward`, through the copy that would be saved, in the model's dtype."""
        step = Step("module", module=self.deployed.module, args_from=self.deployed.args_from)
        return self._view.run_step(self.start.span.start, step, h_BTD, reading)

    def deploy(self) -> None:
        """Bring the deployed copy to the master's values, rounded to the model's dtype."""
        load_values(self.deployed.module, self.master.state_dict(), where="deployed copy")


class Trainees(nn.Module):
    """All replacements of one run. Its forward reads a batch and returns every loss, so data parallelism can wrap it."""

    def __init__(self, view: DecoderView, starts: Sequence[Start], objective: Objective, *, bfloat16: bool = False) -> None:
        super().__init__()
        if not starts:
            raise ValueError("nothing to train: give at least one start")
        if any(start.span.stop > view.n_layers for start in starts):
            raise ValueError(f"a span ends after the last layer of this {view.n_layers}-layer model")
        self._view, self._objective = view, objective
        self.members: list[Trainee] = [Trainee(view, start, bfloat16=bfloat16) for start in starts]
        self._registered = nn.ModuleList(self.members)

    def forward(self, batch: Batch) -> Tensor:
        """Losses (number of starts,) of the masters, with gradients."""
        return self._losses(batch, Trainee.forward)

    @torch.no_grad()
    def validation(self, batches: Sequence[Batch]) -> list[float]:
        """Losses of the deployed copies over all batches, weighted by real tokens, summed in fp64."""
        total, tokens = torch.zeros(len(self.members), dtype=torch.float64), 0
        for batch in batches:
            weight = n_real_tokens(batch)
            total += weight * self._losses(batch, Trainee.deployed_forward).double().cpu()
            tokens += weight
        return [float(value) for value in total / tokens]

    def deploy(self) -> None:
        for member in self.members:
            member.deploy()

    def _losses(self, batch: Batch, run: Any) -> Tensor:
        reading = self._view.read(batch)
        inputs, targets = self._ends(reading)
        pairs = zip(self.members, inputs, targets, strict=True)
        mask = reading.batch.mask_BT
        return torch.stack([self._objective.loss(run(member, h, reading), target, mask) for member, h, target in pairs])

    @torch.no_grad()
    def _ends(self, reading: Reading) -> tuple[list[Tensor], list[Tensor]]:
        """Input and target of every member: one teacher stream, and one for every student that differs before its span."""
        starts = [member.start for member in self.members]
        shared = {start.span.start for start in starts if start.reads_teacher()} | {start.span.stop for start in starts}
        teacher: dict[int, Tensor] = {}
        for boundary, h in self._view.stream(reading, stop=max(shared)):
            if boundary in shared:
                teacher[boundary] = h
        inputs = [teacher[start.span.start] if start.reads_teacher() else self._input(start, reading) for start in starts]
        return inputs, [teacher[start.span.stop] for start in starts]

    def _input(self, start: Start, reading: Reading) -> Tensor:
        h = reading.h_BTD
        for layer in range(start.span.start):
            h = self._view.run_layer(layer, h, reading, student=start.student)
        return h


def accumulate(trainees: nn.Module, pieces: Sequence[Batch]) -> Tensor:
    """Add the gradients of the mean loss over all real tokens of a batch that comes in pieces.

    Args:
        trainees: :class:`Trainees`, or a data-parallel wrapper of it.
        pieces: of any sizes and paddings; each weighs as many tokens as it has.
    Returns:
        The losses (number of starts,) of the whole batch, float64 on the CPU.
    """
    weights = [n_real_tokens(piece) for piece in pieces]
    total = torch.zeros((), dtype=torch.float64)
    for piece, weight in zip(pieces, weights, strict=True):
        losses = trainees(piece) * (weight / sum(weights))
        losses.sum().backward()
        total = total + losses.detach().double().cpu()
    return total


def n_real_tokens(batch: Batch) -> int:
    """Tokens of a batch without padding: its weight in a mean over several."""
    return batch.ids_BT.numel() if batch.mask_BT is None else int(torch.count_nonzero(batch.mask_BT))


def _in_fp32(value: Any) -> Any:
    """Recorded arguments with every floating tensor in fp32 (masks and rotary embeddings come in the model's dtype)."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(_in_fp32(part) for part in value)
    return value
