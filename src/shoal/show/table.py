"""A table as a value: columns with their number formats, rows of raw figures, notes.

Three renderers draw it, and none of them formats a figure: the terminal (:mod:`shoal.show.terminal`), the page
(:func:`shoal.show.html.table`) and the model card (:func:`shoal.show.markdown.table`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from shoal.words.numbers import number


def text(value: Any) -> str:
    """The format of a column of words."""
    return str(value)


@dataclass(frozen=True)
class Column:
    """A column: its name, and how its figures are written. Columns of figures are set flush right."""

    name: str
    form: Callable[[Any], str] = text

    @property
    def is_number(self) -> bool:
        return self.form is not text

    def cell(self, value: Any) -> str:
        """The text of a cell: None is empty, and a text stands as it is (a row may hold a figure of another kind)."""
        return "" if value is None else value if isinstance(value, str) else self.form(value)


def numbers(*names: str, form: Callable[[Any], str] = number) -> tuple[Column, ...]:
    """Columns of figures that are written alike."""
    return tuple(Column(name, form) for name in names)


@dataclass(frozen=True)
class Table:
    """Rows under named columns; the first cell of a row is its key.

    Attributes:
        rows: raw figures or texts, in the order of the columns.
        notes: lines under the table, for what its cells cannot say.
        breaks: indices of rows that begin a new group.
        strong: index of the row that stands out; None for no row.
        is_long: the table is looked up rather than read, so the page folds it away.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Sequence[Any], ...]
    notes: tuple[str, ...] = ()
    breaks: tuple[int, ...] = ()
    strong: int | None = None
    is_long: bool = False

    @cached_property
    def texts(self) -> list[list[str]]:
        """Every cell as it is read, row by row."""
        return [[column.cell(value) for column, value in zip(self.columns, row, strict=True)] for row in self.rows]

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """rich's protocol: ``print(table)`` of a rich console draws the table."""
        from shoal.show.terminal import drawn

        return drawn(self, options.max_width)
