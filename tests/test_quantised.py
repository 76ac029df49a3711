"""Quantised checkpoints: layers go file to file in every format, what opens is measured as it is, nothing gets new values."""

import importlib.util
import json

import pytest
import torch
from quantised_world import KINDS, write_quantised
from safetensors.torch import load_file
from test_unread_options import one_line
from world import write_text

from shoal.engine.layer_names import layer_of
from shoal.engine.open import open_model, quiet_loading
from shoal.engine.student import student_without
from shoal.engine.view import DecoderView
from shoal.evaluate.cost import cost
from shoal.select.model_size import model_size
from shoal.words.types import Batch

pytest.importorskip("bitsandbytes")
HAS_COMPRESSED = importlib.util.find_spec("compressed_tensors") is not None
OPENED = ["nf4", "int8", "fp8", "mxfp4", *(["compressed-tensors"] if HAS_COMPRESSED else [])]
CLOSED = [kind for kind in KINDS if kind not in OPENED]
GONE, KEPT = (1, 3, 4), (0, 2, 5)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("quantised"), {}

    def source(kind):
        if kind not in made:
            made[kind] = write_quantised(folder / kind, kind)
        return made[kind]

    return source


@pytest.mark.parametrize("kind", KINDS)
def test_layers_go_file_to_file_and_every_packed_byte_stays(sources, shoal, tmp_path, kind):
    code, _, err = shoal("apply", sources(kind), "--layers", "1,3..4", "--out", "cut")
    assert code == 0, err
    before, after = (load_file(folder / "model.safetensors") for folder in (sources(kind), tmp_path / "cut"))
    expected = {}
    for name, value in before.items():
        layer = layer_of(name, "model.layers.")
        if layer is None:
            expected[name] = value
        elif layer in KEPT:
            expected[name.replace(f"layers.{layer}.", f"layers.{KEPT.index(layer)}.")] = value
    assert after.keys() == expected.keys()
    assert all(torch.equal(value.view(torch.uint8), after[name].view(torch.uint8)) for name, value in expected.items())
    stated, kept = (json.loads((folder / "config.json").read_text()) for folder in (sources(kind), tmp_path / "cut"))
    assert kept["num_hidden_layers"] == 3
    assert kept["quantization_config"]["quant_method"] == stated["quantization_config"]["quant_method"]


@pytest.mark.parametrize("kind", OPENED)
def test_the_cut_checkpoint_is_the_quantised_model_without_the_layers(sources, shoal, tmp_path, kind):
    """The same packed numbers in the same kernels, so the logits are equal bit for bit."""
    assert shoal("apply", sources(kind), "--keep", "0,2,5", "--out", "cut")[0] == 0
    batch = Batch(torch.randint(4, 44, (2, 12), generator=torch.Generator().manual_seed(0)))
    source, student = (DecoderView(open_model(folder).model) for folder in (sources(kind), tmp_path / "cut"))
    assert torch.equal(student.logits(batch), source.logits(batch, student=student_without(GONE)))


@pytest.mark.parametrize("kind", OPENED)
def test_packed_numbers_are_counted_as_the_weights_they_stand_for(sources, kind):
    """Against the count by hand: of every map its inputs times its outputs."""
    view, n = DecoderView(open_model(sources(kind)).model), 6
    maps = 64 * 64 + 2 * 64 * 32 + 64 * 64  # The maps are q, k and v, and o.
    if kind == "mxfp4":
        biases, sinks = 64 + 2 * 32 + 64, 4
        experts = 4 * (64 * 256 + 256 + 128 * 64 + 64)
        layer = maps + biases + sinks + experts + (4 * 64 + 4) + 2 * 64
    else:
        layer = maps + 3 * 64 * 128 + 2 * 64
    total = n * layer + 2 * 64 * 64 + 64
    assert model_size(view).layers == (layer,) * n and model_size(view).total == total
    found = cost(view, context=16)
    assert found.parameters == total
    if kind in ("nf4", "int8"):
        assert 0.3 * total < found.weight_bytes < 0.7 * 4 * total, "bytes are those of the packed numbers"
        without = cost(view, context=16, student=student_without(GONE))
        assert without.parameters == total - 3 * layer
        assert found.weight_bytes - without.weight_bytes < 3 * layer * (1.2 if kind == "int8" else 0.8)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_counting_a_model_does_not_change_what_it_computes(sources, kind):
    view, batch = DecoderView(open_model(sources(kind)).model), Batch(torch.arange(4, 16)[None])
    before = view.logits(batch)
    cost(view, context=16)
    assert torch.equal(view.logits(batch), before)


@pytest.mark.parametrize("kind", ["fp8", *(["compressed-tensors"] if HAS_COMPRESSED else [])])
def test_the_numbers_of_a_format_are_those_of_its_formula(sources, kind):
    stored = load_file(sources(kind) / "model.safetensors")
    stem = "model.layers.2.mlp.down_proj."
    codes = stored[f"{stem}weight"].float()
    if kind == "fp8":
        scale = stored[f"{stem}weight_scale_inv"].repeat_interleave(32, 0).repeat_interleave(32, 1)
    else:
        scale = stored[f"{stem}weight_scale"]
    weight = open_model(sources(kind)).model.model.layers[2].mlp.down_proj.weight
    assert torch.allclose(weight.float(), codes * scale, rtol=1e-6)


@pytest.mark.parametrize("kind", ["nf4", "fp8"])
def test_a_quantised_student_is_measured_against_its_quantised_teacher(sources, shoal, tmp_path, kind):
    text = ("--text", write_text(tmp_path / "t.jsonl"), "--length", 16, "--samples", 8)
    assert shoal("apply", sources(kind), "--layers", "1,3..4", "--out", "cut")[0] == 0
    code, out, err = shoal("eval", "cut", "--teacher", sources(kind), *text, "--json", "--no-speed")
    assert code == 0, err
    found = json.loads(out)
    assert found["student"]["cost"]["layers"] == 3 and found["quality"]["kl"] > 0
    code, out, err = shoal("compare", sources(kind), "cut", *text, "--json")
    assert code == 0, err
    same = json.loads(out)["models"][1]["quality"]["kl"]
    # 4-bit products round in half precision, in an order that depends on the shape of the batch.
    assert same == pytest.approx(found["quality"]["kl"], rel=1e-4 if kind == "fp8" else 2e-2)


def test_a_quantised_model_is_cut_and_measured_in_one_run(sources, shoal, tmp_path):
    options = ("--text", write_text(tmp_path / "t.jsonl"), "--length", 16, "--samples", 8, "--no-speed")
    code, out, err = shoal("compress", sources("nf4"), "--drop", 2, "--out", "run", *options)
    assert code == 0 and "Quantised (bitsandbytes)" in out, err
    assert "repair: none" in (tmp_path / "run" / "recipe.yaml").read_text()
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["num_hidden_layers"] == 4 and config["quantization_config"]["load_in_4bit"]
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert evaluation["student"]["cost"]["parameters"] == plan["after"]["parameters"]
    assert "Not healed: the model is quantised (bitsandbytes)" in (tmp_path / "run" / "report.html").read_text()
    code, out, err = shoal("plan", sources("nf4"), "--drop", 2, "--memory", "--json")
    done = json.loads((tmp_path / "run" / "run.json").read_text())["stages"]
    assert code == 0 and [one["stage"] for one in json.loads(out)["stages"]] == list(done), err


NEW_VALUES = {
    "sweep": ("compress", ("--drop", 2, "--repair", "sweep"), "--repair sweep needs plain weights"),
    "layer": ("compress", ("--drop", 2, "--replace", "layer"), "--replace layer needs plain weights"),
    "heal": ("compress", ("--drop", 2, "--heal", "lora"), "healing needs plain weights"),
    "units": ("compress", ("--drop", 2, "--units", "attention", "--select", "greedy"), "--units attention needs plain weights"),
    "sublayers": ("compress", ("--layers", "attn:2"), "remove whole layers"),
    "planned sublayers": ("plan", ("--layers", "attn:2"), "remove whole layers"),
    "on disk": ("scan", ("--resident", 1), "one layer at a time needs plain weights"),
}


def test_memory_is_planned_for_no_run_that_is_refused(sources, shoal):
    verb, asked, said = NEW_VALUES["sweep"]
    code, _, err = shoal("plan", sources("nf4"), *asked, "--memory")
    one_line(code, err, said, "unquantised checkpoint")


@pytest.mark.parametrize("name", NEW_VALUES)
@pytest.mark.parametrize("kind", ["nf4", "fp8"])
def test_new_values_are_refused_with_the_order_to_use(sources, shoal, tmp_path, kind, name):
    verb, asked, said = NEW_VALUES[name]
    text = () if verb == "plan" else ("--text", write_text(tmp_path / "t.jsonl"), "--length", 16)
    code, _, err = shoal(verb, sources(kind), "--out", "run", *text, *asked)
    one_line(code, err, said, "unquantised checkpoint", "shoal export plain")
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("kind", CLOSED)
def test_what_nothing_here_opens_is_one_line_with_the_package(sources, shoal, tmp_path, kind):
    for verb in (("eval",), ("scan", "--out", "run"), ("compress", "--out", "run")):
        code, _, err = shoal(verb[0], sources(kind), *verb[1:], "--text", write_text(tmp_path / "t.jsonl"))
        one_line(code, err, f"quantised ({kind})", "pip install", "shoal apply MODEL --layers")
    assert shoal("plan", sources(kind), "--recipe", "uidl-simple", "--drop", 2, "--out", "plan")[0] == 0


def test_what_a_library_prints_while_it_loads_is_not_the_result(capsys):
    """gptqmodel prints a banner when it is imported, in front of the JSON that stdout is for."""
    with quiet_loading():
        print("banner")
    print("result")
    assert capsys.readouterr() == ("result\n", "banner\n")
