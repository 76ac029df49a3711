"""Models with images through the command: scanned, planned, cut and repaired by the verbs, reloaded by transformers alone."""

import json

import pytest
import torch
from safetensors.torch import load_file
from test_unread_options import one_line
from test_wrappers import CONFIGS, IDS, N
from text_world import word_tokenizer
from transformers import AutoModelForImageTextToText, MllamaConfig
from world import write_text

BESIDE = ("vision", "visual", "projector")


in_the_gate_for_one = pytest.mark.parametrize(
    "source", [pytest.param(name, marks=() if name == "llava" else pytest.mark.slow) for name in CONFIGS], indirect=True
)


@pytest.fixture(scope="module", params=CONFIGS)
def source(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param) / "source"
    model = AutoModelForImageTextToText.from_config(CONFIGS[request.param]())
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.02)  # the start token's row, too, which is that of padding
    model.save_pretrained(folder)
    word_tokenizer(40).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor", "size": 28}\n')
    return folder


def texts(tmp_path):
    return "--text", write_text(tmp_path / "t.jsonl"), "--length", 16, "--samples", 8


def is_beside(name):
    return any(word in name for word in BESIDE)


def same_images(source, student):
    """Everything around the decoder is equal bit by bit, in the tensors as in the config."""
    before, after = (load_file(folder / "model.safetensors") for folder in (source, student))
    beside = [name for name in before if is_beside(name)]
    assert len(beside) > 20 and {name for name in after if is_beside(name)} == set(beside)
    assert all(torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8)) for name in beside)
    was, now = (json.loads((folder / "config.json").read_text()) for folder in (source, student))
    assert now["vision_config"] == was["vision_config"] and now["architectures"] == was["architectures"]
    assert (student / "preprocessor_config.json").read_bytes() == (source / "preprocessor_config.json").read_bytes()
    return now


def reloaded(folder):
    """By transformers alone, as the class that the config names, with every tensor in its place."""
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


def test_scanned_planned_and_cut_by_the_command(source, shoal, tmp_path):
    """The plan is of the decoder's layers, and the reloaded wrapper is the source whose removed layers pass their input on."""
    code, out, err = shoal("scan", source, "--out", "run", *texts(tmp_path), "--json")
    assert code == 0, err
    code, _, err = shoal("plan", "run", "--drop", 2, "--guard", 1, "--replace", "none", "--repair", "none")
    assert code == 0, err
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["n_layers"] == N
    gone = [layer for edit in plan["edits"] for layer in edit.get("indices", [])]
    assert len(gone) == 2
    code, _, err = shoal("apply", "run/plan.json", "--out", "cut")
    assert code == 0, err
    config = same_images(source, tmp_path / "cut")
    assert config["text_config"]["num_hidden_layers"] == N - 2
    whole = reloaded(source)
    for layer in gone:
        whole.model.language_model.layers[layer].forward = lambda h, *args, **kwargs: h
    with torch.no_grad():
        student = reloaded(tmp_path / "cut")(input_ids=IDS, use_cache=False).logits
        assert torch.equal(student, whole(input_ids=IDS, use_cache=False).logits)


@in_the_gate_for_one
def test_compressed_with_a_repair_by_the_command(source, shoal, tmp_path):
    options = ("--text", write_text(tmp_path / "t.jsonl"), "--length", 16, "--fit-tokens", 400, "--no-speed")
    code, _, err = shoal("compress", source, "--layers", "2..3", "--repair", "refit", "--out", "run", *options)
    assert code == 0, err
    student = tmp_path / "run" / "model"
    assert same_images(source, student)["text_config"]["num_hidden_layers"] == N - 2
    assert len(reloaded(student).model.language_model.layers) == N - 2
    code, out, err = shoal("eval", student, "--teacher", source, *options[:4], "--samples", 8, "--no-speed", "--json")
    assert code == 0, err
    assert json.loads(out)["student"]["cost"]["layers"] == N - 2


def test_what_cannot_be_cut_is_refused_by_name(shoal, tmp_path):
    """Layers that look at the image by cross attention, and a model of images without a decoder."""
    torch.manual_seed(0)
    text = dict(
        hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=N, vocab_size=61,
        cross_attention_layers=[2], pad_token_id=0,
    )  # fmt: skip
    vision = dict(hidden_size=32, num_hidden_layers=2, num_global_layers=1, attention_heads=4, intermediate_size=48)
    vision |= dict(image_size=28, patch_size=14, vision_output_dim=64, intermediate_layers_indices=[0])
    config = MllamaConfig(text_config=text, vision_config=vision)
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / "mllama")
    code, _, err = shoal("apply", "mllama", "--layers", "1", "--out", "cut")
    one_line(code, err, "mllama")
    assert not (tmp_path / "cut").exists()
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text(json.dumps({"model_type": "clip", "architectures": ["CLIPModel"]}))
    code, _, err = shoal("apply", "clip", "--layers", "1", "--out", "cut")
    one_line(code, err, "'clip' has no causal language model")


@pytest.mark.slow
@in_the_gate_for_one
def test_healed_by_the_command(source, shoal, tmp_path):
    """The decoder is trained, the images' part keeps its bits, and the config is that of the cut, not of the training."""
    cut = ("compress", source, "--drop", 2, "--guard", 1, "--repair", "none", *texts(tmp_path), "--no-speed")
    for out, more in (("cut", ()), ("healed", ("--heal", "full", "--heal-tokens", 256))):
        code, _, err = shoal(*cut, *more, "--out", out)
        assert code == 0, err
    same_images(source, tmp_path / "healed" / "model")
    plain, healed = (json.loads((tmp_path / one / "model" / "config.json").read_text()) for one in ("cut", "healed"))
    assert plain == healed
    reloaded(tmp_path / "healed" / "model")
