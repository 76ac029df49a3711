"""What is trained: the values a student holds beside the teacher's weights, that is its refits and its replacement modules.

Each is a part with the boundary it is fitted to, the teacher's where the student's next layer begins. Trained is a master in
fp32; what is validated and saved is a second copy in the model's own dtype. Everything else of the student is frozen.
Shapes: B samples, T positions, D hidden size.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from shoal.edits.student_of import load_values, values_of
from shoal.engine.student import Attached, Step, Student
from shoal.engine.view import DecoderView, Reading
from shoal.words.types import Span


@dataclass(frozen=True, order=True)
class TrainedPart:
    """One trained thing: the refit of layer ``start``, or the module that replaces ``start .. stop-1``.

    Attributes:
        target: the boundary its output is fitted to.
        kind: ``refit`` or ``module``.
    """

    start: int
    stop: int
    target: int
    kind: str

    def __str__(self) -> str:
        return f"refit of layer {self.start}" if self.kind == "refit" else f"replacement of {Span(self.start, self.stop)}"


def trained_parts(student: Student, n_layers: int) -> tuple[TrainedPart, ...]:
    """Everything a student holds, front to back.

    Raises:
        ValueError: a span or a layer is not one of the model's.
    """
    found = [(one.span.start, one.span.stop, "module") for one in student.attached]
    found += [(layer, layer + 1, "refit") for layer, values in student.overrides.items() if values]
    parts = []
    for start, stop, kind in sorted(found):
        if stop > n_layers:
            raise ValueError(f"a span ends after the last layer of this {n_layers}-layer model")
        following = (layer for layer in range(stop, n_layers) if student.step(layer) is not None)
        parts.append(TrainedPart(start, stop, next(following, n_layers), kind))
    return tuple(parts)


@dataclass(frozen=True, eq=False)
class Start:
    """A student to train.

    Attributes:
        student: as it starts, whole. What of it lies before the trained parts shapes their input.
        parts: what is trained; None: everything it holds. The rest stays as it is.
    """

    student: Student
    parts: tuple[TrainedPart, ...] | None = None

    def trained(self, n_layers: int) -> tuple[TrainedPart, ...]:
        """Raises ValueError: nothing is there to train."""
        parts = trained_parts(self.student, n_layers) if self.parts is None else self.parts
        if not parts:
            raise ValueError(f"nothing to train: student {self.student.name!r} has no refits and no replacements")
        return parts

    def reads_teacher(self, first: int) -> bool:
        """True when the student is the teacher up to layer ``first``, so that its boundary there is the teacher's own."""
        return all(self.student.is_teacher_at(layer) for layer in range(first))


class Trainee(nn.Module):
    """One student in training. Its parameters are the masters.

    Args:
        bfloat16: run the trained parts under bfloat16 autocast.
    """

    def __init__(self, view: DecoderView, start: Start, *, bfloat16: bool = False) -> None:
        super().__init__()
        self.start, self._view, self._bfloat16 = start, view, bfloat16
        self.parts = start.trained(view.n_layers)
        self.deployed = _own_copy(start.student, self.parts)
        self.masters = nn.ModuleDict({str(part.start): self._master(part) for part in self.parts})

    @property
    def first(self) -> int:
        """The boundary its trained parts begin at."""
        return self.parts[0].start

    @property
    def targets(self) -> tuple[int, ...]:
        """The boundaries its parts are fitted to, ascending."""
        return tuple(sorted({part.target for part in self.parts}))

    def boundaries(self, h_BTD: Tensor, reading: Reading, *, stop: int) -> Iterator[tuple[int, Tensor]]:
        """The student's boundaries ``first .. stop`` through the masters, with gradients. The caller freezes the model."""
        trained = {part.start: part for part in self.parts}
        h = h_BTD
        yield self.first, h
        for layer in range(self.first, stop):
            if layer in trained:
                h = self._run(trained[layer], h, reading)
            else:
                step = self.deployed.step(layer)
                h = h if step is None else self._view.run_step(step, h.to(self._view.dtype), reading)
            for step in self.deployed.behind(layer):
                h = self._view.run_step(step, h.to(self._view.dtype), reading)
            yield layer + 1, h

    def deployed_boundaries(self, h_BTD: Tensor, reading: Reading, *, stop: int) -> Iterator[tuple[int, Tensor]]:
        """As :meth:`boundaries`, through the copy that would be saved, in the model's dtype."""
        return self._view.stream(reading, start=self.first, stop=stop, h_BTD=h_BTD, student=self.deployed)

    @torch.no_grad()
    def deploy(self) -> None:
        """Bring the deployed copy to the masters' values, rounded to the model's dtype."""
        for part in self.parts:
            master = self._master_of(part)
            if isinstance(master, RefittedPart):
                for name, value in master.values().items():
                    self.deployed.overrides[part.start][name].copy_(value)
            else:
                load_values(self._attached(part).module, master.state_dict(), where="deployed copy")

    def values(self) -> dict[str, Tensor]:
        """The deployed copy of every trained part, under the names a plan's values have. Copies, not aliases."""
        found = values_of(self._attached(part) for part in self.parts if part.kind == "module")
        for part in self.parts:
            if part.kind == "refit":
                own = self.deployed.overrides[part.start]
                found.update({f"refit.{part.start}.{name}": value.clone() for name, value in own.items()})
        return found

    def adopt(self, values: Mapping[str, Tensor]) -> None:
        """Make what :meth:`values` returned the deployed copy itself: the student is then in memory once."""
        # The values of a checkpoint are not on the card.
        values = {name: value.to(self._view.device) for name, value in values.items()}
        overrides = dict(self.deployed.overrides)
        for part in self.parts:
            if part.kind == "module":
                own = _under(values, f"replace.{part.start}-{part.stop}.")
                self._attached(part).module.load_state_dict(own, assign=True)
            else:
                overrides[part.start] = _under(values, f"refit.{part.start}.")
        self.deployed = replace(self.deployed, overrides=overrides)

    def _run(self, part: TrainedPart, h_BTD: Tensor, reading: Reading) -> Tensor:
        """A trained part on fp32 states, with its layer's recorded arguments in fp32."""
        master = self._master_of(part)
        if isinstance(master, RefittedPart):
            sources = [part.start]
            step = Step(part.start, overrides={**self._frozen_in_fp32(part.start), **master.values()})
        else:
            sources = [source for source, _ in self._attached(part).parts]
            step = Step(sources[0], module=master)
        calls = list(reading.calls)
        for source in sources:
            call = calls[source]
            calls[source] = replace(call, args=_in_fp32(call.args), kwargs={k: _in_fp32(v) for k, v in call.kwargs.items()})
        with torch.autocast(h_BTD.device.type, torch.bfloat16, enabled=self._bfloat16):
            return self._view.run_step(step, _in_fp32(h_BTD), replace(reading, calls=tuple(calls)))

    def _frozen_in_fp32(self, layer: int) -> dict[str, Tensor]:
        """What a refit leaves of its layer, so that the layer runs in one precision."""
        with self._view.residency.layer(layer) as module:
            tensors = dict([*module.named_parameters(), *module.named_buffers()])
            return {name: one.detach().float() for name, one in tensors.items() if _is_low(one)}

    def _master(self, part: TrainedPart) -> nn.Module:
        if part.kind == "refit":
            return RefittedPart(self.deployed.overrides[part.start])
        module = copy.deepcopy(self._attached(part).module)
        return _widened(module).requires_grad_()

    def _master_of(self, part: TrainedPart) -> nn.Module:
        return self.masters[str(part.start)]

    def _attached(self, part: TrainedPart) -> Attached:
        return next(one for one in self.deployed.attached if one.span.start == part.start)


class RefittedPart(nn.Module):
    """The fp32 masters of one layer's refitted parameters."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, value in values.items():
            wide = value.detach().to(torch.promote_types(value.dtype, torch.float32), copy=True)
            self.register_parameter(_inside(name), nn.Parameter(wide))
        self._names = tuple(values)

    def values(self) -> dict[str, Tensor]:
        """By name inside the layer."""
        return {name: getattr(self, _inside(name)) for name in self._names}


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Gradients pass through the model's layers inside the block, but stop at none of its parameters."""
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanting:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)


def _own_copy(student: Student, parts: Sequence[TrainedPart]) -> Student:
    """The student with copies of what is trained, so that the start stays as it was."""
    trained = {part.start for part in parts}
    overrides = {
        layer: {name: value.detach().clone() for name, value in values.items()} if layer in trained else values
        for layer, values in student.overrides.items()
    }
    attached = tuple(
        replace(one, module=copy.deepcopy(one.module).requires_grad_(False)) if one.span.start in trained else one
        for one in student.attached
    )
    return replace(student, overrides=overrides, attached=attached)


def _inside(name: str) -> str:
    """A parameter's path as one attribute name."""
    return name.replace(".", "/")


def _under(values: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _is_low(value: Tensor) -> bool:
    return value.is_floating_point() and value.dtype.itemsize < 4


def _widened(module: nn.Module) -> nn.Module:
    """fp32, or fp64 where the model is."""
    return module._apply(lambda value: value.float() if _is_low(value) else value)


def _in_fp32(value: Any) -> Any:
    """Low-precision tensors in fp32, also inside recorded arguments (masks and rotary embeddings have the model's dtype)."""
    if isinstance(value, Tensor):
        return value.float() if _is_low(value) else value
    if type(value) in (tuple, list):
        return type(value)(_in_fp32(part) for part in value)
    return value
