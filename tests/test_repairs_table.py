"""The table of repairs: what its entries say to others. A new one is tried in ``test_toy_entries.py``."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.cli.recipe_options import with_options
from shoal.edits.replace.table import REPLACEMENTS, replacement_named
from shoal.fit.fit_plan import fit_plan
from shoal.fit.table import REPAIRS
from shoal.words.model_shape import ModelShape

SHAPE = ModelShape(
    n_layers=32, hidden=4096, ffn=14336, vocabulary=128256, itemsize=2, layer_parameters=218_000_000,
    other_parameters=1_050_000_000, window=8192,
)  # fmt: skip


def test_the_page_of_repairs_names_every_entry():
    page = (Path(__file__).parent.parent / "docs/repair.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .+? \|$", page.split("| `--repair` |")[1].split("\n\n")[0], re.MULTILINE)
    assert rows == list(REPAIRS)
    assert with_options("default", repair="bias").repair == "bias"


@pytest.mark.parametrize("name", REPAIRS)
def test_every_entry_says_what_others_ask(name):
    entry = REPAIRS[name]
    assert entry.name == name and entry.about and "\n" not in entry.about and REPAIRS.named(name) is entry
    small, large = entry.size(SHAPE, 20), entry.size(replace(SHAPE, hidden=8192, ffn=28672), 20)
    for one in ("parameters", "sums", "per_token"):
        assert 0 <= getattr(small, one) <= getattr(large, one)
    assert 0 <= small.layers <= 20 and (small.layers > 0) == (small.parameters > 0)
    assert entry.size(SHAPE, 10).parameters <= small.parameters
    assert small.parameters <= 20 * SHAPE.layer_parameters
    assert (entry.fit is None) == (name == "none")


@pytest.mark.parametrize("replaced", [None, *REPLACEMENTS, "ffn paper"])
@pytest.mark.parametrize("name", REPAIRS)
def test_pairs_are_refused_by_the_entry(name, replaced):
    """Nothing repairs what starts at random; only solve sets replacements, and only those with a closed form; magnitude and
    training on the stream pull in two directions."""
    options = {"form": "paper"} if replaced == "ffn paper" else {}
    replacement = None if replaced is None else replacement_named(replaced.split()[0], options)
    entry = REPAIRS[name]
    for trained_on in (frozenset(), frozenset({"stream"}), frozenset({"logits"})):
        refused = bool(entry.refusal(replacement, trained_on))
        at_random = replaced == "ffn paper" and name != "none"
        unsolved = name == "solve" and not (replacement is not None and replacement.has_closed_form)
        assert refused == (at_random or unsolved or (name == "magnitude" and "stream" in trained_on))


def test_nothing_is_fitted_without_a_repair():
    with pytest.raises(ValueError, match="'none' sets nothing"):
        fit_plan(None, None, None, repair="none", batch_size=1)
