"""Markdown of texts that strangers wrote: a table for the model card, a code block, and words that stay words."""

import re

from shoal.show.clean_text import clean
from shoal.show.table import Table

ACTIVE = re.compile(r"([\\`*\[\]|]|(?<!\w)_|_(?!\w))")
"""Characters that markdown would act on inside a line; an underscore inside a word is none."""


def words(text: str) -> str:
    """Text on one line that markdown and HTML show as it is."""
    flat = " ".join(clean(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return ACTIVE.sub(r"\\\1", flat)


def coded(text: str) -> str:
    """A name as code on one line."""
    return f"`{' '.join(clean(text).replace('`', chr(39)).split())}`"


def table(found: Table) -> str:
    """The rows, and the notes under them; the caption is the heading that stands above."""
    lines = [_row([column.name for column in found.columns])]
    lines.append("|" + "|".join("---:" if column.is_number else "---" for column in found.columns) + "|")
    lines += [_row(cells) for cells in found.texts]
    return "\n".join(lines) + "".join(f"\n\n{words(note)}" for note in found.notes)


def fenced(text: str, language: str = "") -> str:
    """A code block whose fence is longer than any run of backticks in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{clean(text)}\n{fence}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(words(cell) for cell in cells)} |"
