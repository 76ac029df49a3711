"""docs/replacements.md says of every replacement what the table of the source says."""

import re
from pathlib import Path

import pytest
from families import tiny_model

from shoal.edits.replace.described import StreamReplacement
from shoal.edits.replace.table import REPLACEMENTS, replacement_named
from shoal.engine.view import DecoderView

PAGE = (Path(__file__).parent.parent / "docs/replacements.md").read_text()
ROWS = {
    cells[0].strip("` "): [cell.strip() for cell in cells[1:]]
    for cells in (line.strip("|").split("|") for line in PAGE.splitlines() if re.match(r"^\| `\w+` \| .*\| (stock|code)", line))
    if len(cells) == 6
}
STARTS = {"inherits": "its span's first layers", "zero": "removal"}


@pytest.fixture(scope="module")
def view():
    return DecoderView(tiny_model("llama", n_layers=3))


def test_the_rows_are_the_table():
    assert list(ROWS) == list(REPLACEMENTS)


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_options_start_and_layouts(name):
    options, _, start, _, layouts = ROWS[name]
    assert set(re.findall(r"`(\w+)`", options)) == set(REPLACEMENTS[name].model_fields) - {"layout"}
    assert start == STARTS[replacement_named(name).starts_as]
    assert tuple(layouts.split(", ")) == REPLACEMENTS[name].layouts


@pytest.mark.parametrize("name", [name for name, kind in REPLACEMENTS.items() if issubclass(kind, StreamReplacement)])
def test_own_parameters(name, view):
    formula = ROWS[name][3].strip("`")
    resolved = replacement_named(name, {"layout": "code"}).resolved(view)
    assert eval(formula, {"d": 32, "w": 48}) == resolved.n_own_parameters(32)


def test_the_formula_of_a_low_rank(view):
    resolved = replacement_named("linear", {"layout": "code", "rank": 5}).resolved(view)
    formula = re.search(r"`linear:rank=r` has\s+`([^`]+)`", PAGE)
    assert formula and eval(formula[1], {"d": 32, "r": 5}) == resolved.n_own_parameters(32)
