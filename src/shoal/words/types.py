"""The words of Shoal as values: units, spans, batches, tables of scores, and records that are files.

Everything here is plain data; nothing imports torch at run time, so the command starts fast.
Indices are 0-based and always the teacher's. Boundary ``l`` is the residual stream entering layer ``l``; boundary ``L`` is
the output of the last layer before the final norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

UnitKind = Literal["layer", "attn", "mlp"]
UnitChoice = Literal["layers", "sublayers", "attention", "mlp"]
UNIT_KINDS: dict[UnitChoice, tuple[UnitKind, ...]] = {
    "layers": ("layer",),
    "sublayers": ("attn", "mlp"),
    "attention": ("attn",),
    "mlp": ("mlp",),
}
"""The kinds of unit that may be chosen, by the word of the command line."""


@dataclass(frozen=True, order=True)
class Unit:
    """A removable part of the decoder. Removing it zeroes its contribution to the residual stream."""

    kind: UnitKind
    index: int

    def __str__(self) -> str:
        return f"{self.kind}.{self.index}"


def model_units(n_layers: int, choice: UnitChoice = "layers", *, protected: Iterable[int] = ()) -> tuple[Unit, ...]:
    """All units of a choice in the order of the model, attention before MLP, without those of protected layers."""
    kept = set(protected)
    return tuple(Unit(kind, layer) for layer in range(n_layers) if layer not in kept for kind in UNIT_KINDS[choice])


def whole_layers(units: Iterable[Unit]) -> frozenset[Unit]:
    """The same units with both sublayers of a layer said as that layer, which leaves nothing of it to run."""
    found = frozenset(units)
    both = {unit.index for unit in found if unit.kind == "attn"} & {unit.index for unit in found if unit.kind == "mlp"}
    layers = both | {unit.index for unit in found if unit.kind == "layer"}
    inside = {unit for unit in found if unit.kind != "layer" and unit.index not in layers}
    return frozenset(inside | {Unit("layer", layer) for layer in layers})


@dataclass(frozen=True, order=True)
class Span:
    """Consecutive layers ``start .. stop-1`` (half-open, 0-based)."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"span [{self.start}, {self.stop}) needs 0 <= start < stop")

    @property
    def n(self) -> int:
        return self.stop - self.start

    @property
    def layers(self) -> range:
        return range(self.start, self.stop)

    def __contains__(self, layer: int) -> bool:
        return self.start <= layer < self.stop

    def __str__(self) -> str:
        return f"layers {self.start}..{self.stop - 1} (0-based, inclusive)"


def spans_of(layers: Iterable[int]) -> tuple[Span, ...]:
    """The maximal runs of consecutive layers in a set of layers, in order."""
    runs: list[Span] = []
    for layer in sorted(set(layers)):
        if runs and runs[-1].stop == layer:
            runs[-1] = Span(runs[-1].start, layer + 1)
        else:
            runs.append(Span(layer, layer + 1))
    return tuple(runs)


@dataclass(frozen=True)
class Batch:
    """Token ids of some samples of one length.

    Attributes:
        ids_BT: int64 token ids.
        mask_BT: bool, True on real tokens; ``None`` when nothing is padded. Padding is on the right.
        index: position of this batch in its pass, from 0; the engine delivers batches in this order.
        branches: for rows that are trees instead of lines (many continuations of one context); ``None`` for plain text.
    """

    ids_BT: Tensor
    mask_BT: Tensor | None = None
    index: int = 0
    branches: Branches | None = None

    def to(self, device: Any) -> Batch:
        mask = None if self.mask_BT is None else self.mask_BT.to(device)
        branches = None if self.branches is None else self.branches.to(device)
        return Batch(self.ids_BT.to(device), mask, self.index, branches)

    def sample(self, row: int) -> Batch:
        """One of its samples, with the batch's padding and position."""
        mask = None if self.mask_BT is None else self.mask_BT[row : row + 1]
        branches = None if self.branches is None else self.branches.sample(row)
        return Batch(self.ids_BT[row : row + 1], mask, self.index, branches)


@dataclass(frozen=True)
class Branches:
    """Rows that are trees: what each token sees, and where it stands.

    Attributes:
        sees_BTT: bool, entry (t, s) is True where token t sees token s; every token sees itself, padding sees only itself.
        positions_BT: int64, the position of each token in its own branch.
    """

    sees_BTT: Tensor
    positions_BT: Tensor

    def to(self, device: Any) -> Branches:
        return Branches(self.sees_BTT.to(device), self.positions_BT.to(device))

    def sample(self, row: int) -> Branches:
        return Branches(self.sees_BTT[row : row + 1], self.positions_BT[row : row + 1])


@dataclass(frozen=True)
class SpanTable:
    """A score for every span: ``values[start, stop]`` for 0 <= start < stop <= L, NaN elsewhere.

    Attributes:
        criterion: name of the score, e.g. ``angular``.
        tokens: which tokens were averaged: ``last``, ``rest`` (all but padding and sinks), ``every`` (all but padding),
            ``sink``.
        values, stderr: (L+1, L+1) float64; stderr is the standard error of the mean over samples.
        unit: unit of the values, for people.
        higher_is_more_redundant: direction; the best span is the arg-max if True, the arg-min if False.
        n_samples: samples averaged.
        parts: (R, L+1, L+1), the same means over R disjoint parts of the samples, or None where they were not kept; how much
            a choice by this table depends on the samples is read from them.
    """

    criterion: str
    tokens: str
    values: np.ndarray
    stderr: np.ndarray
    unit: str
    higher_is_more_redundant: bool
    n_samples: int
    parts: np.ndarray | None = None

    @property
    def name(self) -> str:
        return f"{self.criterion}/{self.tokens}"

    @property
    def n_layers(self) -> int:
        return int(self.values.shape[0]) - 1

    def __getitem__(self, at: Span | int) -> float:
        """The value of a span, or of the layer of that number alone; so a table can be walked and plotted layer by layer.

        Raises IndexError: there is no such layer.
        """
        span = at if isinstance(at, Span) else Span(at % self.n_layers, at % self.n_layers + 1)
        if span.stop > self.n_layers or not (isinstance(at, Span) or -self.n_layers <= at < self.n_layers):
            raise IndexError(f"table {self.name!r} is of {self.n_layers} layers, numbered from 0; got {at}")
        return float(self.values[span.start, span.stop])

    def __iter__(self) -> Iterator[float]:
        """The values of the layers one by one."""
        return (self[layer] for layer in range(self.n_layers))

    def __len__(self) -> int:
        return self.n_layers

    def __repr__(self) -> str:
        """One line: what it is, and the layers one by one. The whole is ``values``."""
        ends = "higher" if self.higher_is_more_redundant else "lower"
        layers = ", ".join(f"{value:.4g}" for value in self)
        return f"{self.name}, {self.unit} ({ends} is more redundant), {self.n_samples} samples, layer by layer: {layers}"

    def cost(self, span: Span) -> float:
        """The value with the sign that makes lower more redundant."""
        return -self[span] if self.higher_is_more_redundant else self[span]


@dataclass(frozen=True)
class UnitTable:
    """A score for each of some units, beside the tables of spans.

    Attributes:
        criterion: name of the score, e.g. ``left_out_kl``.
        units: the units that were scored, in the order of the model.
        values, stderr: (U,) float64, in the order of ``units``; stderr is NaN where it is not known.
        unit: unit of the values, for people.
        higher_is_more_redundant: direction, as in :class:`SpanTable`.
        n_samples: samples averaged; 0 where no text was read.
    """

    criterion: str
    units: tuple[Unit, ...]
    values: np.ndarray
    stderr: np.ndarray
    unit: str
    higher_is_more_redundant: bool
    n_samples: int

    def __post_init__(self) -> None:
        if not len(self.units) == len(self.values) == len(self.stderr):
            raise ValueError(
                f"table {self.criterion!r} has {len(self.units)} units, {len(self.values)} values and {len(self.stderr)} "
                "errors; each unit needs one of both"
            )

    def __getitem__(self, unit: Unit) -> float:
        """Raises ValueError: the unit was not scored."""
        if unit not in self.units:
            raise ValueError(f"table {self.criterion!r} has no unit {unit}; units: {', '.join(map(str, self.units))}")
        return float(self.values[self.units.index(unit)])

    def cost(self, unit: Unit) -> float:
        """The value with the sign that makes lower more redundant."""
        return -self[unit] if self.higher_is_more_redundant else self[unit]

    def ranked(self) -> tuple[Unit, ...]:
        """The units, the most redundant first; of equal ones the deeper first, and those without a value last."""
        costs = -self.values if self.higher_is_more_redundant else self.values
        order = sorted(range(len(self.units)), key=lambda i: (bool(np.isnan(costs[i])), costs[i], -i))
        return tuple(self.units[i] for i in order)
