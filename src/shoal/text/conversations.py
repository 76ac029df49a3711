"""The turns of every row of a source that holds conversations, in whatever form rows are read."""

from collections.abc import Iterable, Iterator

from shoal.text.formats import TextRow, hub_rows
from shoal.text.rows import Turn, text_of
from shoal.text.sources import ROW_FORMATS, files_of, path_of, suffix_of


def conversations(sources: Iterable[str], field: str | None = None) -> Iterator[tuple[str, list[Turn]]]:
    """Where each row stands, for messages, and its turns.

    Args:
        field: column of the rows that holds the turns; found unless given.
    Raises:
        ValueError: a source or a row that holds plain text.
    """
    for where, row in _rows(sources):
        turns: list[list[Turn]] = []

        def keep(found: list[Turn], into: list[list[Turn]] = turns) -> str:
            into.append(found)
            return ""

        text_of(row, where, keep, field=field)
        if not turns:
            raise ValueError(f"{where} holds plain text, no turns; give conversations (rows with messages)")
        yield where, turns[0]


def _rows(sources: Iterable[str]) -> Iterator[TextRow]:
    for source in sources:
        if source.startswith("hub:"):
            yield from hub_rows(source.removeprefix("hub:"))
            continue
        for path in files_of(path_of(source)):
            reader = ROW_FORMATS.get(suffix_of(path))
            if reader is None:
                raise ValueError(f"{path} holds plain text, no turns; give conversations (rows with messages)")
            yield from reader(path)
