"""What a run will take: sizes as the models have them, terms that add up, and advice where it does not fit."""

import json
import sys

import pytest
from families import FAMILIES, tiny_model
from world import write_model

from shoal.cli import main
from shoal.engine.view import DecoderView
from shoal.recipes.recipe_file import load_recipe, merge
from shoal.run.memory_plan import needs as planner
from shoal.run.memory_plan.needs import needs_of
from shoal.run.memory_plan.shape import shape_of
from shoal.select.model_size import model_size
from shoal.words.numbers import in_bytes

GB = 10**9


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_model(tmp_path_factory.mktemp("model")))


def ask(model, changes=None, **options):
    base = {"model": model, "drop": "2", "replace": "layer", "text": {"length": 16}}
    return needs_of(load_recipe("default", merge(base, changes or {})), **options)


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
@pytest.mark.parametrize("changes", [{}, {"replace": "none", "repair": "sweep"}, {"replace": "none"}])
def test_parts_add_up_and_stages_are_those_of_the_run(model, changes, resident):
    found = ask(model, changes, resident=resident)
    assert all(one.memory == sum(one.parts.values()) for one in found.stages)
    more = {"replace": ["train"], "repair": ["fit"]}
    middle = [] if changes.get("replace") == "none" else more["replace"]
    middle += more["repair"] if "repair" in changes else []
    assert [one.stage for one in found.stages] == ["scan", "plan", *middle, "model", "evaluation"]
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
        ("plan", "states", {"replace": "none", "repair": "none", "guard": 8}),
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


def stage_of(found, name):
    return next(one for one in found.stages if one.stage == name)


def test_training_counts_what_a_repair_set_and_every_replacement(model):
    shape = shape_of(model)
    both = (shape.ffn + shape.hidden) * shape.hidden  # of each of 6 layers less 2; one MLP is filled as a whole
    copy = shape.itemsize  # of a value in the model's dtype: what would be saved, the best of it, and a module's start
    module, refit = planner.ADAM + 3 * copy, planner.ADAM + 2 * copy

    def trained(changes):
        return stage_of(ask(model, changes), "train").parts["trained"]

    assert trained({}) == module * shape.layer_parameters
    assert trained({"select": "disjoint", "max_spans": 2}) == 2 * module * shape.layer_parameters
    # both of --drop 2, each with a layer in its place
    assert trained({"select": "lowest"}) == 2 * module * shape.layer_parameters
    assert trained({"replace": "none", "repair": "refit", "polish": "hidden"}) == refit * both
    assert trained({"replace": "none", "repair": "sweep", "polish": "kl"}) == refit * (4 * both + 2 * shape.ffn * shape.hidden)
    assert trained({"repair": "sweep"}) == module * shape.layer_parameters + refit * (4 * both + 2 * shape.ffn * shape.hidden)
    # one after the other: a layer at a time; the others are among the values
    in_turns = module * shape.layer_parameters
    assert trained({"repair": "sweep", "train": {"several": "sequential"}}) == in_turns
    assert "train" not in [one.stage for one in ask(model, {"replace": "none", "repair": "sweep"}).stages]


def test_a_step_counts_gradients_and_only_the_layers_that_it_runs(model):
    """Of layers on disk; a measure, which has many tokens here, counts all that are held and no gradients."""
    shape = shape_of(model)

    def parts(changes, tokens):
        return stage_of(ask(model, {"train": {"micro_batch": tokens}, **changes}, resident="1"), "train").parts

    refit = {"replace": "none", "repair": "refit", "polish": "hidden"}
    for changes, layers, parameters in (({}, 0, shape.layer_parameters), (refit, 2, (shape.ffn + shape.hidden) * shape.hidden)):
        step, measure = parts(changes, 4096), parts(changes, 1)
        assert step["weights"] == shape.other_bytes + layers * shape.layer_bytes
        assert step["gradients"] == planner.GRADIENT * parameters
        assert measure["weights"] == shape.other_bytes + 2 * shape.layer_bytes and "gradients" not in measure


def test_what_waits_on_disk_for_the_scan_comes_back_sample_by_sample(model, monkeypatch):
    shape, length = shape_of(model), 32
    changes = {"text": {"length": length, "samples": 64}}
    assert not stage_of(ask(model, changes, resident="1"), "scan").parts["sample"]
    monkeypatch.setattr("shoal.engine.spill.ONE_IN", 1 << 40)
    kept = stage_of(ask(model, changes, resident="1"), "scan").parts
    assert kept["sample"] == (shape.n_layers + 1) * length * shape.hidden * shape.itemsize and not kept["states"]


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
    monkeypatch.setattr("shoal.fit.linear_error.bytes_per_span", lambda hidden: GB)
    assert stage_of(ask(model), "plan").parts["sums"] == 3 * GB  # of layers 1..4, two at a time
    assert "sums" not in stage_of(ask(model, {"guard": 1}), "plan").parts
    monkeypatch.setattr("shoal.fit.linear_error.bytes_per_span", lambda hidden: 3 * GB)
    assert stage_of(ask(model), "plan").parts["sums"] == 3 * GB  # no more spans than the share for them


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
    assert code == 0 and "train" in [one["stage"] for one in json.loads(said.out)["stages"]]
    code, said = shoal(str(tmp_path / "nothing"), "--memory")
    assert code == 2 and said.err.count("\n") == 1
