"""A student: the teacher's view plus an overlay of removed units, overridden parameters and replacement modules.

Nothing is copied or edited; the overlay is applied while layers run, so any number of students share one set of weights.
"""

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
class Step:
    """One thing that a student runs: a layer of the source, with sublayers zeroed or other parameters, or a module.

    Attributes:
        layer: the layer that runs; of a module, the (first) one whose recorded arguments it gets.
        zeroed: sublayers of the layer whose contribution is zero.
        overrides: parameters by name inside the layer that replace the stored ones.
        module: what runs instead of the layer.
    """

    layer: int
    zeroed: frozenset[str] = frozenset()
    overrides: Mapping[str, Tensor] | None = None
    module: nn.Module | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for equal steps: values where there are any, identity of tensors and modules."""
        return (self.layer, self.zeroed, id(self.overrides) if self.overrides else 0, id(self.module) if self.module else 0)

    @property
    def parts(self) -> tuple[tuple[int, nn.Module], ...]:
        """(layer whose arguments it gets, module) of everything that a module runs, in order; empty for a layer."""
        return () if self.module is None else parts_of(self.module, self.layer)


@dataclass(frozen=True, eq=False)
class Student:
    """Overlay on a :class:`~shoal.engine.view.DecoderView`.

    Attributes:
        removed: units whose contribution to the stream is zero.
        overrides: per layer, parameters by name inside the layer that replace the stored ones.
        attached: replacement modules; their spans are disjoint and not in ``removed``.
        inserted: per layer, what runs behind its place, whether or not the layer itself runs.
        name: for tables.
    """

    removed: frozenset[Unit] = frozenset()
    overrides: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)
    attached: tuple[Attached, ...] = ()
    inserted: Mapping[int, tuple[Step, ...]] = field(default_factory=dict)
    name: str = "student"

    def __post_init__(self) -> None:
        covered = [layer for one in self.attached for layer in one.span.layers]
        if len(covered) != len(set(covered)) or any(Unit("layer", layer) in self.removed for layer in covered):
            raise ValueError(f"student {self.name!r}: replaced spans must be disjoint from each other and from removed layers")

    @property
    def is_removal(self) -> bool:
        """Whether it merely lacks units, so that these say all of it."""
        return not (self.overrides or self.attached or self.inserted)

    def step(self, layer: int) -> Step | None:
        """What runs in the place of ``layer``; None: nothing. Equal steps on equal input give equal output."""
        for one in self.attached:
            if layer == one.span.start:
                return Step(one.args_from, module=one.module)
            if layer in one.span:
                return None
        if Unit("layer", layer) in self.removed:
            return None
        zeroed = frozenset(kind for kind in ("attn", "mlp") if Unit(kind, layer) in self.removed)
        return Step(layer, zeroed=zeroed, overrides=self.overrides.get(layer))

    def behind(self, layer: int) -> tuple[Step, ...]:
        """What was put in behind the place of ``layer``."""
        return self.inserted.get(layer, ())

    def steps(self, layer: int) -> tuple[Step, ...]:
        """Everything from boundary ``layer`` to boundary ``layer + 1``, in order."""
        own = self.step(layer)
        return (*(() if own is None else (own,)), *self.behind(layer))

    def is_teacher_at(self, layer: int) -> bool:
        """Whether it does between two boundaries what the source does."""
        return [step.key for step in self.steps(layer)] == [Step(layer).key]


TEACHER = Student(name="teacher")


def student_without(layers: Sequence[int]) -> Student:
    """The teacher's overlay that lacks whole layers."""
    return Student(removed=frozenset(Unit("layer", layer) for layer in layers), name=runs_said(layers))
