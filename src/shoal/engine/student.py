"""A student: the teacher's view plus an overlay of removed units, overridden parameters and replacement modules.

Nothing is copied or edited; the overlay is applied while layers run, so any number of students share one set of weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from shoal.words.structure import runs_said
from shoal.words.types import Span, Unit


@dataclass(frozen=True, eq=False)
class Attached:
    """A module that runs in place of ``span``, called as ``module(h, *args, **kwargs)`` with the recorded arguments of
    layer ``args_from`` (which layer it inherits masks and rotary embeddings from). The members of an ``nn.ModuleList`` run one
    after the other, member i with the arguments of layer ``args_from + i``."""

    span: Span
    module: nn.Module
    args_from: int

    @property
    def parts(self) -> tuple[tuple[int, nn.Module], ...]:
        """(layer whose arguments it gets, module) of everything that runs, in order."""
        return parts_of(self.module, self.args_from)


def parts_of(module: nn.Module, args_from: int) -> tuple[tuple[int, nn.Module], ...]:
    """A module, or the members of a list, each with the layer whose arguments it gets."""
    return tuple(enumerate(module if isinstance(module, nn.ModuleList) else (module,), start=args_from))


@dataclass(frozen=True, eq=False)
class Student:
    """Overlay on a :class:`~shoal.engine.view.DecoderView`.

    Attributes:
        removed: units whose contribution to the stream is zero.
        overrides: per layer, parameters by name inside the layer that replace the stored ones.
        attached: replacement modules; their spans are disjoint and not in ``removed``.
        name: for tables.
    """

    removed: frozenset[Unit] = frozenset()
    overrides: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)
    attached: tuple[Attached, ...] = ()
    name: str = "student"

    def __post_init__(self) -> None:
        covered = [layer for one in self.attached for layer in one.span.layers]
        if len(covered) != len(set(covered)) or any(Unit("layer", layer) in self.removed for layer in covered):
            raise ValueError(f"student {self.name!r}: replaced spans must be disjoint from each other and from removed layers")

    def step(self, layer: int) -> Step:
        """What happens at ``layer``. Equal steps at equal layers, on equal input, give equal output."""
        for one in self.attached:
            if layer == one.span.start:
                return Step("module", module=one.module, args_from=one.args_from)
            if layer in one.span:
                return SKIP
        if Unit("layer", layer) in self.removed:
            return SKIP
        zeroed = frozenset(kind for kind in ("attn", "mlp") if Unit(kind, layer) in self.removed)
        return Step("run", zeroed=zeroed, overrides=self.overrides.get(layer))


@dataclass(frozen=True, eq=False)
class Step:
    """One layer of a student: skip it, run it (with zeroed sublayers or other parameters), or run a module instead."""

    action: str
    zeroed: frozenset[str] = frozenset()
    overrides: Mapping[str, Tensor] | None = None
    module: nn.Module | None = None
    args_from: int = -1

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for equal steps: values where there are any, identity of tensors and modules."""
        return (self.action, self.zeroed, id(self.overrides) if self.overrides else 0, id(self.module) if self.module else 0)


SKIP = Step("skip")
TEACHER = Student(name="teacher")


def student_without(layers: Sequence[int]) -> Student:
    """The teacher's overlay that lacks whole layers."""
    return Student(removed=frozenset(Unit("layer", layer) for layer in layers), name=runs_said(layers))
