"""One table of repairs: a new one is a file and a line, and is then found wherever repairs are named."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from shoal import compress, load_recipe
from shoal.cli.recipe_options import with_options
from shoal.edits.replace.table import REPLACEMENTS, replacement_named
from shoal.fit.fit_plan import fit_plan
from shoal.fit.repair import Repair, RepairSize
from shoal.fit.sites.of_layer import Sites
from shoal.fit.sweep import Sweep
from shoal.fit.table import REPAIRS, repair_named, repairs_said
from shoal.fit.targets import before_cuts
from shoal.run.memory_plan.needs import needs_of
from shoal.words.model_shape import ModelShape

SHAPE = ModelShape(
    n_layers=32, hidden=4096, ffn=14336, vocabulary=128256, itemsize=2, layer_parameters=218_000_000,
    other_parameters=1_050_000_000, window=8192,
)  # fmt: skip


@pytest.fixture
def toy(monkeypatch):
    """The MLP's map of the layer before the cut; not with replacements."""
    entry = Repair(
        "toy",
        "a map of the layer before the cut, to play with",
        lambda: Sweep(before_cuts, Sites(("mlp",))),
        lambda shape, n_kept: RepairSize(parameters=7, layers=1, sums=12345),
        conflict=lambda replacement, trained_on: "toys go with plain removal" if replacement is not None else "",
    )
    monkeypatch.setitem(REPAIRS, "toy", entry)


def recipe(small, **changes):
    text = {"sources": [small["text"]], "samples": 12, "length": 16, "selection": 8, "evaluation": 8}
    return load_recipe("default", {"model": small["model"], "drop": "2", "text": text, "fit": {"tokens": 1600}, **changes})


def test_a_toy_repair_runs_from_its_table_line_alone(toy, small, tmp_path):
    outcome = compress(recipe(small, repair="toy"), tmp_path / "run")
    assert outcome.repaired.repair == "toy" and outcome.repaired.kept
    assert outcome.repaired.kl_after < outcome.repaired.kl_before
    assert any(one.kl_plain is not None for one in outcome.plan.candidates), "its candidates were compared repaired"
    assert (outcome.model / "model.safetensors").exists()


def test_recipe_planner_and_words_read_the_line(toy, small):
    assert with_options("default", repair="toy").repair == "toy"
    with pytest.raises(ValueError, match="toys go with plain removal"):
        recipe(small, repair="toy", replace="layer")
    with pytest.raises(ValueError, match="unknown repair 'tyo'; did you mean 'toy'"):
        recipe(small, repair="tyo")
    stages = {one.stage: one.parts for one in needs_of(recipe(small, repair="toy")).stages}
    assert stages["fit"]["sums"] == 12345
    assert "toy: a map of the layer before the cut, to play with" in repairs_said()
    page = (Path(__file__).parent.parent / "docs/repair.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .+? \|$", page.split("| `--repair` |")[1].split("\n\n")[0], re.MULTILINE)
    assert [*rows, "toy"] == list(REPAIRS), "the page names every entry, so the toy is what it lacks"


def test_the_help_of_the_command_says_what_the_table_says():
    add = "table.REPAIRS['toy'] = replace(table.REPAIRS['bias'], name='toy', about='to play with')"
    code = (
        f"from dataclasses import replace; from shoal.fit import table; {add}; import sys; "
        "sys.argv = ['shoal', 'compress', '--help']; from shoal.cli import main; main()"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "toy: to play with" in " ".join(re.sub(r"[│\s]+", " ", shown.stdout).split())


@pytest.mark.parametrize("name", REPAIRS)
def test_every_entry_says_what_others_ask(name):
    entry = REPAIRS[name]
    assert entry.name == name and entry.about and "\n" not in entry.about and repair_named(name) is entry
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
