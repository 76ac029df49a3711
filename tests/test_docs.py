"""The documents are true: their Python runs, their lists of rooms, recipes and links are those of the source."""

import re
from pathlib import Path

import pytest
from test_import_contract import ORDER, SRC, room_of

from shoal.measure.metrics import METRICS
from shoal.measure.observers import OBSERVERS
from shoal.measure.unit_scores import UNIT_SCORES
from shoal.recipes.listing import as_markdown_table, open_points
from shoal.recipes.recipe import Recipe
from shoal.recipes.recipe_file import load_recipe
from shoal.recipes.recipe_keys import described, keys_page, sections
from shoal.run.every_name import names_page

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_python_of_the_concepts_page_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/concepts.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, {})
    assert len(re.findall(r"without layer \d+ +KL \d\.\d+", capsys.readouterr().out)) == 16


def test_the_table_of_rooms_is_the_source_in_the_order_of_the_contract():
    section = (ROOT / "docs/concepts.md").read_text().split("## Where things live")[1]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    there = {room_of(path.relative_to(SRC).as_posix()) for path in SRC.rglob("*.py")} - {"__init__"}
    assert listed == [room for room in ORDER if room in there]


def test_the_tree_of_the_readme_is_the_source_in_the_order_of_the_contract():
    tree = (ROOT / "README.md").read_text().split("src/shoal/\n")[1].split("```")[0]
    there = {room_of(path.relative_to(SRC).as_posix()) for path in SRC.rglob("*.py")} - {"__init__"}
    assert re.findall(r"^  (\w+)/ ", tree, re.MULTILINE) == [room for room in ORDER if room in there]
    assert all((SRC / name).is_file() for name in ("measure/criteria.py", "measure/metrics.py"))
    inside = re.findall(r"(\w+)/ \(|; (\w+)/ ", tree)
    assert inside and all(list(SRC.glob(f"*/{one or other}")) for one, other in inside)


def test_files_that_the_concepts_page_names_are_there():
    section = (ROOT / "docs/concepts.md").read_text().split("## Where things live")[1]
    named = re.findall(r"`(\w+/[\w/]+\.py)`", section)
    assert len(named) >= 9 and [name for name in named if not (SRC / name).is_file()] == []


def test_the_lists_of_recipes_are_those_of_the_table():
    """``python scripts/list_recipes.py`` writes them."""
    page = (ROOT / "docs/recipes.md").read_text()
    for content in (as_markdown_table(), open_points()):
        assert f" -->\n\n{content}\n\n<!-- end -->" in page


def test_the_page_of_keys_is_that_of_the_records():
    """``python scripts/list_recipes.py`` writes it; every field of every record has an entry in its docstring, and no other."""
    assert (ROOT / "docs/recipe_keys.md").read_text() == keys_page()
    for _, kind in sections(Recipe):
        assert sorted(name for names, _ in described(kind) for name in names) == sorted(kind.model_fields), kind


def test_the_page_of_names_is_that_of_the_tables():
    """``python scripts/list_recipes.py`` writes it."""
    assert (ROOT / "docs/names.md").read_text() == names_page()


def test_the_table_of_metrics_is_complete():
    section = (ROOT / "docs/concepts.md").read_text().split("## Metrics")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(METRICS)


def test_the_table_of_scores_of_units_is_complete():
    section = (ROOT / "docs/concepts.md").read_text().split("## Scores of units")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [
        *UNIT_SCORES,
        *(f"{name}_METRIC" for name in ("left_out", "windowed", "shapley")),
    ]
    assert all(f"`{table}`" in section for one in UNIT_SCORES.values() for table in one.tables)


def test_every_observer_is_named():
    assert set(re.findall(r"`--observe (\w+)`", (ROOT / "docs/concepts.md").read_text())) == set(OBSERVERS)


def test_recipes_in_the_documents_are_recipes(tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/recipes.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        (tmp_path / "recipe.yaml").write_text(block)
        assert load_recipe(str(tmp_path / "recipe.yaml")).model == "org/name"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_files_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text())
    for link in links:
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, link
