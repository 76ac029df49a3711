"""What a run takes at most: sizes as the models have them, terms that add up, entries that state their own, and advice."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from families import FAMILIES, tiny_model
from world import write_model

from shoal.cli import main
from shoal.edits.replace.family_mlp import forms_of
from shoal.edits.replace.table import REPLACEMENTS, replacement_named
from shoal.engine.opening import Opening
from shoal.engine.view import DecoderView
from shoal.recipes.recipe_file import load_recipe, merge
from shoal.run.asking import budget_of
from shoal.run.memory_plan.machine import Machine
from shoal.run.memory_plan.needs import needs_of, sizes_of, stage_needs, unopened_amounts
from shoal.run.memory_plan.shape import shape_of
from shoal.run.memory_plan.sizes import TRAINED_BYTES
from shoal.run.resource_amounts import computed_amounts
from shoal.select.budget import resolve
from shoal.select.model_size import NOTHING, model_size
from shoal.train.heal.config import HealConfig
from shoal.train.heal.ranks import RankEvidence
from shoal.train.heal.table import TRAINABLE
from shoal.words.model_shape import ModelShape
from shoal.words.numbers import in_bytes
from shoal.words.types import Span, Unit

GB = 10**9
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_model(tmp_path_factory.mktemp("model")))


def ask(model, changes=None, **options):
    base = {"model": model, "drop": "2", "replace": "layer", "text": {"length": 16}}
    return needs_of(load_recipe("default", merge(base, changes or {})), Opening(**options))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_shape_is_that_of_the_model(family, tmp_path):
    model = tiny_model(family, n_layers=4)
    model.save_pretrained(tmp_path)
    found, size = shape_of(str(tmp_path)), model_size(DecoderView(model))
    assert (found.n_layers, found.layer_parameters) == (4, max(size.layers))
    assert found.other_parameters + sum(size.layers) == size.total
    assert found.hidden == DecoderView(model).hidden_size and found.ffn > 0
    assert shape_of(str(tmp_path), dtype="bfloat16").itemsize == 2


@pytest.mark.parametrize("resident", ["all", "1"])
@pytest.mark.parametrize(
    "changes", [{}, {"replace": "none", "repair": "sweep"}, {"replace": "none"}, {"replace": "none", "repair": "auto"}]
)
def test_parts_add_up_and_stages_are_those_of_the_run(model, changes, resident):
    found = ask(model, changes, resident=resident)
    assert all(one.memory == sum(one.parts.values()) for one in found.stages)
    more = {"replace": ["train"], "repair": ["fit"]}
    middle = [] if changes.get("replace") == "none" else more["replace"]
    middle += more["repair"] if "repair" in changes else []
    heals = changes.get("repair") == "auto" and resident == "all"
    assert [one.stage for one in found.stages] == [
        "scan",
        "plan",
        *middle,
        *(["cut", "heal"] if heals else ["model"]),
        "evaluation",
    ]
    assert found.peak.memory == max(one.memory for one in found.stages) and found.fits and not found.advice


def test_fewer_layers_in_memory_take_less_and_one_more_is_read_ahead(model):
    weights = {resident: ask(model, resident=resident).stages[0].parts["weights"] for resident in ("all", "1", "2", "9")}
    shape = shape_of(model)
    assert weights["1"] == shape.other_bytes + 2 * shape.layer_bytes
    assert weights["2"] - weights["1"] == shape.layer_bytes
    assert weights["all"] == weights["9"] == shape.other_bytes + 6 * shape.layer_bytes


@pytest.mark.parametrize(
    ("stage", "part", "changes"),
    [
        ("train", "work", {"train": {"micro_batch": 4096}}),
        ("train", "states", {"text": {"selection": 10**6}}),
        ("plan", "states", {"replace": "none", "repair": "none", "guard": 200}),
        ("fit", "states", {"replace": "none", "repair": "sweep", "fit": {"tokens": 10**6}}),
        ("scan", "states", {"text": {"samples": 10**5}}),
    ],
)
def test_what_takes_more_is_said_to_take_more(stage, part, changes, model):
    """Streamed, so that states of all samples count."""
    base = {key: value for key, value in changes.items() if key in ("replace", "repair")}
    before, after = ask(model, base, resident="1"), ask(model, changes, resident="1")
    of = [{one.stage: one for one in found.stages}[stage].parts[part] for found in (before, after)]
    assert of[0] < of[1]


AT_A_BUDGET = [
    {"drop": "25%kv"}, {"drop": "20%macs"}, {"drop": "20%active"}, {"drop": "{layer}KB"}, {"drop": "20%params,40%kv"},
    {"size": "{left}KB"}, {"parameters": "{active} active"}, {"drop": "34%sublayers"},
]  # fmt: skip


@pytest.mark.in_turn(3)
@pytest.mark.parametrize("budget", AT_A_BUDGET, ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mixtral"])
def test_every_budget_cuts_as_many_layers_in_the_plan_of_memory_as_in_the_run(family, budget, tmp_path):
    """Bytes were read as layers: 2GB asked for the removal of "16666666666.7% of the as if all layers were alike"."""
    model = tiny_model(family, n_layers=8)
    model.save_pretrained(tmp_path)
    view = DecoderView(model)
    amounts = computed_amounts(view, context=16)
    layer, whole = amounts["bytes"].of_unit[Unit("layer", 3)], amounts["bytes"].total
    figures = {"layer": 2 * layer / 1000, "left": (whole - 3 * layer) / 1000, "active": int(0.7 * amounts["active"].total)}
    said = {name: value.format(**{k: f"{v:.3f}" if k != "active" else v for k, v in figures.items()})
            for name, value in budget.items()}  # fmt: skip
    recipe = load_recipe("default", {"model": str(tmp_path), "text": {"length": 16}, "protect": [], **said})
    shape, machine = shape_of(str(tmp_path)), Machine(base=0, free=10**9, spill=0)
    opening = Opening()
    planned = sizes_of(recipe, shape, machine, amounts=unopened_amounts(recipe, shape, opening)).n_cut
    size, free = model_size(view), tuple(range(8))
    assert planned == resolve(budget_of(recipe), size, put_back=NOTHING, removable=free, n_most=7, amounts=amounts).n


def stage_of(found, name):
    return next(one for one in found.stages if one.stage == name)


def test_training_counts_what_a_repair_set_and_every_replacement(model):
    shape = shape_of(model)
    both = (shape.ffn + shape.hidden) * shape.hidden  # Each of 6 layers less 2 has them; one MLP is filled as a whole.

    def trained(changes):
        return stage_of(ask(model, changes), "train").parts["trained"] / TRAINED_BYTES

    sweep = 4 * both + 2 * shape.ffn * shape.hidden
    assert trained({}) == shape.layer_parameters
    assert trained({"select": "disjoint", "max_spans": 2}) == 2 * shape.layer_parameters
    # Both layers of --drop 2 go, each with a layer in its place.
    assert trained({"select": "lowest"}) == 2 * shape.layer_parameters
    assert trained({"replace": "none", "repair": "refit", "polish": "hidden"}) == both + 2 * shape.ffn * shape.hidden
    assert trained({"replace": "none", "repair": "sweep", "polish": "kl"}) == sweep
    assert trained({"repair": "sweep"}) == shape.layer_parameters + sweep
    # Layers are trained one after the other; the others are among the values.
    assert trained({"repair": "sweep", "train": {"several": "sequential"}}) == shape.layer_parameters
    assert "train" not in [one.stage for one in ask(model, {"replace": "none", "repair": "sweep"}).stages]


@pytest.mark.parametrize("name", REPLACEMENTS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_replacement_has_no_more_parameters_than_its_entry_says(name, family):
    model = tiny_model(family, n_layers=4)
    view, size = DecoderView(model), model_size(DecoderView(model))
    shape = ModelShape(4, hidden=view.hidden_size, ffn=forms_of(view).width, layer_parameters=max(size.layers))
    replacement = replacement_named(name)
    module = replacement.resolved(view).build(view, Span(1, 3))
    assert 0 < sum(one.numel() for one in module.parameters()) <= replacement.most_parameters(shape)


# What `new` trains depends on what a plan put in; tests/test_growing.py has it.
@pytest.mark.parametrize("method", [name for name in TRAINABLE if name != "new"])
def test_a_way_of_healing_states_what_it_trains_and_the_planner_counts_it(method, model):
    shape = shape_of(model)
    heal = {"method": method, "rank": 2, "layers": 2}
    found = stage_of(ask(model, {"replace": "none", "heal": heal}), "heal")
    n_trained = TRAINABLE[method].most_trained(shape, 4, HealConfig(**heal))
    assert (
        found.parts["trained"] == TRAINED_BYTES * n_trained
        and 0 < n_trained <= 4 * shape.layer_parameters + shape.other_parameters
    )
    assert "cut" in [one.stage for one in ask(model, {"replace": "none", "heal": heal}).stages]
    if method != "qlora":
        student = tiny_model("llama", n_layers=4)
        prepared = TRAINABLE[method].prepare(student, HealConfig(**heal, head="keep"), RankEvidence(4))
        sizes = model_size(DecoderView(tiny_model("llama", n_layers=4)))
        mine = ModelShape(
            4, hidden=32, ffn=forms_of(DecoderView(tiny_model("llama"))).width, layer_parameters=max(sizes.layers),
            other_parameters=sizes.total - sum(sizes.layers),
        )  # fmt: skip
        trains = sum(one.numel() for one in prepared.parameters() if one.requires_grad)
        assert 0 < trains <= TRAINABLE[method].most_trained(mine, 4, HealConfig(**heal))


def test_every_peak_that_was_measured_lies_under_its_bound_and_above_two_thirds_of_it():
    """The committed rows of ``benchmarks/memory.py``, with the model and the cases that it has."""
    spec = importlib.util.spec_from_file_location("memory_benchmark", ROOT / "benchmarks" / "memory.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    results = json.loads((ROOT / "benchmarks" / "results" / "memory.json").read_text())
    hidden, ffn, vocabulary = benchmark.HIDDEN, benchmark.FFN, 4096
    layer = 4 * hidden**2 + 3 * hidden * ffn + 2 * hidden
    shape = ModelShape(
        round(results["gigabytes"] * 1e9 / (4 * layer)), hidden, ffn, vocabulary=vocabulary, layer_parameters=layer,
        other_parameters=2 * vocabulary * hidden + hidden, window=256,
    )  # fmt: skip
    machine = Machine(base=results["process_mb"] * 10**6, free=20 * GB, spill=5 * GB)
    wrong = []
    for row in results["stages"]:
        recipe = load_recipe("default", {"model": "m", **benchmark.EVERY_CASE, **benchmark.CASES[row["case"]]})
        sizes = sizes_of(recipe, shape, machine, held=None if row["resident"] == "all" else int(row["resident"]))
        bounds = {one.stage: one.memory / 1e6 for one in stage_needs(sizes)}
        bound = bounds[row["stage"]]
        if not row["measured_mb"] <= bound <= 1.5 * row["measured_mb"]:
            wrong.append((row, bound))
    assert len(results["stages"]) >= 37 and not wrong


def test_training_that_runs_on_behind_the_cut_takes_more(model):
    def work(changes):
        big = {"train": {"micro_batch": 4096}, **changes}
        return stage_of(ask(model, big), "train").parts["work"]

    one, behind, logits = work({}), work({"repair": "sweep"}), work({"polish": "kl"})
    assert one < behind < logits


def test_training_that_a_streamed_run_would_refuse_is_said_before(model):
    both = {"repair": "sweep"}
    assert ["--resident" in one for one in ask(model, both, resident="1").advice] == [True]
    assert not ask(model, both, resident="all").advice and not ask(model, both, resident="4").advice
    assert not ask(model, {**both, "train": {"several": "sequential"}}, resident="1").advice


def test_candidates_ranked_by_their_linear_error_take_its_sums(model, monkeypatch):
    monkeypatch.setattr("shoal.run.stages.choose.bytes_per_span", lambda hidden: GB)
    assert stage_of(ask(model), "plan").parts["sums"] == 3 * GB  # There are layers 1..4, two at a time.
    assert "sums" not in stage_of(ask(model, {"guard": 1}), "plan").parts
    monkeypatch.setattr("shoal.run.stages.choose.bytes_per_span", lambda hidden: 3 * GB)
    assert stage_of(ask(model), "plan").parts["sums"] == 3 * GB  # There are no more spans than their share of memory holds.


@pytest.mark.parametrize(("repair", "less"), [("map", "refit"), ("bias", "map")])
def test_what_solves_for_less_has_smaller_sums(repair, less, model):
    small, large = (stage_of(ask(model, {"replace": "none", "repair": one}), "fit").parts["sums"] for one in (repair, less))
    assert small < large


def test_what_does_not_fit_says_what_to_change(model, monkeypatch):
    monkeypatch.setattr("shoal.run.memory_plan.machine.process_memory", lambda: 0)
    monkeypatch.setattr("shoal.engine.spill.free_memory", lambda: 1000)
    found = ask(model, resident="all")
    assert not found.fits and any("--resident 1" in one for one in found.advice)
    assert not any("--resident 1" in one for one in ask(model, resident="1").advice)


def test_states_beyond_the_share_of_a_pass_go_to_disk(model, monkeypatch):
    monkeypatch.setattr("shoal.engine.spill.free_memory", lambda: 4000)
    scan = ask(model, {"text": {"samples": 100}}, resident="1").stages[0]
    shape = shape_of(model)
    assert scan.parts["states"] == 1000
    assert scan.scratch == 7 * 100 * 16 * shape.hidden * shape.itemsize - 1000


def test_bytes_for_people():
    assert [in_bytes(n) for n in (0, 999, 1_500, 2.5e6, 3 * GB, 1234 * GB)] == [
        "0 B", "999 B", "1.5 kB", "2.5 MB", "3 GB", "1,234 GB",
    ]  # fmt: skip


def test_the_command_says_it_and_runs_nothing(model, tmp_path, capsys, monkeypatch):
    def shoal(*arguments):
        monkeypatch.setattr(sys, "argv", ["shoal", "plan", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr()

    code, said = shoal(model, "--memory", "--json", "--drop", "2", "--replace", "none", "--repair", "sweep", "--length", "16")
    assert code == 0 and "fit" in [one["stage"] for one in json.loads(said.out)["stages"]]
    code, said = shoal(model, "--memory", "--drop", "2", "--length", "16")
    assert code == 0 and "fits:" in said.out and not list(tmp_path.iterdir())
    code, said = shoal(model, "--memory", "--json", "--effort", "high", "--polish", "kl", "--length", "16")
    assert code == 0 and {"train", "heal"} <= {one["stage"] for one in json.loads(said.out)["stages"]}
    code, said = shoal(str(tmp_path / "nothing"), "--memory")
    assert code == 2 and said.err.count("\n") == 1
