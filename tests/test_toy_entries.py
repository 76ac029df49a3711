"""A new entry is one file and one line of its table: toys of every table that other files do not try already, run to the end.

Toys of repairs, observers, metrics, selectors, scores of units and stages stand beside the laws of their tables.
"""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file
from test_fit_replacements import ShiftReplacement

from shoal import compress, load_recipe
from shoal.edits.base import BaseEdit, Fate, Index
from shoal.edits.drop import Drop
from shoal.edits.plan import Candidate, Plan
from shoal.edits.replace.table import REPLACEMENTS
from shoal.edits.table import EDITS
from shoal.export.exporter import Exported, Exporter
from shoal.export.table import EXPORTERS
from shoal.run.apply import apply_plan
from shoal.run.memory_plan.needs import needs_of
from shoal.run.stage import Made, Stage
from shoal.run.stages.table import STAGES
from shoal.select.request import Selector
from shoal.select.table import SELECTORS
from shoal.train.objectives import OBJECTIVES, Objective
from shoal.words.structure import without_sublayer
from shoal.words.types import Unit

ROOT = Path(__file__).parent.parent


def recipe(small, **changes):
    text = {"sources": [small["text"]], "samples": 12, "length": 16, "selection": 8, "evaluation": 8}
    base = {"model": small["model"], "drop": "2", "guard": 1, "repair": "none", "replace": "none", "text": text}
    return load_recipe("default", {**base, "speed": False, **changes})


class Mute(BaseEdit):
    """The attention of one layer falls silent."""

    edit: Literal["mute"] = "mute"
    layer: Index

    def touches(self):
        return frozenset({Unit("attn", self.layer)})

    def structure(self, before):
        return without_sublayer(before, "attn", (self.layer,))

    def lay_over(self, overlay, view, values: Mapping[str, torch.Tensor]):
        overlay.removed |= self.touches()

    def fate(self, layer):
        return Fate("kept", "mute") if layer == self.layer else None

    def __str__(self):
        return f"layer {self.layer}: mute"


@pytest.fixture
def muting(monkeypatch):
    """The edit, and a selector that proposes it."""

    def propose(evidence, request):
        edits = (Drop(indices=(3, 4)), Mute(layer=2))
        yield Candidate(edits=edits, proposed_by=("mute",))

    monkeypatch.setitem(EDITS, "mute", Mute)
    monkeypatch.setitem(SELECTORS, "mute", Selector(propose, "drops two layers and mutes one", reads=frozenset()))


def test_a_toy_edit_is_chosen_written_and_applied(muting, small, tmp_path):
    outcome = compress(recipe(small, select="mute"), tmp_path / "run")
    plan = Plan.load(outcome.folder / "plan.json")
    assert plan == outcome.plan and plan.edits == (Drop(indices=(3, 4)), Mute(layer=2))
    assert plan.removed_units == {Unit("layer", 3), Unit("layer", 4), Unit("attn", 2)}
    assert "mute" in (outcome.model / "README.md").read_text() and "mute" in (outcome.folder / "report.html").read_text()
    written = load_file(outcome.model / "model.safetensors")
    assert not written["model.layers.2.self_attn.o_proj.weight"].any() and "model.layers.4.mlp.up_proj.weight" not in written
    applied = apply_plan(outcome.folder / "plan.json", tmp_path / "applied")
    again = load_file(applied.path / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in written.items()) and written.keys() == again.keys()


def test_what_is_wrong_with_a_toy_edit_is_said_by_the_table(muting, small, tmp_path):
    plan = compress(recipe(small, select="mute"), tmp_path / "run").plan
    for content, said in (
        ({"edit": "mutee", "layer": 1}, "'mutee' is no kind of edit; did you mean 'mute'"),
        ({"edit": "mute", "layr": 1}, "'edits.0.layr'; did you mean 'layer'"),
        ({"edit": "mute", "layer": "one"}, "edits.0.layer: input should be a valid integer"),
        ({"edit": "mute", "layer": 99}, "layer 99 is not in 0..5"),
    ):
        content = plan.model_dump_json().replace(
            '{"edit":"drop","kind":"layer","indices":[3,4]}', str(content).replace("'", '"')
        )
        with pytest.raises(ValueError) as error:
            Plan.from_json(content)
        assert said in str(error.value) and "\n" not in str(error.value)


def test_a_toy_objective_is_trained_for(small, tmp_path, monkeypatch):
    def mean_gap(student, teacher, mask):
        return (student - teacher).abs().mean()

    monkeypatch.setitem(OBJECTIVES, "gap", Objective("gap", "boundary", mean_gap, "mean absolute difference of the stream"))
    asked = recipe(small, replace="layer", train={"objective": "gap + 0.5*forward_kl", "tokens": 320})
    outcome = compress(asked, tmp_path / "run")
    assert [str(one.config.stages[0].objective) for one in outcome.trained] == ["gap + 0.5*forward_kl"]
    with pytest.raises(ValueError, match="unknown objective 'gab'; did you mean 'gap'"):
        recipe(small, replace="layer", train={"objective": "gab"})
    train = next(one for one in needs_of(asked).stages if one.stage == "train")
    less = next(
        one for one in needs_of(recipe(small, replace="layer", train={"objective": "gap"})).stages if one.stage == "train"
    )
    assert train.parts["work"] >= less.parts["work"], "logits are counted where a term needs them"
    page = (ROOT / "docs/repair.md").read_text().split("| objective |")[1].split("\n\n")[0]
    listed = re.findall(r"^\| `(\w+)(?:\(.*?\))?` \|", page, re.MULTILINE)
    assert {*listed, "gap"} == set(OBJECTIVES), "the page names every entry, so the toy is what it lacks"


def test_a_toy_exporter_writes_a_student(small, shoal, tmp_path, monkeypatch):
    def write(student, out, options):
        out.write_text(f"{student.plan.n_layers_after} layers\n")
        return Exported(out, "a count of layers", ("nobody serves it",))

    toy = Exporter(
        "count", "how many layers it has", lambda student, options: None, write, lambda student, done: {"read": True}
    )
    monkeypatch.setitem(EXPORTERS, "count", toy)
    outcome = compress(recipe(small), tmp_path / "run")
    code, out, err = shoal("export", "count", outcome.folder, "--out", "count.txt")
    assert code == 0 and "nobody serves it" in out + err and (tmp_path / "count.txt").read_text() == "4 layers\n"
    code, _, err = shoal("export", "cuont", outcome.folder, "--out", "again.txt")
    assert code == 2 and "did you mean 'count'" in " ".join(err.split())
    page = (ROOT / "docs/serving.md").read_text()
    assert all(f"| `{name}` |" in page for name in EXPORTERS if name != "count")


def test_a_toy_replacement_is_solved_and_ships_its_own_code(small, tmp_path, monkeypatch):
    monkeypatch.setitem(REPLACEMENTS, "shift", ShiftReplacement)
    asked = recipe(small, replace="shift", repair="solve", polish="hidden", train={"tokens": 320}, fit={"tokens": 1600})
    parts = {one.stage: one.parts for one in needs_of(asked).stages}
    assert parts["train"]["trained"] > 0, "the planner counts its parameters"
    outcome = compress(asked, tmp_path / "run")
    code = (outcome.model / "modeling_shoal.py").read_text()
    assert "class Shift(StreamModule)" in code and outcome.plan.replacements[0].replacement == "shift"
    read = (
        "import sys; from transformers import AutoModelForCausalLM as A; "
        "print(A.from_pretrained(sys.argv[1], trust_remote_code=True))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", read, str(outcome.model)], capture_output=True, text=True, cwd="/", check=False
    )
    assert "Shift()" in shown.stdout, shown.stderr


def test_a_toy_stage_runs_and_is_planned(small, tmp_path, monkeypatch):
    def run(state, folder):
        (folder / "toy.txt").write_text("toy")
        return Made(state, ("toy.txt",))

    toy = Stage("toy", "plays", lambda state: "k", run, lambda state, folder: state, lambda sizes: sizes.need("toy", toys=123))
    monkeypatch.setattr("shoal.run.stages.table.STAGES", [*STAGES, toy])
    monkeypatch.setattr("shoal.run.compress.STAGES", [*STAGES, toy])
    monkeypatch.setattr("shoal.run.memory_plan.needs.STAGES", [*STAGES, toy])
    assert needs_of(recipe(small)).stages[-1].parts["toys"] == 123
    assert compress(recipe(small), tmp_path / "run").model and (tmp_path / "run" / "toy.txt").exists()


TOYS = """
from dataclasses import replace
from shoal.edits.replace import table as replacements
from shoal.export import table as exporters
from shoal.fit import table as repairs
from shoal.measure import observers
from shoal.prune import table as pruners
from shoal.recipes import table as recipes
from shoal.select import table as selectors
for table, like in (
    (replacements.REPLACEMENTS, "free"), (exporters.EXPORTERS, "mergekit"), (repairs.REPAIRS, "bias"),
    (observers.OBSERVERS, "cka"), (recipes.RECIPES, "sleb"), (selectors.SELECTORS, "lowest"), (pruners.PRUNERS, "wanda"),
):
    table["toy" + like] = table[like]
import sys
sys.argv = ["shoal", *sys.argv[1:]]
from shoal.cli import main
main()
"""


@pytest.mark.parametrize(
    ("verb", "toys"),
    [
        ("compress", ["toyfree", "toybias", "toylowest", "toysleb"]),
        ("export", ["toymergekit"]),
        ("scan", ["toycka"]),
        ("prune", ["toywanda"]),
    ],
)
def test_the_help_of_the_command_names_toys(verb, toys):
    shown = subprocess.run([sys.executable, "-c", TOYS, verb, "--help"], capture_output=True, text=True, check=False)
    said = re.sub(r"[│\s]+", "", shown.stdout)
    assert [toy for toy in toys if toy not in said] == [], shown.stderr
