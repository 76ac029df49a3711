"""Tables of a thinned student: the share of zeros by role and by layer."""

from typing import Any

from shoal.prune.thin_result import ThinResult, Zeros
from shoal.show.table import Column, Table, numbers
from shoal.words.numbers import percent, whole


def by_role(found: ThinResult) -> Table:
    """One row for every kind of map, over all layers."""
    rows: list[tuple[Any, ...]] = [(role, *_counts(one), _error(found, role)) for role, one in found.by_role().items()]
    rows.append(("all maps", *_counts(found.total), None))
    columns = (
        Column("map"), *numbers("weights", "zeros", form=whole), *numbers("zeros, %", form=percent),
        *numbers("lost of its output"),
    )  # fmt: skip
    columns = columns if any(row[-1] is not None for row in rows) else columns[:-1]
    rows = [row[: len(columns)] for row in rows]
    return Table("Zeros by map", columns, tuple(rows), notes=found.left, breaks=(len(rows) - 1,))


def by_layer(found: ThinResult) -> Table:
    """One row for every layer, front to back."""
    rows = [(str(layer), *_counts(one), found.outliers.get(layer)) for layer, one in found.by_layer().items()]
    columns = (
        Column("layer"), *numbers("weights", "zeros", form=whole), *numbers("zeros, %", "outliers, %", form=percent),
    )  # fmt: skip
    n = len(columns) if found.outliers else len(columns) - 1
    return Table("Zeros by layer", columns[:n], tuple(row[:n] for row in rows), is_long=True)


def _counts(one: Zeros) -> tuple[int, int, float]:
    return one.n_weights, one.n_zeros, one.share


def _error(found: ThinResult, role: str) -> float | None:
    """Mean over layers of the squared change of what the map returns over its squared norm."""
    known = [one.error for one in found.maps if one.role == role and one.error is not None]
    return sum(known) / len(known) if known else None
