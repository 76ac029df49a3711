"""A table in the terminal: figures and keys are never cut, whatever its width.

Columns that do not fit beside each other continue in a second block below, which begins with the keys again. Words fold
between words. Nothing that a stranger wrote is read as markup, and no control character of it reaches the terminal.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from shoal.show.clean_text import clean
from shoal.show.table import Column, Table

GAP = 3  # The gap is between two columns, as rich draws this box.
NARROWEST, WIDEST = 18, 30  # A column of words that folds has a width between these; its longest word decides.
KEY_SHARE = 0.5  # The keys take at most this share of the width.


def drawn(table: Table, width: int) -> Iterator[Any]:
    """The blocks of a table for a terminal of ``width`` characters, as values that rich prints."""
    from rich import box
    from rich.table import Table as RichTable

    cells = [[clean(cell) for cell in row] for row in table.texts]
    columns = [[table.columns[j].name, *(row[j] for row in cells)] for j in range(len(table.columns))]
    wishes = [max(len(line) for cell in column for line in cell.split("\n")) for column in columns]
    needs = [_needed(column, texts) for column, texts in zip(table.columns, columns, strict=True)]
    # Keys fold between words where all columns then stand side by side, and take half of the width at most elsewhere.
    room, word = width - sum(needs[1:]) - GAP * len(needs[1:]), _longest_word(columns[0])
    needs[0] = min(wishes[0], room if room >= max(word, NARROWEST) else max(NARROWEST, int(KEY_SHARE * width)))
    if table.caption:
        yield _words(table.caption, "bold")
    for place, block in enumerate(_blocks(needs, width)):
        if place:
            yield ""
        shown = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        spare = width - sum(needs[j] + GAP for j in block) + GAP
        for j in block:
            more = max(0, min(spare, wishes[j] - needs[j]))
            spare -= more
            side: Literal["left", "right"] = "right" if table.columns[j].is_number else "left"
            shown.add_column(_words(table.columns[j].name), justify=side, overflow="fold", width=needs[j] + more)
        for index, row in enumerate(cells):
            if index in table.breaks:
                shown.add_section()
            shown.add_row(*[_words(row[j]) for j in block], style="bold" if index == table.strong else None)
        yield shown
    for note in table.notes:
        yield _words(note)
    yield ""


def _needed(column: Column, texts: Sequence[str]) -> int:
    """Characters that a column takes at least: whole figures, the longest word of the heading, some of folding words."""
    heading, *cells = texts
    longest = max((len(line) for cell in cells for line in cell.split("\n")), default=0)
    narrow = min(longest, WIDEST, max(NARROWEST, _longest_word(cells)))
    return max(_longest_word([heading]), longest if column.is_number else narrow)


def _longest_word(texts: Sequence[str]) -> int:
    return max((len(word) for text in texts for word in text.split()), default=0)


def _blocks(needs: Sequence[int], width: int) -> Iterator[list[int]]:
    """Columns side by side as far as they fit, the key column first in every block."""
    block, used = [0], needs[0]
    for j, need in enumerate(needs[1:], start=1):
        if used + GAP + need > width and len(block) > 1:
            yield block
            block, used = [0], needs[0]
        block.append(j)
        used += GAP + need
    yield block


def _words(text: str, style: str = "") -> Any:
    from rich.text import Text

    return Text(clean(text), style=style)
