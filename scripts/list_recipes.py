"""Write the lists of docs/recipes.md, and docs/recipe_keys.md and docs/names.md: run it after an entry or a key changed."""

from __future__ import annotations

from pathlib import Path

from shoal.recipes.listing import as_markdown_table, open_points
from shoal.recipes.recipe_keys import keys_page
from shoal.run.every_name import names_page

DOCS = Path(__file__).parent.parent / "docs"
PAGE, KEYS, NAMES = DOCS / "recipes.md", DOCS / "recipe_keys.md", DOCS / "names.md"


def filled(page: str) -> str:
    """The page with what stands between ``<!-- recipes -->`` or ``<!-- papers -->`` and ``<!-- end -->`` written anew."""
    for name, content in (("recipes", as_markdown_table()), ("papers", open_points())):
        before, rest = page.split(f"<!-- {name} -->")
        after = rest.split("<!-- end -->", 1)[1]
        page = f"{before}<!-- {name} -->\n\n{content}\n\n<!-- end -->{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
    KEYS.write_text(keys_page())
    NAMES.write_text(names_page())
