"""A folder that somebody else wrote can hold anything: each fault is one line that names the file, however it is opened."""

import json
import os
import shutil

import pytest
import torch
from families import tiny_model
from safetensors.torch import load_file, save_file

from shoal.checkpoint import in_memory
from shoal.checkpoint.rewrite import rewrite
from shoal.edits.drop import Drop
from shoal.edits.plan import Plan
from shoal.engine.model_config import describe
from shoal.engine.open import open_model
from shoal.engine.source import fingerprint
from shoal.engine.streamed import open_streamed
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.words.structure import Size
from shoal.words.types import Batch, Unit

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "llama"
    tiny_model("llama", n_layers=3).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def cut(folder):
    size = Size(layers=3, parameters=0)
    plan = Plan(source="m", source_hash="", teacher="m", n_layers=3, edits=(Drop(indices=(1,)),), before=size, after=size)
    return rewrite(folder, plan, folder.parent / "out")


WAYS = {"open": open_model, "stream": open_streamed, "describe": describe, "cut": cut}


def assert_refused(folder, *said, ways=tuple(WAYS)):
    """One line that names the fault, whoever opens the folder; no checkpoint is left."""
    for way in ways:
        with pytest.raises(ValueError) as caught:
            WAYS[way](folder)
        message = str(caught.value)
        assert "\n" not in message and len(message) < 1200, message
        assert all(word in message for word in said), (way, message)
    assert not (folder.parent / "out").exists()


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def state(folder, **fields):
    """Write fields into config.json; ``...`` takes one out."""
    content = {**config_of(folder), **fields}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def set_header(folder, edit):
    """Rewrite the header of the weights through ``edit(header)``, which may return any text; the data stays."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    new = edit(header)
    text = (json.dumps(header) if new is None else new).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def test_the_sound_folder_is_opened_in_every_way(folder):
    for way in WAYS.values():
        way(folder)


NESTED = "[" * 5000 + "]" * 5000
DIGITS = "9" * 5000
CONFIGS = {
    "nested a thousand deep": ('{"model_type": "llama", "x": ' + NESTED + "}", "nested deeper"),
    "nested in objects": ('{"a":' * 2000 + "1" + "}" * 2000, "nested deeper"),
    "a number of 5,000 digits": ('{"model_type": "llama", "vocab_size": ' + DIGITS + "}", "too many digits"),
    "half a character": ('{"model_type": "llama", "name": "\\ud800"}', "half a character"),
    "a list": ("[]", "an object is needed"),
    "nothing": ("", "not valid JSON"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_is_no_json_object_of_sane_size(folder, name):
    text, said = CONFIGS[name]
    (folder / "config.json").write_text(text)
    assert_refused(folder, "config.json", said)


FIELDS = {
    "architectures of numbers": dict(architectures=[3]),
    "architectures as a text": dict(architectures="LlamaForCausalLM"),
    "a family that is a list": dict(model_type=[]),
    "a family that is a number": dict(model_type=7),
    "no family": dict(model_type=...),
    "a nested config that is a text": dict(text_config="x"),
    "an auto_map that is a list": dict(auto_map=["a"]),
    "an unknown dtype": dict(dtype="float99"),
    "no heads": dict(num_attention_heads=0),
    "heads as a text": dict(num_key_value_heads="x"),
    "layers as a text": dict(num_hidden_layers="3"),
    "layers as true": dict(num_hidden_layers=True),
    "no layer": dict(num_hidden_layers=0),
    "minus one layer": dict(num_hidden_layers=-1),
    "a width of null": dict(hidden_size=None),
    "a negative width": dict(hidden_size=-32),
    "a width as a list": dict(intermediate_size=[48]),
    "an activation that is not known": dict(hidden_act="swosh"),
    "rotary parameters that are a list": dict(rope_parameters=[1]),
    "a quantisation that is a text": dict(quantization_config="int4"),
    "a billion layers": dict(num_hidden_layers=10**9),
    "a billion heads": dict(num_attention_heads=10**9),
    "a width of a billion": dict(hidden_size=2**30),
    "a vocabulary of a billion": dict(vocab_size=10**9),
    "a number that no model has": dict(intermediate_size=10**30),
    "one layer fewer than the weights": dict(num_hidden_layers=2),
    "one layer more than the weights": dict(num_hidden_layers=4),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_config_that_no_model_of_these_weights_has(folder, name):
    state(folder, **FIELDS[name])
    assert_refused(folder, str(folder))


def test_a_config_with_nothing_but_its_family_is_held_against_the_weights_before_anything_is_built(folder):
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    assert_refused(folder, "states 32 layers, the weights have 3")


HEADERS = {
    "a dtype that is a list": lambda tensor: tensor.update(dtype=["F32"]),
    "an unknown dtype": lambda tensor: tensor.update(dtype="F33"),
    "a shape of texts": lambda tensor: tensor.update(shape=["32"]),
    "a shape of floats": lambda tensor: tensor.update(shape=[32.0]),
    "a shape of negatives": lambda tensor: tensor.update(shape=[-32, -1]),
    "a shape of truth": lambda tensor: tensor.update(shape=[True, *tensor["shape"]]),
    "a shape that is a number": lambda tensor: tensor.update(shape=32),
    "offsets of null": lambda tensor: tensor.update(data_offsets=None),
    "offsets of truth": lambda tensor: tensor.update(data_offsets=[False, True]),
    "offsets as texts": lambda tensor: tensor.update(data_offsets=["0", "1"]),
    "three offsets": lambda tensor: tensor["data_offsets"].append(3),
    "offsets turned round": lambda tensor: tensor["data_offsets"].reverse(),
    "offsets beyond any file": lambda tensor: tensor.update(data_offsets=[2**70, 2**71]),
    "no shape": lambda tensor: tensor.__delitem__("shape"),
    "one field more": lambda tensor: tensor.update(more=1),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_damaged_entry_of_a_safetensors_header(folder, name):
    set_header(folder, lambda header: HEADERS[name](header["model.norm.weight"]))
    assert_refused(folder, "corrupt safetensors header", "model.norm.weight")


@pytest.mark.parametrize(
    "text",
    [
        NESTED,
        '{"a": ' + NESTED + "}",
        '{"a": {"dtype": "F32", "shape": [' + DIGITS + '], "data_offsets": [0, 4]}}',
        "[]",
        '{"a": 3}',
        '{"a": null}',
        '{"__metadata__": 3}',
        '{"__metadata__": {"format": 3}}',
        "{  ",
    ],
)
def test_a_header_that_is_none(folder, text):
    set_header(folder, lambda header: text)
    assert_refused(folder, "corrupt safetensors header")


def test_a_tensor_that_is_stated_twice(folder):
    set_header(
        folder, lambda header: json.dumps(header)[:-1] + ', "lm_head.weight": ' + json.dumps(header["lm_head.weight"]) + "}"
    )
    assert_refused(folder, "'lm_head.weight' twice")


@pytest.mark.parametrize("place", ["../victim.safetensors", "/etc/hostname", "sub/x.safetensors", "", ".", 3, None, "x" * 5000])
def test_an_index_that_leads_elsewhere(folder, place):
    shutil.copy(folder / "model.safetensors", folder.parent / "victim.safetensors")
    names = load_file(folder / "model.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, place)}))
    (folder / "model.safetensors").unlink()
    assert_refused(folder, INDEX)


def test_two_shards_that_hold_one_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "a.safetensors")
    save_file({"model.norm.weight": tensors["model.norm.weight"]}, folder / "b.safetensors")
    places = {name: "b.safetensors" if name == "model.norm.weight" else "a.safetensors" for name in tensors}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert_refused(folder, "both hold 'model.norm.weight'")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "notes.txt"])
def test_a_pipe_in_the_folder_is_refused_and_nobody_waits(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert_refused(folder, name, "pipe")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_in_the_place_of_a_file(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    assert_refused(folder, name, "is a folder")


def test_a_link_to_itself(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(folder / "config.json")
    assert_refused(folder, "config.json")


def test_a_file_without_permission_says_so(folder, monkeypatch):
    def refuse(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    assert_refused(folder, "config.json cannot be read (Permission denied)")


# -- what lies beside the weights ----------------------------------------------------------------------------------------


def test_an_adapter_beside_the_model_is_refused_before_any_work(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"}))
    assert_refused(folder, "holds an adapter", "LORA", "merge it")


def test_an_adapter_alone_is_called_one(folder):
    for file in folder.iterdir():
        file.unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"}))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    assert_refused(folder, "is an adapter (LORA) of 'org/base', not a model")


def with_tensors(folder, **tensors):
    """The same weights and some more."""
    there = load_file(folder / "model.safetensors")
    more = {name.replace("__", "."): value for name, value in tensors.items()}
    save_file({**there, **more}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module", params=["deepseek_v3", "qwen3"])
def predicting(request, tmp_path_factory):
    """A model of 4 layers with one for multi-token prediction behind the last."""
    folder = tmp_path_factory.mktemp("mtp") / request.param
    tiny_model(request.param, n_layers=4).save_pretrained(folder)
    with_tensors(folder, model__layers__4__eh_proj__weight=torch.ones(32, 64), model__layers__4__enorm__weight=torch.ones(32))
    state(folder, num_nextn_predict_layers=1)
    return folder


def test_layers_for_multi_token_prediction_are_set_aside_in_every_way_of_opening(predicting, tmp_path):
    assert describe(predicting).beside.behind == (4,)
    for way in (open_model, lambda path: open_streamed(path)[0]):
        opened = way(predicting)
        assert opened.model.config.num_hidden_layers == 4
        assert "layer 4 behind the last one, for multi-token prediction: set aside" in str(opened.beside)
    size = Size(layers=4, parameters=0)
    plan = Plan(source="m", source_hash="", teacher="m", n_layers=4, edits=(Drop(indices=(2,)),), before=size, after=size)
    out = rewrite(predicting, plan, tmp_path / "out")
    assert not any("eh_proj" in name or "layers.3." in name for name in load_file(out / "model.safetensors"))
    assert config_of(out)["num_nextn_predict_layers"] == 0
    assert open_model(out).beside.behind == ()


def test_a_layer_behind_the_last_that_is_like_the_others_is_no_prediction(folder):
    state(folder, num_hidden_layers=2, num_nextn_predict_layers=1)
    assert_refused(folder, "states 2 layers, the weights have 3")


def test_a_head_for_prediction_under_its_own_name_is_copied_and_said(folder, tmp_path):
    with_tensors(folder, mtp__layers__0__eh_proj__weight=torch.ones(32, 64), mtp__norm__weight=torch.ones(32))
    for opened in (open_model(folder), open_streamed(folder)[0]):
        assert "2 tensors of a head for multi-token prediction" in str(opened.beside)
    state(folder, num_nextn_predict_layers=1)
    out = cut(folder)
    assert set(load_file(out / "model.safetensors")) >= {"mtp.norm.weight", "mtp.layers.0.eh_proj.weight"}
    assert config_of(out)["num_nextn_predict_layers"] == 1, "the count of what is kept"
    gone = Student(frozenset({Unit("layer", 1)}))
    alone = in_memory.cut(DecoderView(open_model(folder).model), gone)
    assert alone.config.num_nextn_predict_layers == 0, "a model in memory has no such head"


@pytest.mark.parametrize("field", ["mtp_num_hidden_layers", "num_mtp_layers", "num_nextn_predict_layers"])
def test_a_count_of_prediction_layers_that_are_not_there_is_not_passed_on(folder, field):
    state(folder, **{field: 1})
    assert config_of(cut(folder))[field] == 0


def test_other_formats_beside_the_weights_are_named_and_not_copied(folder):
    (folder / "model-Q4.gguf").write_bytes(b"GGUF")
    assert "model-Q4.gguf, another format" in str(open_model(folder).beside)
    assert not (cut(folder) / "model-Q4.gguf").exists()


def test_a_side_file_that_links_out_of_the_folder_is_refused(folder):
    (folder.parent / "secret").write_text("x")
    (folder / "NOTES.txt").symlink_to(folder.parent / "secret")
    assert_refused(folder, "NOTES.txt is a link to", ways=("cut",))
    (folder / "NOTES.txt").unlink()
    (folder / "a.txt").write_text("a")
    (folder / "NOTES.txt").symlink_to(folder / "a.txt")
    assert (cut(folder) / "NOTES.txt").read_text() == "a"


def test_the_identity_of_a_damaged_folder_is_refused_too(folder):
    set_header(folder, lambda header: "[]")
    with pytest.raises(ValueError, match="corrupt safetensors header"):
        fingerprint(folder)


# -- wrappers ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wrapper(tmp_path_factory):
    """A decoder in a wrapper, beside a tower of as many layers."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    torch.manual_seed(0)
    decoder = dict(
        hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, vocab_size=80, num_hidden_layers=4,
        head_dim=8, max_position_embeddings=64, query_pre_attn_scalar=8, sliding_window=16,
    )  # fmt: skip
    tower = dict(hidden_size=32, intermediate_size=48, num_attention_heads=4, num_hidden_layers=4, image_size=28, patch_size=14)
    tokens = dict(mm_tokens_per_image=4, image_token_index=70, boi_token_index=71, eoi_token_index=72)
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=decoder, vision_config=tower, **tokens))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.1)
    folder = tmp_path_factory.mktemp("wrapper") / "gemma3"
    model.save_pretrained(folder)
    return folder


def test_a_tower_of_as_many_layers_is_no_part_of_the_decoder_in_memory_and_on_disk(wrapper):
    whole, (streamed, residency) = open_model(wrapper), open_streamed(wrapper)
    ids_BT = torch.arange(16).view(2, 8)
    theirs = DecoderView(whole.model).logits(Batch(ids_BT))
    ours = DecoderView(streamed.model, residency=residency).logits(Batch(ids_BT))
    assert torch.equal(theirs, ours)
    assert "a tower" in str(whole.beside) and whole.beside == streamed.beside


def test_a_cut_wrapper_keeps_its_tower_whole(wrapper, tmp_path):
    size = Size(layers=4, parameters=0)
    plan = Plan(source="m", source_hash="", teacher="m", n_layers=4, edits=(Drop(indices=(1, 2)),), before=size, after=size)
    config = config_of(rewrite(wrapper, plan, tmp_path / "out"))
    assert (config["text_config"]["num_hidden_layers"], config["vision_config"]["num_hidden_layers"]) == (2, 4)
    assert open_model(tmp_path / "out").beside.tower == open_model(wrapper).beside.tower > 0
