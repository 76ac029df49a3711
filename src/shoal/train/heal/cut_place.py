"""Which boundary of the teacher each boundary of a student stands for. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.words.structure import Structure


@dataclass(frozen=True)
class CutPlace:
    """How a student of n layers lies in its teacher of L.

    Attributes:
        stands_for: n + 1 boundaries of the teacher. The student's boundary i enters its layer i, boundary n is the output of
            its last layer; entry i is the teacher's boundary that carries the same content.
        new: the student's layers that were put in, and that no layer of the teacher is.
    """

    stands_for: tuple[int, ...]
    new: tuple[int, ...] = ()

    @classmethod
    def of_structure(cls, structure: Structure, n_teacher_layers: int) -> CutPlace:
        """Of a student's layers, in order. Before a new layer the content is that behind the place it stands behind."""
        stands_for = tuple(slot.place + slot.is_inserted for slot in structure)
        new = tuple(i for i, slot in enumerate(structure) if slot.is_inserted)
        return cls((*stands_for, n_teacher_layers), new)

    @classmethod
    def of_kept(cls, kept: Sequence[int], n_teacher_layers: int) -> CutPlace:
        """The cut that keeps these layers of the teacher, in order.

        Raises:
            ValueError: not increasing indices in 0..L-1.
        """
        order = tuple(kept)
        if not order or list(order) != sorted(set(order)) or not 0 <= order[0] <= order[-1] < n_teacher_layers:
            raise ValueError(f"kept layers {list(order)} need to be increasing indices in 0..{n_teacher_layers - 1}")
        return cls((*order, n_teacher_layers))

    @property
    def n_layers(self) -> int:
        return len(self.stands_for) - 1

    @property
    def interfaces(self) -> tuple[int, ...]:
        """The student's boundaries right behind something that was removed; none where nothing was.

        UIDL compares ``x^(l*+n)`` of the teacher with the student's input at the same place (arXiv 2403.17887, footnote 9).
        """
        before = (-1, *self.stands_for[:-1])
        gaps = [i for i, (last, here) in enumerate(zip(before, self.stands_for, strict=True)) if here - last > 1]
        return tuple(gaps)

    def pairs(self, where: str) -> tuple[tuple[int, int], ...]:
        """Boundaries (student's, teacher's) to compare: ``interface``, or ``every`` layer's output.

        Raises:
            ValueError: ``interface`` where nothing was cut.
        """
        chosen = self.interfaces if where == "interface" else tuple(range(1, self.n_layers + 1))
        if not chosen:
            raise ValueError("the student has all layers of its teacher, so there is no interface; use boundaries: every")
        return tuple((i, self.stands_for[i]) for i in chosen)

    def distances(self) -> tuple[int, ...]:
        """Of each layer of the student: layers between it and the nearest interface; 0 right beside one."""
        edges = self.interfaces
        if not edges:
            return (0,) * self.n_layers
        # Boundary b lies between layers b - 1 and b, so these two are at distance 0.
        return tuple(min(i - b if i >= b else b - 1 - i for b in edges) for i in range(self.n_layers))
