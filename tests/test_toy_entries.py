"""A new entry is one file and one line of its table, for nine kinds of entries.

Each toy is added through its table alone, and is then found in the recipe's validation, the help of the command, the lists of
the documents, the planner, and a run. Not every kind occurs in every place:

* an edit has no key in a recipe, no option and no cost of its own: selectors propose it, and a plan's file has its name;
* an export format belongs to no recipe and to no plan of memory: it is written behind a finished run, by a verb of its own;
* a stage has no key and no option of its name; the recipe's keys of what it does ask for it.
"""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from toys import NAMES, TOYS, Mute, propose_mute

from shoal import compress, load_recipe
from shoal.edits.drop import Drop
from shoal.edits.plan import Plan
from shoal.measure.metrics import METRICS
from shoal.measure.scan import Scan
from shoal.run.apply import apply_plan
from shoal.run.every_name import TABLES, names_page
from shoal.run.memory_plan.needs import needs_of
from shoal.select.request import Selector
from shoal.select.search.search_record import SearchRecord
from shoal.select.table import SELECTORS
from shoal.words.structure import Size
from shoal.words.types import Span, Unit


def recipe(small, **changes):
    text = {"sources": [small["text"]], "samples": 12, "length": 16, "selection": 8, "evaluation": 8}
    base = {"model": small["model"], "drop": "2", "guard": 1, "repair": "none", "replace": "none", "text": text}
    return load_recipe("default", {**base, "speed": False, **changes})


@pytest.fixture
def add(monkeypatch):
    """Add the toy of a kind, by one line of one table."""

    def added(kind):
        table, entry = TOYS[kind]
        monkeypatch.setitem(table, NAMES[kind], entry)

    return added


ASKED = {
    "selector": lambda name: {"select": name},
    "metric": lambda name: {"select": "greedy", "search": {"metric": name}},
    "observer": lambda name: {"observers": [name], **({"by": "toy/rest"} if name == "toy" else {})},
    "repair": lambda name: {"repair": name, "fit": {"tokens": 1600}},
    "replacement": lambda name: {"replace": name, "repair": "solve", "polish": "hidden", "train": {"tokens": 320}},
    "objective": lambda name: {"replace": "layer", "train": {"objective": f"{name} + 0.5*forward_kl", "tokens": 320}},
}
"""The keys of a recipe that ask for an entry of a name."""


@pytest.mark.parametrize("kind", ASKED)
def test_a_recipe_knows_a_toy_and_tells_the_nearest(kind, small, add):
    name = NAMES[kind]
    typo = name[0] + name[2] + name[1] + name[3:]
    with pytest.raises(ValueError, match=name):
        recipe(small, **ASKED[kind](name))
    add(kind)
    assert recipe(small, **ASKED[kind](name)).model == small["model"]
    with pytest.raises(ValueError, match=f"'{typo}'; did you mean '{name}'"):
        recipe(small, **ASKED[kind](typo))


def test_conflicts_are_those_that_the_entry_states(small, add):
    add("repair")
    with pytest.raises(ValueError, match="toys go with plain removal"):
        recipe(small, repair="toy", replace="layer")
    add("objective")
    with pytest.raises(ValueError, match="'magnitude' scales the stream"):
        recipe(small, repair="magnitude", train={"objective": "toy"})
    add("observer")
    with pytest.raises(ValueError, match="another score than toy/rest"):
        recipe(small, observers=["toy"], by="toy/rest", rounds=2, select="lowest")


def test_what_is_wrong_with_a_toy_edit_is_said_by_the_table(add):
    add("edit")
    plan = Plan(
        source="s", source_hash="h", teacher="s", n_layers=6,
        before=Size(layers=6, parameters=6), after=Size(layers=4, parameters=4),
        edits=(Drop(indices=(3, 4)), Mute(layer=2)),
    )  # fmt: skip
    assert Plan.from_json(plan.model_dump_json()) == plan
    for content, said in (
        ({"edit": "tyo", "layer": 1}, "'tyo' is no kind of edit; did you mean 'toy'"),
        ({"edit": "toy", "layr": 1}, "'edits.0.layr'; did you mean 'layer'"),
        ({"edit": "toy", "layer": "one"}, "edits.0.layer: input should be a valid integer"),
        ({"edit": "toy", "layer": 99}, "layer 99 is not in 0..5"),
    ):
        content = plan.model_dump_json().replace(
            '{"edit":"drop","kind":"layer","indices":[3,4]}', str(content).replace("'", '"')
        )
        with pytest.raises(ValueError) as error:
            Plan.from_json(content)
        assert said in str(error.value) and "\n" not in str(error.value)


HELP = """
import io, sys
from contextlib import redirect_stdout
from shoal.edits.replace import table as replacements
from shoal.export import table as exporters
from shoal.fit import table as repairs
from shoal.measure import metrics, observers
from shoal.prune import table as pruners
from shoal.recipes import table as recipes
from shoal.select import table as selectors
from shoal.train import objectives
from shoal.train.heal import table as healing
for table, like in (
    (replacements.REPLACEMENTS, "free"), (exporters.EXPORTERS, "mergekit"), (repairs.REPAIRS, "bias"),
    (observers.OBSERVERS, "cka"), (metrics.METRICS, "js"), (recipes.RECIPES, "sleb"), (selectors.SELECTORS, "lowest"),
    (pruners.PRUNERS, "wanda"), (pruners.ALLOCATORS, "owl"), (objectives.OBJECTIVES, "cosine"), (healing.TRAINABLE, "norms"),
):
    table["toy" + like] = table[like]
from shoal.cli import main
for verb in ("compress", "scan", "heal", "export", "prune"):
    sys.argv = ["shoal", verb, "--help"]
    print("verb", verb, flush=True)
    try:
        main()
    except SystemExit:
        pass
"""


def test_the_help_of_the_command_names_toys():
    """All tables whose names are options or arguments, in one new process: a help text is made when its verb is imported."""
    shown = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False)
    said = {one.split()[0]: re.sub(r"[│\s]+", "", one) for one in shown.stdout.split("verb ")[1:]}
    wanted = {
        "compress": ["toyfree", "toybias", "toyjs", "toylowest", "toysleb", "toywanda", "toynorms"],
        "scan": ["toycka"],
        "heal": ["toynorms", "toycosine"],
        "export": ["toymergekit"],
        "prune": ["toywanda", "toyowl"],
    }
    missing = [(verb, toy) for verb, toys in wanted.items() for toy in toys if toy not in said.get(verb, "")]
    assert missing == [], shown.stderr


@pytest.mark.parametrize("kind", TOYS)
def test_the_page_of_names_lists_a_toy(kind, add):
    """docs/names.md is what ``names_page`` returns (tests/test_docs.py)."""
    table, entry = TOYS[kind]
    row = f"| `{NAMES[kind]}` | {entry.about} |"
    assert row not in names_page().splitlines() and any(table is one.entries for one in TABLES)
    add(kind)
    assert row in names_page().splitlines()


def planned(small, **changes):
    return {one.stage: one for one in needs_of(recipe(small, **changes)).stages}


@pytest.mark.parametrize(
    ("kind", "stage", "part"),
    [
        ("selector", "plan", "cache"),
        ("observer", "scan", "toy"),
        ("repair", "fit", "sums"),
        ("replacement", "train", "trained"),
        ("objective", "train", "work"),
        ("stage", "toy", "toys"),
    ],
)
def test_the_planner_counts_what_a_toy_states(kind, stage, part, small, add):
    add(kind)
    counted = planned(small, **(ASKED[kind](NAMES[kind]) if kind in ASKED else {}))[stage].parts[part]
    stated = {"observer": 12345, "repair": 12345, "stage": 123}
    assert counted == stated[kind] if kind in stated else counted > 0


def test_the_planner_counts_logits_only_where_a_toy_compares_them(small, add, monkeypatch):
    add("metric")
    of_states = planned(small, **ASKED["metric"]("toy"))["plan"].parts["work"]
    monkeypatch.setitem(METRICS, "toy", replace(METRICS["toy"], needs="logits"))
    assert of_states < planned(small, **ASKED["metric"]("toy"))["plan"].parts["work"]
    add("objective")
    of_states, both = (
        planned(small, replace="layer", train={"objective": one, "batch": 64, "micro_batch": 64})["train"].parts["work"]
        for one in ("toy", "toy + forward_kl")
    )
    assert of_states < both


def selector_ran(outcome):
    assert outcome.plan.removed_layers == (3, 4) and outcome.scan is None, "it reads no scores, so nothing is scanned"


def metric_decided(outcome):
    assert SearchRecord.load(outcome.folder / "search.json").metric == "toy"


def observer_observed(outcome):
    table = Scan.load(outcome.folder)["toy/rest"]
    assert table[Span(1, 3)] == table.n_samples + 2


def repair_was_fitted(outcome):
    assert outcome.repaired.repair == "toy" and outcome.repaired.kept
    assert outcome.repaired.kl_after < outcome.repaired.kl_before


def replacement_was_written(outcome):
    """The checkpoint brings the module's own code, and plain transformers runs it."""
    code = (outcome.model / "modeling_shoal.py").read_text()
    assert "class Shift(StreamModule)" in code and outcome.plan.replacements[0].replacement == "shift"
    read = (
        "import sys; from transformers import AutoModelForCausalLM as A; "
        "print(A.from_pretrained(sys.argv[1], trust_remote_code=True))"
    )
    command = [sys.executable, "-c", read, str(outcome.model)]
    shown = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert "Shift()" in shown.stdout, shown.stderr


def objective_was_trained_for(outcome):
    assert [str(one.config.stages[0].objective) for one in outcome.trained] == ["toy + 0.5*forward_kl"]


def stage_ran(outcome):
    assert (outcome.folder / "toy.txt").read_text() == "toy"


USED = {
    "selector": selector_ran,
    "metric": metric_decided,
    "observer": observer_observed,
    "repair": repair_was_fitted,
    "replacement": replacement_was_written,
    "objective": objective_was_trained_for,
    "stage": stage_ran,
}


@pytest.mark.parametrize("kind", USED)
def test_compress_runs_with_a_toy(kind, small, add, tmp_path):
    add(kind)
    outcome = compress(recipe(small, **(ASKED[kind](NAMES[kind]) if kind in ASKED else {})), tmp_path / "run")
    assert (outcome.model / "config.json").is_file()
    USED[kind](outcome)


def test_compress_runs_with_a_toy_edit_and_apply_reads_it(small, add, tmp_path, monkeypatch):
    add("edit")
    monkeypatch.setitem(SELECTORS, "mute", Selector(propose_mute, "drops two layers and mutes one", reads=frozenset()))
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


def test_export_runs_with_a_toy(small, add, shoal, tmp_path):
    add("exporter")
    outcome = compress(recipe(small), tmp_path / "run")
    code, out, err = shoal("export", "toy", outcome.folder, "--out", "count.txt")
    assert code == 0 and "nobody serves it" in out + err and (tmp_path / "count.txt").read_text() == "4 layers\n"
    code, _, err = shoal("export", "tyo", outcome.folder, "--out", "again.txt")
    assert code == 2 and "did you mean 'toy'" in " ".join(err.split())
