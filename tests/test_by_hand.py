"""Layers by number: what is named goes, nothing else is asked, and what cannot be is one line before any work."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_unread_options import one_line
from text_world import word_tokenizer
from transformers import AutoModelForCausalLM, JambaConfig
from world import N_WORDS, write_model

from shoal import compress, load_recipe
from shoal.edits.plan import Plan
from shoal.run.healing.requested import request_of
from shoal.words.types import Unit
from shoal.words.unit_names import removed_by_hand, units_named

N = 6  # The small model has so many layers.


def layers(*indices):
    return frozenset(Unit("layer", index) for index in indices)


READ = {
    "3": layers(3),
    "1,3..4": layers(1, 3, 4),
    " 1 , 2 ": layers(1, 2),
    "-1": layers(5),
    "-3..-2,0": layers(3, 4, 0),
    "2,2..3": layers(2, 3),
    "attn:1..2": {Unit("attn", 1), Unit("attn", 2)},
    "attention:1,2": {Unit("attn", 1), Unit("attn", 2)},  # A kind holds until another is written.
    "0,mlp:3,attn:4,layers:5": {*layers(0, 5), Unit("mlp", 3), Unit("attn", 4)},
}


@pytest.mark.parametrize("text", READ)
def test_what_a_list_names(text):
    assert units_named(text, N, option="--layers") == READ[text]


@given(st.sets(st.integers(0, N - 1), min_size=1, max_size=N - 1))
def test_to_name_what_goes_is_to_name_what_stays(gone):
    said = ",".join(map(str, gone)), ",".join(str(layer) for layer in range(N) if layer not in gone)
    assert removed_by_hand(said[0], None, N) == removed_by_hand(None, said[1], N) == layers(*gone)


WRONG = {
    ("--layers", "6"): "6 is not within 0..5",
    ("--layers", "-7"): "-7 is not within 0..5",
    ("--layers", "4..2"): "4..2 runs backwards",
    ("--layers", "one"): "'one' is no layer and no range",
    ("--layers", "head:3"): "'head:3' is no layer and no range",
    ("--layers", "1,,2"): "'' is no layer and no range",
    ("--layers", " "): "names no layer",
    ("--layers", "9" * 5000): "is no layer and no range",
    ("--layers", "0..5"): "removes all 6 layers; at least one has to stay",
    ("--layers", "3,attn:3"): "layer 3 goes as a whole; leave out its attention",
    ("--keep", "0..5"): "keeps all 6 layers",
    ("--keep", "attn:3"): "names layers that stay whole",
    ("--keep", ""): "names no layer",
    ("--layers", "3", "--keep", "1"): "give one of them",
    ("--layers", "3", "--drop", "2"): "--drop is not read",
    ("--layers", "3", "--params", "1M"): "--params is not read",
    ("--layers", "3", "--select", "deepest"): "--select is not read",
    ("--layers", "3", "--by", "angular/last"): "--by is not read",
    ("--keep", "3", "--guard", "2"): "--guard is not read",
    ("--keep", "3", "--protect", "none"): "--protect is not read",
    ("--keep", "3", "--rounds", "2"): "--rounds is not read",
    ("--layers", "3", "--metric", "kl"): "--metric or --evaluations is not read",
    ("--layers", "attn:3", "--replace", "layer"): "--replace layer stands in place of whole layers",
    ("--layers", "attn:3", "--repair", "magnitude"): "--repair magnitude is of whole layers",
}


@pytest.mark.in_turn(2)
@pytest.mark.parametrize("verb", ["plan", "compress"])
@pytest.mark.parametrize("given", WRONG, ids=lambda given: " ".join(given)[:40])
def test_what_cannot_be_asked_is_one_line(small, shoal, tmp_path, verb, given):
    code, _, err = shoal(verb, small["model"], "--out", "run", *given)
    one_line(code, err, WRONG[given])
    assert not (tmp_path / "run").exists() or not (tmp_path / "run" / "plan.json").exists()


@pytest.mark.parametrize("option", ["--text", "--samples", "--seed", "--device"])
def test_a_plan_of_named_layers_refuses_what_it_does_not_read(small, shoal, option):
    value = {"--text": small["text"], "--device": "cuda"}.get(option, 8)
    code, _, err = shoal("plan", small["model"], "--layers", "3", "--out", "run", option, value)
    one_line(code, err, f"{option} is not read")


def test_every_way_to_say_it_writes_one_checkpoint(small, shoal, tmp_path):
    """By plan and apply, by apply alone, by what stays, and by the whole run without a repair."""
    text = ("--text", small["text"], "--length", 16, "--no-speed")
    assert shoal("plan", small["model"], "--layers", "1,3..4", "--out", "p")[0] == 0
    assert shoal("apply", "p/plan.json", "--out", "a")[0] == 0
    assert shoal("apply", small["model"], "--layers", "1,3..4", "--out", "b")[0] == 0
    assert shoal("apply", small["model"], "--keep", "0,2,-1", "--out", "c")[0] == 0
    assert shoal("compress", small["model"], "--layers", "1,3..4", "--repair", "none", "--out", "p", *text)[0] == 0
    first, *others = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b", "c", "p/model"))
    assert all(other == first for other in others)
    assert not (tmp_path / "p" / "scan.json").exists(), "nothing is measured to choose"
    for name in ("a", "b", "c"):  # A folder of its own says what it was cut from, to a healing and to a list of layers.
        assert request_of(name, None, {}).teacher == str(small["model"])
        code, out, err = shoal("export", "prune-layers", name)
        assert code == 0 and "1,3,4" in out, err
    # What is made of such a folder is not what its plan says.
    assert shoal("compress", "b", "--layers", "0", "--repair", "none", "--out", "further", *text)[0] == 0
    assert not (tmp_path / "further" / "model" / "plan.json").exists()
    assert shoal("export", "prune-layers", "further")[1].split()[0] == "0"
    plan = Plan.load(tmp_path / "p" / "plan.json")
    assert plan.removed_layers == (1, 3, 4) and plan.method.startswith("layers given by hand") and not plan.is_edited_by_hand
    card = (tmp_path / "p" / "model" / "README.md").read_text()
    assert "3 of its 6 layers" in card and "layers given by hand" in card and "asked --layers 1,3..4" in card
    recipe = load_recipe(str(tmp_path / "p" / "recipe.yaml"))
    assert recipe.layers == "1,3..4" and recipe.is_by_hand


def test_sublayers_run_from_end_to_end(small, shoal, tmp_path):
    options = ("--text", small["text"], "--length", 16, "--no-speed", "--repair", "none")
    code, out, err = shoal("compress", small["model"], "--layers", "2,attn:3..4,mlp:1", "--out", "run", *options)
    assert code == 0 and "attention of 3..4, MLP of 1" in out, err
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    off = [not layer.self_attn.o_proj.weight.any() for layer in student.model.layers]
    assert off == [False, False, True, True, False] and not student.model.layers[1].mlp.down_proj.weight.any()
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "5 of its 6 layers" in card and "attention of 3..4, MLP of 1 is switched off" in card
    assert shoal("apply", small["model"], "--layers", "2,attn:3..4,mlp:1", "--out", "again")[0] == 0
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("run/model", "again"))
    assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_replacement_stands_for_what_is_named(small, shoal, tmp_path):
    options = ("--text", small["text"], "--length", 16, "--no-speed", "--train-tokens", 500)
    code, _, err = shoal("compress", small["model"], "--layers", "2..3", "--replace", "layer", "--out", "run", *options)
    assert code == 0, err
    plan = Plan.load(tmp_path / "run" / "plan.json")
    assert plan.absent_layers == (2, 3) and plan.n_layers_after == 4 and plan.replacements


@pytest.mark.parametrize(
    ("family", "named", "said"),
    [
        pytest.param("mixtral", "mlp:1..2", "MLP of 1..2", marks=pytest.mark.slow),
        ("qwen3_moe", "mlp:0", "MLP of 0"),
    ],
)
def test_a_sublayer_that_a_family_cannot_leave_out_is_refused_before_any_work(shoal, tmp_path, family, named, said):
    write_model(tmp_path / "m", family=family)
    for verb in (("plan",), ("apply",), ("compress",)):
        code, _, err = shoal(*verb, "m", "--layers", named, "--out", "run")
        one_line(code, err, said, "remove whole layers")
    assert shoal("apply", "m", "--layers", "attn:1", "--out", "out")[0] == 0, "its attention can go"


def write_jamba(folder):
    """Sixteen layers in two periods of eight, with a tokenizer."""
    jamba = dict(attn_layer_period=8, attn_layer_offset=4, expert_layer_period=2, expert_layer_offset=1, num_experts=2)
    sizes = dict(hidden_size=32, intermediate_size=48, vocab_size=64, num_attention_heads=4, num_key_value_heads=2)
    config = JambaConfig(num_hidden_layers=16, mamba_d_state=8, mamba_dt_rank=4, use_mamba_kernels=False, **jamba, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    word_tokenizer(N_WORDS).save_pretrained(folder)


def test_a_family_refuses_named_layers_with_its_own_reason(shoal, tmp_path):
    write_jamba(tmp_path / "m")
    code, _, err = shoal("plan", "m", "--layers", "7", "--out", "run")
    one_line(code, err, "--layers 7 cannot be done: model type 'jamba'")
    assert shoal("plan", "m", "--layers", "4..11", "--out", "ok")[0] == 0


def test_a_periodic_family_is_planned_within_its_periods_and_refused_by_candidate(small, shoal, tmp_path):
    """Every budget was refused for a cut that nobody had asked for."""
    write_jamba(tmp_path / "m")
    few = ("--text", small["text"], "--length", 16, "--samples", 8, "--guard", 1, "--repair", "none")
    for drop, left in ((2, 14), (8, 8)):
        code, out, err = shoal("plan", "m", *few, "--drop", drop, "--out", f"run{drop}")
        assert code == 0, err
        assert f"16 -> {left} layers" in out
    code, _, err = shoal("plan", "m", *few, "--drop", 3, "--out", "run3")
    one_line(code, err, "jamba")
    assert not (tmp_path / "run3" / "plan.json").exists()


def test_a_plan_edited_by_hand_says_so_and_has_the_sizes_of_its_edits(small, shoal, tmp_path):
    assert shoal("plan", small["model"], "--layers", "3", "--out", "run")[0] == 0
    assert shoal("plan", small["model"], "--layers", "2,4", "--out", "wanted")[0] == 0
    wanted = Plan.load(tmp_path / "wanted" / "plan.json")
    content = json.loads((tmp_path / "run" / "plan.json").read_text())
    content["edits"][0]["indices"] = [2, 4]
    (tmp_path / "run" / "plan.json").write_text(json.dumps(content))
    code, out, _ = shoal("plan", small["model"], "--layers", "3", "--out", "run")
    assert code == 0 and "layers 2, 4 (0-based, inclusive), keeps 4" in out and f"{wanted.after.parameters:,}" in out
    options = ("--text", small["text"], "--length", 16, "--no-speed", "--repair", "none")
    assert shoal("compress", small["model"], "--layers", "3", "--out", "run", *options)[0] == 0
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "How it was chosen: edited by hand" in card and "4 of its 6 layers" in card
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    ids_BT = torch.tensor([[0, 5, 6, 7]])
    assert sum(one.numel() for one in student.parameters()) == wanted.after.parameters
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"50,400 → {wanted.after.parameters:,}" in page and "dited by hand" in page
    assert "42,656" not in page and "ayers given by hand" not in page
    with_cache, without = (student.generate(ids_BT, max_new_tokens=8, do_sample=False, use_cache=one) for one in (True, False))
    assert torch.equal(with_cache, without)


def test_a_recipe_names_layers_or_chooses(small, shoal, tmp_path):
    (tmp_path / "r.yaml").write_text(f"model: {small['model']}\nlayers: [1, 3..4]\nrepair: none\n")
    assert load_recipe("r.yaml").layers == "1,3..4"
    assert load_recipe("r.yaml", {"drop": "2"}).is_by_hand is False, "a budget means a choice"
    (tmp_path / "one.yaml").write_text("layers: 3\n")
    assert load_recipe("one.yaml").layers == "3"
    (tmp_path / "both.yaml").write_text("layers: 3\ndrop: 25%\n")
    with pytest.raises(ValueError, match="--drop is not read"):
        load_recipe("both.yaml")
    code, _, err = shoal("compress", small["model"], "--recipe", "r.yaml", "--guard", 2, "--out", "run")
    one_line(code, err, "r.yaml names its layers, so nothing is chosen and --guard is not read")
    code, _, err = shoal("curve", small["model"], "--methods", "r.yaml", "--out", "run")
    one_line(code, err, "names its layers")


def test_from_python(small, tmp_path):
    text = {"sources": [small["text"]], "length": 16}
    outcome = compress("default", tmp_path / "run", model=small["model"], keep="0..2,5", repair="none", text=text, speed=False)
    assert outcome.plan.kept_layers == (0, 1, 2, 5) and outcome.scan is None
    with pytest.raises(ValueError, match="not read"):
        compress("default", tmp_path / "no", model=small["model"], keep="0..2", drop="25%")
