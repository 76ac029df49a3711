"""What the table of recipes says to people: a list for the help, two parts of docs/recipes.md, and BibTeX for the card."""

import textwrap

from shoal.recipes.table import RECIPES

WIDTH = 128  # A line of docs/recipes.md has that many characters.


def recipes_said() -> list[tuple[str, str]]:
    """Name and one line of all entries, for the help."""
    return [(name, f"{one.chooses}. In place: {one.then}".replace("`", "")) for name, one in RECIPES.items()]


def as_markdown_table() -> str:
    """The list of docs/recipes.md: a row per recipe."""
    rows = ["| recipe | chooses | guard | in place of the span | text of the paper | paper |", "|---|---|---|---|---|---|"]
    for name, one in RECIPES.items():
        n = one.recipe.guard
        guard = "off" if n == 1 else f"{n} candidates, each repaired"
        papers = ", ".join(f"[{paper}](https://arxiv.org/abs/{paper})" for paper in one.recipe.papers)
        rows.append(f"| `{name}` | {one.chooses} | {guard} | {one.then} | {one.text} | {papers} |")
    return "\n".join(rows)


def open_points() -> str:
    """The list of docs/recipes.md of what differs from each paper."""
    said = (f"**{one.title}** (arXiv {one.recipe.papers[0]}). {one.differs}" for one in RECIPES.values() if one.differs)
    return "\n".join(textwrap.fill(f"* {point}", WIDTH, subsequent_indent="  ", break_long_words=False) for point in said)


def bibtex(arxiv: str) -> str:
    """The entry of a paper; for a paper without one, an entry that names its number and where it is."""
    known = (one.bibtex for one in RECIPES.values() if one.bibtex and one.recipe.papers[0] == arxiv)
    bare = (
        f"@misc{{arxiv{arxiv.replace('.', '_')},\n  note = {{arXiv:{arxiv}}},\n  url  = {{https://arxiv.org/abs/{arxiv}}}\n}}"
    )
    return next(known, bare)
