"""Sublayers as what goes: from the command to a checkpoint, every share said, and what cannot be is one line."""

import json

import pytest
import torch
from families import VOCAB, tiny_model
from transformers import AutoModelForCausalLM

from shoal.edits.drop import Drop, drops_of
from shoal.edits.plan import Plan
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.fit.targets import before_cuts, from_first_cut, with_takers
from shoal.run.latency import UnitTimes, unit_times
from shoal.run.refusals import refuse_units
from shoal.run.resource_amounts import computed_amounts
from shoal.select.budget import parse_budget
from shoal.select.model_size import model_size
from shoal.select.plan_of import plan_of
from shoal.select.request import Evidence, Request
from shoal.select.shortlist import shortlist
from shoal.words.types import Batch, Unit, UnitTable, model_units

FAMILIES = ["llama", "qwen3", "gemma2", "gpt2", "falcon", "phi"]
KINDS = ("layer", "attn", "mlp")


def options(small, *more):
    return ("--text", small["text"], "--samples", 8, "--length", 16, *more)


# -- sizes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_what_leaves_with_units_adds_up(family):
    """A layer holds its sublayers and its norms; parameters and costs are those of the student without them."""
    from shoal.evaluate.cost import cost

    view = DecoderView(tiny_model(family, n_layers=4))
    size, amounts = model_size(view), computed_amounts(view, context=16)
    whole = cost(view, context=16)
    assert amounts["kv"].total == whole.kv_bytes_per_token and amounts["macs"].total == whole.macs_per_token
    off = {Unit("attn", 1), Unit("mlp", 2), Unit("layer", 3)}
    left = cost(view, context=16, student=Student(removed=frozenset(off)))
    assert whole.kv_bytes_per_token - left.kv_bytes_per_token == pytest.approx(amounts["kv"].of(off))
    assert whole.macs_per_token - left.macs_per_token == pytest.approx(amounts["macs"].of(off))
    assert whole.parameters - left.parameters == sum(size.of(unit) for unit in off)
    for layer in range(4):
        parts = [size.of(Unit(kind, layer)) for kind in KINDS]
        assert 0 < parts[1] + parts[2] <= parts[0]


def test_every_plan_says_all_shares_side_by_side():
    view = DecoderView(tiny_model("llama", n_layers=4))
    size, amounts = model_size(view), computed_amounts(view, context=16)
    edits = drops_of([Unit("attn", 1), Unit("attn", 2), Unit("mlp", 2)])
    assert edits == (Drop(indices=(2,)), Drop(kind="attn", indices=(1,)))
    plan = plan_of(edits, size, source="m", source_hash="h", amounts=amounts)
    gone = size.layers[2] + size.of(Unit("attn", 1))
    assert plan.removed["layers"] == 0.25 and plan.removed["sublayers"] == 0.375 and plan.removed["kv"] == 0.5
    assert plan.removed["parameters"] == pytest.approx(gone / size.total, abs=1e-6)
    assert plan.after.parameters == size.total - gone and 0 < plan.removed["macs"] < 0.5


def test_times_are_of_every_unit_and_those_inside_a_layer_are_its_parts():
    view = DecoderView(tiny_model("llama", n_layers=3))
    found = unit_times(view, Batch(torch.randint(3, VOCAB, (2, 16))))
    assert set(found.units) == {str(Unit(kind, layer)) for kind in KINDS for layer in range(3)}
    layers = sum(found.units[f"layer.{layer}"] for layer in range(3))
    assert 0 < layers < found.total and all(ms > 0 for ms in found.units.values())


# -- budgets of layers -----------------------------------------------------------------------------------------------------


def test_layers_go_by_the_share_of_cache_that_they_hold():
    """Windowed layers keep little: of six layers every second one keeps 5 of 32 tokens."""
    view = DecoderView(tiny_model("gemma2"))
    amounts = computed_amounts(view, context=32)
    size = model_size(view)
    kv = amounts["kv"]
    assert kv.of_unit[Unit("layer", 0)] == pytest.approx(kv.of_unit[Unit("layer", 1)] * 5 / 32)
    request = Request(n_layers=6, selector="deepest", n_candidates=1)
    for text, n in (("40%kv", 2), ("10%params,40%kv", 2), ("50%params,10%kv", None)):
        short = shortlist(parse_budget(text), size, request, Evidence(amounts=amounts))
        assert n is None or short.request.n == n
    with pytest.raises(ValueError, match="two budgets of one kind"):
        parse_budget("20%,25%params")
    with pytest.raises(ValueError, match="counted in latency, which is known of an opened model alone"):
        shortlist(parse_budget("20%latency"), size, request, Evidence(amounts=amounts))


# -- scores ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop", ["3", "25%sublayers"])
def test_the_lowest_sublayers_go_and_ties_go_deeper(drop):
    import numpy as np

    view = DecoderView(tiny_model("llama"))
    request = Request(n_layers=6, selector="lowest", by="toy", n_candidates=1, units="sublayers", protected=frozenset({0}))
    values = np.array([5.0, 1.0, 3.0, 2.0, 9.0, 3.0, 3.0, 8.0, 7.0, 7.0])
    table = UnitTable("toy", request.free_units, values, np.zeros(10), "", False, 1)
    short = shortlist(parse_budget(drop), model_size(view), request, Evidence(unit_tables={"toy": table}))
    assert short.candidates[0].units == {Unit("mlp", 1), Unit("mlp", 2), Unit("attn", 4)}
    with pytest.raises(ValueError, match="scores whole layers; --units sublayers needs a score of units"):
        Evidence().costs(request)


# -- repair ----------------------------------------------------------------------------------------------------------------


def plan_without(*units, n_layers=6):
    view = DecoderView(tiny_model("llama", n_layers=n_layers))
    return plan_of(drops_of(units), model_size(view), source="m", source_hash="h")


def test_a_layer_that_lost_a_sublayer_is_repaired_itself():
    plan = plan_without(Unit("attn", 2), Unit("layer", 4))
    assert before_cuts(plan) == with_takers(plan) == {2: 3, 3: 5}
    assert from_first_cut(plan) == {2: 3, 3: 5, 5: 6}
    assert from_first_cut(plan_without(Unit("mlp", 5))) == with_takers(plan_without(Unit("mlp", 5))) == {5: 6}
    assert with_takers(plan_without(Unit("mlp", 1), Unit("mlp", 2), Unit("layer", 3))) == {1: 2, 2: 4, 4: 5}


@pytest.mark.parametrize("family", ["llama", "gemma2", "falcon"])
def test_new_values_work_in_a_layer_that_lacks_a_sublayer(family):
    view = DecoderView(tiny_model(family, n_layers=3))
    reading = view.read(Batch(torch.randint(3, VOCAB, (2, 9))))
    layer = view.model.get_submodule(view.layers_path)[1]
    name = next(name for name, p in layer.named_parameters() if p.ndim == 2 and ("down_proj" in name or "4h_to_h" in name))
    changed = {1: {name: torch.zeros_like(dict(layer.named_parameters())[name])}}
    off = frozenset({Unit("attn", 1)})
    with torch.no_grad():
        both = view.run_layer(1, reading.h_BTD, reading, student=Student(off, changed))
    assert torch.equal(both, reading.h_BTD)  # The layer has no attention, and an MLP that writes zero.


# -- the command -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "units, drop",
    [
        pytest.param("attention", "2", marks=pytest.mark.slow),
        pytest.param("mlp", "10%params", marks=pytest.mark.slow),
        ("sublayers", "25%sublayers"),
    ],
)
def test_compress_by_units_gives_a_stock_checkpoint(small, shoal, tmp_path, units, drop):
    asked = options(small, "--units", units, "--select", "greedy", "--drop", drop, "--guard", 1, "--repair", "refit")
    code, out, err = shoal("compress", small["model"], "--out", "run", "--no-speed", "--fit-tokens", 1000, *asked)
    assert code == 0, err
    said = " ".join(out.split())
    assert "of sublayers" in said and "of KV cache" in said and "transformers still stores and runs them" in said
    plan = Plan.load(tmp_path / "run" / "plan.json")
    assert {unit.kind for unit in plan.removed_units} <= {"attn", "mlp", "layer"}
    assert json.loads((tmp_path / "run" / "search.json").read_text())["units"] == units
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())["student"]["cost"]
    assert found["parameters"] == plan.after.parameters
    assert 1 - found["kv_bytes_per_token"] / (2 * 2 * 8 * 4 * 6) == pytest.approx(plan.removed["kv"], abs=1e-6)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    for unit in plan.removed_units:
        layer = model.model.layers[[slot.like for slot in plan.structure].index(unit.index)] if unit.kind != "layer" else None
        if layer is not None:
            assert not (layer.self_attn.o_proj if unit.kind == "attn" else layer.mlp.down_proj).weight.any()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "shoal export blocks" in page
    code, _, err = shoal("compress", small["model"], "--out", "run", "--no-speed", "--fit-tokens", 1000, *asked)
    assert code == 0, err


def test_scores_of_units_choose_from_the_command(small, shoal, tmp_path):
    for by in ("left_out_js", "weight_l2", "relative_update", "shapley_kl"):
        asked = options(small, "--select", "lowest", "--by", by, "--drop", 2, "--guard", 1)
        code, _, err = shoal("plan", small["model"], "--out", by, *asked)
        assert code == 0, err
        scores = json.loads((tmp_path / by / "scores.json").read_text())
        assert scores["by"] == by and len(scores["values"]) == 4 and not (tmp_path / by / "scan.json").exists()
        order = sorted(scores["values"], key=scores["values"].get)
        assert {f"layer.{i}" for i in Plan.load(tmp_path / by / "plan.json").removed_layers} == set(order[:2])


def test_latency_is_measured_once(small, shoal, tmp_path, monkeypatch):
    def times(view, batch, *, key):
        units = {f"{kind}.{i}": ms for i in range(6) for kind, ms in (("layer", 3.0), ("attn", 1.0), ("mlp", 2.0))}
        return UnitTimes(key=key, device="cpu", n_threads=1, n_tokens=16, total=20.0, units=units)

    monkeypatch.setattr("shoal.run.latency.unit_times", times)
    asked = options(small, "--select", "greedy", "--units", "sublayers", "--drop", "20%latency", "--guard", 1)
    code, _, err = shoal("plan", small["model"], "--out", "run", *asked)
    assert code == 0, err
    before = (tmp_path / "run" / "latency.json").read_bytes()
    assert Plan.load(tmp_path / "run" / "plan.json").removed["latency"] == pytest.approx(0.2)  # 4 of 20 ms
    monkeypatch.setattr("shoal.run.latency.unit_times", None)
    assert shoal("plan", small["model"], "--out", "run", *asked)[0] == 0
    assert (tmp_path / "run" / "latency.json").read_bytes() == before


@pytest.mark.parametrize("more", [("--units", "sublayers", "--drop", "25%kv,20%params"), ("--drop", "25%macs")])
def test_the_memory_of_such_runs_is_planned(small, shoal, more):
    code, out, err = shoal("plan", small["model"], "--memory", "--select", "greedy", *options(small), *more)
    assert code == 0 and "plan" in out, err


@pytest.mark.parametrize(
    "more, said",
    [
        (["--units", "sublayers"], "--select span looks for spans of layers; with --units sublayers choose lowest, greedy"),
        (["--units", "heads"], "units"),
        (["--units", "mlp", "--select", "lowest"], "choose a score of units such as relative_update"),
        (["--units", "mlp", "--select", "greedy", "--replace", "layer"], "stands in place of whole layers"),
        (["--units", "mlp", "--select", "lowest", "--by", "left_out_kl", "--repair", "magnitude"], "is of whole layers"),
        (["--units", "mlp", "--select", "greedy", "--drop", "25%kv"], "hold 0.0%..0.0% of it"),
        (["--units", "attention", "--select", "greedy", "--drop", "90%"], "of all parameters is to go; the 4 units that may"),
        (["--units", "attention", "--select", "greedy", "--drop", "25%layers"], "removes sublayers; write 25%sublayers"),
        (["--select", "span", "--by", "taylor_unit"], "scores single units, and --select span looks for spans"),
        (["--select", "lowest", "--by", "taylor_unit"], "8 samples are too few to rank by"),
        (["--select", "lowest", "--by", "left_out_k1"], "did you mean 'left_out_kl'"),
        (["--drop", "25%kv,"], "is not a budget"),
    ],
)
def test_wishes_about_units_that_cannot_be_met_are_one_line(small, shoal, more, said):
    code, _, err = shoal("plan", small["model"], "--out", "run", *options(small), "--guard", 1, *more)
    assert code == 2 and said in " ".join(err.split()), err


def test_a_family_whose_sublayers_cannot_be_left_out_is_refused_before_a_search():
    view = DecoderView(tiny_model("mixtral", n_layers=3))
    with pytest.raises(ValueError, match=r"MLP of 1\.\.2: such a sublayer does not end in one linear map here"):
        refuse_units(view, model_units(3, "mlp", protected=(0,)))
    refuse_units(view, model_units(3, "attention"))
