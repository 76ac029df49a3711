"""A table of entries by name: what can be asked for, and the one message for what cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeVar

from shoal.words.records import nearest


class HasName(Protocol):
    """An entry that knows its own name."""

    @property
    def name(self) -> str: ...


Entry = TypeVar("Entry")
Named = TypeVar("Named", bound=HasName)


class Entries(dict[str, Entry]):
    """Entries in the order in which people see them. A new one is one line where the table is made.

    Attributes:
        what: an entry is called in messages, such as repair or format.
    """

    def __init__(self, what: str, entries: Mapping[str, Entry]):
        super().__init__(entries)
        self.what = what

    def named(self, name: str) -> Entry:
        """The entry of a name.

        Raises:
            ValueError: unknown; says the nearest and all that are known.
        """
        if name not in self:
            raise ValueError(f"unknown {self.what} {name!r}; {nearest(name, self)}")
        return self[name]


def by_name(what: str, *entries: Named) -> Entries[Named]:
    """The table of entries that know their own names."""
    return Entries(what, {one.name: one for one in entries})
