"""A model that cannot be opened is one clear line of the command, whatever is wrong with it."""

import pytest
import torch
from cli_world import copied, edit_weights, one_line, options
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration
from world import write_model, write_text


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_model(folder / "model")
    write_text(folder / "text.jsonl")
    return folder


def absent(world, tmp_path):
    return tmp_path / "nowhere"


def empty_folder(world, tmp_path):
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def no_weights(world, tmp_path):
    folder = copied(world, tmp_path)
    (folder / "model.safetensors").unlink()
    return folder


def pickled(world, tmp_path):
    folder = no_weights(world, tmp_path)
    torch.save({}, folder / "pytorch_model.bin")
    return folder


def truncated(world, tmp_path):
    folder = copied(world, tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    return folder


def rubbish(world, tmp_path):
    folder = copied(world, tmp_path)
    (folder / "model.safetensors").write_bytes(b"\xff" * 4096)
    return folder


def nan_weights(world, tmp_path):
    folder = copied(world, tmp_path)
    edit_weights(folder, lambda values: values["model.layers.2.mlp.up_proj.weight"].fill_(float("nan")))
    return folder


def huge_weights(world, tmp_path):
    """Finite weights, infinite states."""
    folder = copied(world, tmp_path)
    edit_weights(folder, lambda values: values["model.layers.2.mlp.down_proj.weight"].fill_(3e38))
    return folder


def missing_tensor(world, tmp_path):
    folder = copied(world, tmp_path)
    edit_weights(folder, lambda values: values.pop("model.layers.2.mlp.up_proj.weight"))
    return folder


def masked_model(world, tmp_path):
    config = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=50)
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def encoder_decoder(world, tmp_path):
    config = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, vocab_size=50)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    return tmp_path / "t5"


def unknown_type(world, tmp_path):
    return copied(world, tmp_path, model_type="quuxformer", architectures=["QuuxForCausalLM"])


def broken_config(world, tmp_path):
    folder = copied(world, tmp_path)
    (folder / "config.json").write_text("{")
    return folder


def no_tokenizer(world, tmp_path):
    folder = copied(world, tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    return folder


MODELS = {
    absent: "nowhere", empty_folder: "config.json", no_weights: "weights", pickled: "safetensors",
    truncated: "model.safetensors", rubbish: "model.safetensors", nan_weights: "model.layers.2.mlp.up_proj",
    huge_weights: "NaN or infinite",
    missing_tensor: "up_proj", masked_model: "bert", encoder_decoder: "t5", unknown_type: "quuxformer",
    broken_config: "config.json", no_tokenizer: "tokenizer",
}  # fmt: skip


@pytest.mark.in_turn(3)
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("verb", ["compress", "scan", "eval"])
def test_a_wrong_model_is_one_clear_line(verb, make, world, shoal, tmp_path):
    out = () if verb == "eval" else ("--out", tmp_path / "out")
    code, _, err = shoal(verb, make(world, tmp_path), *out, *options(world))
    one_line(code, err, MODELS[make])
