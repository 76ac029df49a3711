"""A model that cannot be opened is refused in one line that names the fault, before or while it is loaded; never in silence."""

import json
import shutil

import pytest
import torch
from families import tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from shoal.engine.open import open_model
from shoal.engine.opening import Opening
from shoal.engine.shards import read_shard
from shoal.engine.source import SAMPLE_BYTES, WHOLE_BYTES, check_source, fingerprint, quantisation, sampled_ranges


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "llama"
    tiny_model("llama", n_layers=2).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def edit_config(folder, **fields):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(fields)
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def refusal(source, **options):
    with pytest.raises(ValueError) as caught:
        open_model(source, Opening(**options))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_opened_model_is_the_saved_one(saved):
    opened = open_model(saved)
    original = tiny_model("llama", n_layers=2).state_dict()
    assert opened.path == saved and opened.name == str(saved) and not opened.model.training
    assert opened.model.state_dict().keys() == original.keys()
    assert all(torch.equal(value, original[name]) for name, value in opened.model.state_dict().items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_the_checkpoints_unless_asked(saved, tmp_path, dtype):
    assert open_model(saved, Opening(dtype=dtype)).model.dtype == getattr(torch, dtype)
    tiny_model("llama", n_layers=1).to(getattr(torch, dtype)).save_pretrained(tmp_path)
    assert open_model(tmp_path).model.dtype == getattr(torch, dtype)


def test_loading_prints_nothing(folder, capfd):
    open_model(folder)
    out, err = capfd.readouterr()
    assert out == "" and "%" not in err and "Loading" not in err


def test_a_missing_tokenizer_is_an_error_only_when_needed(saved):
    opened = open_model(saved)
    assert opened.tokenizer is None
    with pytest.raises(ValueError, match="no tokenizer"):
        opened.need_tokenizer()


def test_a_corrupt_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").write_text("{ not json")
    assert "tokenizer" in refusal(folder)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"dtype": "float31"}, "did you mean 'float32'"), ({"device": "cuda:99"}, "device"), ({"device": "gpu"}, "device")],
)
def test_unknown_dtype_and_device(saved, options, expected):
    assert expected in refusal(saved, **options)


def test_a_device_without_fp64_is_refused(saved, monkeypatch):
    """As mps does: everything works there until the first fp64 sum."""

    def zeros(*size, device=None, dtype=None):
        if dtype is torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")

    monkeypatch.setattr(torch, "zeros", zeros)
    assert "float64" in refusal(saved, device="mps")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "~/not-there-at-all"])
def test_a_path_that_is_not_there(name):
    assert "no such model folder" in refusal(name)


@pytest.mark.parametrize("name", ["gone.gguf", "org/gone.GGUF", "./gone.gguf"])
def test_a_gguf_file_that_is_not_there_is_no_hub_id(name):
    assert "no such GGUF file" in refusal(name)


def test_a_hub_id_that_cannot_be_reached():
    assert "hub id" in refusal("nobody-at-all/no-such-model")


def test_a_file_is_not_a_folder(saved):
    assert "is a file" in refusal(saved / "config.json")


def test_no_config(folder):
    (folder / "config.json").unlink()
    assert "no config.json" in refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\x00\xff"])
def test_a_config_that_is_not_json(folder, text):
    (folder / "config.json").write_text(text)
    assert "config.json" in refusal(folder)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "no causal language model"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "BertForMaskedLM"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"model_type": "lama"}, "did you mean 'llama'"),
        ({"model_type": ...}, "no model_type"),
        ({"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "mine.Mine"}}, "--trust-remote-code"),
    ],
)
def test_not_a_causal_language_model(folder, fields, expected):
    edit_config(folder, **fields)
    assert expected in refusal(folder)


def test_a_two_way_model_is_refused_although_it_has_a_language_model_class(tmp_path):
    sizes = dict(hidden_size=32, intermediate_size=48, num_attention_heads=4, num_hidden_layers=2, vocab_size=61)
    for is_decoder in (True, False):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("bert", is_decoder=is_decoder, **sizes))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.1)
        model.save_pretrained(tmp_path / str(is_decoder))
    assert open_model(tmp_path / "True").model.config.is_decoder
    assert "'bert' model tokens see the tokens after them" in refusal(tmp_path / "False")


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    assert "no weights" in refusal(folder)


def test_pickled_weights_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = refusal(folder)
    assert "pickled" in message and "save_pretrained" in message


@pytest.mark.parametrize("n_bytes", [0, 4, 8, 100, -1, -1000])
def test_truncated_safetensors(folder, n_bytes):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:n_bytes])
    assert "truncated" in refusal(folder) and str(path) in refusal(folder)


def test_safetensors_with_bytes_too_many(folder):
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    assert "longer than its header says" in refusal(folder)


@pytest.mark.parametrize("at", [9, 40, 200])
def test_corrupt_safetensors_header(folder, at):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[at : at + 3] = b"\xff{\xff"
    path.write_bytes(content)
    assert "corrupt safetensors header" in refusal(folder)


def shard(folder, n_files=3):
    """Split a single-file checkpoint over shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {}
    for i in range(n_files):
        file = f"model-{i + 1:05d}-of-{n_files:05d}.safetensors"
        part = {name: tensors[name] for name in names[i::n_files]}
        save_file(part, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_sharded_and_single_checkpoints_open_alike_and_have_one_fingerprint(saved, folder):
    shard(folder)
    ours, theirs = open_model(folder), open_model(saved)
    assert all(torch.equal(value, theirs.model.state_dict()[name]) for name, value in ours.model.state_dict().items())
    assert ours.fingerprint == theirs.fingerprint


def test_an_index_that_names_missing_shards(folder):
    shard(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    message = refusal(folder)
    assert "1 of 3 shards" in message and "model-00002-of-00003.safetensors" in message


def test_an_index_that_disagrees_with_its_shards(folder):
    shard(folder)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = next(
        place for place in index["weight_map"].values() if place != index["weight_map"]["model.norm.weight"]
    )
    path.write_text(json.dumps(index))
    assert "model.norm.weight" in refusal(folder)


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "1 missing tensors, first 'model.layers.1.mlp.up_proj.weight'"),
        (lambda t: t.update({"model.extra": torch.ones(2)}), "1 unexpected tensors, first 'model.extra'"),
        (lambda t: t.update({"model.norm.weight": torch.ones(7)}), "1 mismatched tensors, first 'model.norm.weight'"),
        (lambda t: t["model.layers.1.self_attn.q_proj.weight"][0].fill_(torch.nan), "'model.layers.1.self_attn.q_proj.weight'"),
        (lambda t: t["model.norm.weight"][0].fill_(torch.inf), "'model.norm.weight' holds NaN or infinite"),
    ],
)
def test_tensors_that_are_not_those_of_the_config(folder, change, expected):
    change_tensors(folder, change)
    assert expected in refusal(folder)


@pytest.mark.parametrize("n_layers", [1, 3])
def test_a_config_of_another_depth_is_refused_not_filled_at_random(folder, n_layers):
    edit_config(folder, num_hidden_layers=n_layers)
    assert f"states {n_layers} layers, the weights have 2" in refusal(folder)


def test_tied_weights_are_not_missing(tmp_path):
    tiny_model("gpt2", n_layers=2).save_pretrained(tmp_path)
    assert "lm_head.weight" not in read_shard(tmp_path / "model.safetensors").slots
    model = open_model(tmp_path).model
    assert model.lm_head.weight is model.transformer.wte.weight


def test_a_quantisation_that_the_weights_do_not_have_is_refused_and_the_folder_still_checked(folder):
    edit_config(folder, quantization_config={"quant_method": "fp8"})
    assert "states a quantisation (fp8), and no tensor is quantised" in refusal(folder)
    assert quantisation(json.loads((folder / "config.json").read_text())) == "fp8"
    assert len(check_source(folder)) == 1


def test_fingerprint_covers_config_names_and_weights(folder):
    before = fingerprint(folder)
    assert fingerprint(folder) == before
    change_tensors(folder, lambda t: t["model.norm.weight"][3].add_(1e-6))
    weights = fingerprint(folder)
    edit_config(folder, rms_norm_eps=1e-3)
    assert len({before, weights, fingerprint(folder)}) == 3


@pytest.mark.parametrize("n_bytes", [0, 5, 3 * SAMPLE_BYTES, 3 * SAMPLE_BYTES + 1, 10**7])
def test_sampled_fingerprints_read_both_ends_of_every_tensor(n_bytes):
    ranges = sampled_ranges(100, 100 + n_bytes)
    assert ranges[0][0] == 100 and sum(ranges[-1]) == 100 + n_bytes
    assert sum(length for _, length in ranges) <= 3 * SAMPLE_BYTES < WHOLE_BYTES


def test_shard_slots_are_the_bytes_of_the_tensors(saved):
    shard = read_shard(saved / "model.safetensors")
    raw = (saved / "model.safetensors").read_bytes()
    for name, tensor in load_file(saved / "model.safetensors").items():
        slot = shard.slots[name]
        assert raw[shard.data_start + slot.start : shard.data_start + slot.stop] == tensor.numpy().tobytes()
