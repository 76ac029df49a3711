"""A table of entries by name: what can be asked for, and one message for whatever cannot."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from shoal.words.records import nearest


class HasName(Protocol):
    """An entry of a table."""

    @property
    def name(self) -> str: ...


Entry = TypeVar("Entry", bound=HasName)


class Entries(dict[str, Entry], Generic[Entry]):
    """Entries in the order in which people see them. A new one is one line where the table is made."""

    def __init__(self, what: str, entries: Iterable[Entry]):
        """``what`` one of them is called in messages: a repair, a format."""
        super().__init__((one.name, one) for one in entries)
        self.what = what

    def named(self, name: str) -> Entry:
        """The entry of a name.

        Raises:
            ValueError: unknown; says the nearest and all that are known.
        """
        if name not in self:
            raise ValueError(f"unknown {self.what} {name!r}; {nearest(name, self)}")
        return self[name]
