"""A student's config.json is the source's with what the cut changes; old and new readers find their names in it."""

import copy
import json
import math

import pytest
from families import FAMILIES, tiny_config, tiny_model
from test_surgery_rewrite import contents, removal
from transformers import AutoConfig

from shoal.checkpoint.blueprint import edited_config
from shoal.checkpoint.config_json import edited_json, first_other_field, state_both_names, write_config
from shoal.checkpoint.in_memory import cut
from shoal.checkpoint.rewrite import rewrite
from shoal.checkpoint.save import save
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.words.types import Unit

CUT = (1, 2)
# Fields that say how many layers there are or what each of them is: the only ones a cut may change.
ABOUT_LAYERS = {
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "layer_types", "mlp_layer_types", "no_rope_layers",
    "mlp_only_layers", "decoder_sparse_step", "first_k_dense_replace", "max_window_layers",
    "num_nextn_predict_layers",
}  # fmt: skip
OLD_NAMES = {"gpt_neox": ("rotary_emb_base", "rotary_pct"), "gemma3_text": ("rope_theta", "rope_local_base_freq")}


def aged(family, content):
    """A config.json as version 4 wrote it: old names only, and keys that transformers does not know."""
    old = {key: value for key, value in content.items() if key not in ("rope_parameters", "dtype")}
    old |= {"torch_dtype": "float32", "transformers_version": "4.40.0", "vendor": {"layers": "many"}, "temperature": 0.7}
    rotary = content.get("rope_parameters")
    if family == "gemma3_text":
        old |= {"rope_theta": 777.0, "rope_local_base_freq": 333.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    elif rotary:
        theta, share = OLD_NAMES.get(family, ("rope_theta", "partial_rotary_factor"))
        old |= {theta: 777, "rope_scaling": None if family == "phi3" else {"type": "linear", "factor": 3.0}}
        if rotary.get("partial_rotary_factor"):
            old[share] = rotary["partial_rotary_factor"]
    return old


@pytest.fixture(params=sorted(FAMILIES))
def source(request, tmp_path):
    """(family, folder of an old-fashioned source)."""
    folder = tmp_path / "source"
    tiny_model(request.param).save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(aged(request.param, content)))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "odd":   1}')
    (folder / "generation_config.json").write_text('{"temperature": 0.7}')
    return request.param, folder


def test_what_the_cut_does_not_change_stays_as_it_stands(source, tmp_path):
    family, folder = source
    before = contents(folder)
    rewrite(folder, removal(*CUT), tmp_path / "files")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    student = cut(DecoderView(model), Student(frozenset(Unit("layer", i) for i in CUT)))
    save(student, None, tmp_path / "memory", source=folder)
    stated = json.loads((folder / "config.json").read_text())
    files, memory = (json.loads((tmp_path / kind / "config.json").read_text()) for kind in ("files", "memory"))
    assert files == memory
    for key, value in stated.items():
        if key not in ABOUT_LAYERS:
            assert key in files and json.dumps(files[key]) == json.dumps(value), key
    assert contents(folder) == before, "the source is not touched"
    for name in ("tokenizer_config.json", "generation_config.json"):
        for kind in ("files", "memory"):
            assert (tmp_path / kind / name).read_bytes() == before[name], "side files are copied, never written anew"


def test_the_edited_file_reads_as_the_edited_config(source, tmp_path):
    family, folder = source
    rewrite(folder, removal(*CUT), tmp_path / "files")
    source_config, config = AutoConfig.from_pretrained(folder), AutoConfig.from_pretrained(tmp_path / "files")
    assert config.num_hidden_layers == 4
    wanted = {k: v for k, v in source_config.to_dict().items() if k not in ABOUT_LAYERS | {"_name_or_path"}}
    found = config.to_dict()
    assert {k: found.get(k) for k in wanted} == wanted


def test_rotary_parameters_and_dtype_go_by_both_names(source, tmp_path):
    family, folder = source
    rewrite(folder, removal(*CUT), tmp_path / "files")
    content = json.loads((tmp_path / "files" / "config.json").read_text())
    assert content["dtype"] == content["torch_dtype"] == "float32"
    rotary = AutoConfig.from_pretrained(folder).to_dict().get("rope_parameters")
    assert content.get("rope_parameters") == rotary
    if family == "gemma3_text":
        assert rotary["full_attention"]["rope_theta"] == 777 and rotary["sliding_attention"]["rope_theta"] == 333
    elif rotary:
        assert rotary["rope_theta"] == 777 == content[OLD_NAMES.get(family, ("rope_theta",))[0]]


@pytest.mark.parametrize(
    ("family", "rotary", "old"),
    [
        ("llama", {"rope_type": "default", "rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": None}),
        (
            "llama",
            {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 32},
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                                 "high_freq_factor": 4.0, "original_max_position_embeddings": 32}},
        ),
        (
            "phi",
            {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
            {"rope_theta": 1e4, "rope_scaling": None, "partial_rotary_factor": 0.5},
        ),
        (
            "gpt_neox",
            {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.25},
            {"rotary_emb_base": 2e4, "rotary_pct": 0.25, "rope_scaling": None},
        ),
        (
            "gemma3_text",
            {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
             "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        ),
    ],
    ids=["plain", "llama3", "partial", "gpt_neox", "gemma3"],
)  # fmt: skip
def test_a_source_of_today_gets_the_old_names(family, rotary, old):
    config = tiny_config(family)
    config.rope_parameters = copy.deepcopy(rotary)
    content = json.loads(config.to_json_string())
    state_both_names(content, config.to_dict())
    assert {key: content[key] for key in old} == old and content["rope_parameters"] == rotary
    assert type(config).from_dict(copy.deepcopy(content)).to_dict()["rope_parameters"] == rotary, "and reads the same"


@pytest.mark.parametrize(("stated", "wanted"), [({"rope_theta": 10000, "dtype": "float16"}, 500000.0)])
def test_two_names_that_disagree_are_stated_as_the_model_was_run(stated, wanted):
    """transformers reads ``rope_parameters`` and ``dtype`` where both are there; the student was measured with these."""
    stated = {
        "model_type": "llama", "num_hidden_layers": 6, "torch_dtype": "bfloat16",
        "rope_parameters": {"rope_type": "default", "rope_theta": wanted}, **stated,
    }  # fmt: skip
    config = AutoConfig.for_model("llama").from_dict(copy.deepcopy(stated))
    content = edited_json(stated, config, config)
    assert content["rope_theta"] == wanted and content["torch_dtype"] == content["dtype"] == "float16"


def test_text_fields_of_a_wrapper_change_where_they_stand():
    class Config:
        attribute_map: dict = {}

        def __init__(self, n):
            self.n = n

        def to_dict(self):
            return {"text_config": {"model_type": "t", "num_hidden_layers": self.n}, "model_type": "wrapper"}

    flat = edited_json({"model_type": "wrapper", "num_hidden_layers": 6, "vision": [1]}, Config(6), Config(4))
    assert flat == {"model_type": "wrapper", "num_hidden_layers": 4, "vision": [1]}
    nested = edited_json({"text_config": {"num_hidden_layers": 6, "more": 1}}, Config(6), Config(4))
    assert nested == {"text_config": {"num_hidden_layers": 4, "more": 1}}


def test_another_name_of_a_field_changes_with_it():
    config, after = tiny_config("gpt2"), tiny_config("gpt2", n_layers=4)
    content = edited_json({"model_type": "gpt2", "n_layer": 6, "num_hidden_layers": 6}, config, after)
    assert content["n_layer"] == content["num_hidden_layers"] == 4


def test_a_file_that_would_be_read_otherwise_is_named():
    assert first_other_field({"a": 1, "b": [2]}, {"a": 1, "b": [2], "c": 3}) is None
    assert first_other_field({"a": 1, "b": 2}, {"a": 1}) == "b: 2 != nothing"
    assert first_other_field({"t": {"model_type": "a", "x": 1}}, {"t": {"model_type": "a", "x": 2}}) == "t.x: 1 != 2"


@pytest.mark.parametrize("family", ["falcon_h1", "nemotron_h"])
def test_a_number_that_json_has_not_is_read_back(family, tmp_path):
    """The library writes infinity as an object of its own; a student of such a family ended in a traceback."""
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    assert "Infinity" in str(stated["time_step_limit"])
    before = AutoConfig.from_pretrained(tmp_path)
    after = edited_config(before, range(before.num_hidden_layers - 4, before.num_hidden_layers))
    (tmp_path / "student").mkdir()
    write_config(tmp_path / "student" / "config.json", stated, before, after)
    again = AutoConfig.from_pretrained(tmp_path / "student")
    assert again.num_hidden_layers == 4 and tuple(again.time_step_limit) == (0.0, math.inf)
