"""A GGUF file is a source: what is read is what it holds, the original stays, and whatever is wrong is one line."""

import builtins
import json
import sys
import warnings

import gguf
import numpy as np
import pytest
import torch
from gguf_world import TEMPLATE, TOKENS, stored, tiny_llama, write_gguf
from transformers import AutoModelForCausalLM

from shoal.engine.gguf_source import DequantisedSource, read_facts
from shoal.engine.open import open_model
from shoal.engine.source import resolve_source
from shoal.recipes.recipe_file import load_recipe
from shoal.run.compress import compress
from shoal.words.progress import watched


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shoal" / "gguf"


@pytest.fixture(scope="module")
def teacher():
    return tiny_llama()


@pytest.fixture
def file(tmp_path, teacher):
    (tmp_path / "download").mkdir()
    return write_gguf(tmp_path / "download" / "tiny.gguf", teacher)


def test_an_opened_file_computes_what_the_model_in_it_computes(file, teacher):
    with pytest.warns(DequantisedSource, match="tiny.gguf is a GGUF file"):
        opened = open_model(file)
    ids = torch.randint(0, len(TOKENS), (2, 17), generator=torch.Generator().manual_seed(0))
    assert opened.model.dtype == torch.float32 and opened.name == str(file)
    with torch.no_grad():
        assert torch.equal(opened.model(ids).logits, teacher(ids).logits)
    tokenizer = opened.need_tokenizer()
    assert tokenizer.convert_ids_to_tokens(tokenizer("of the bell<|end|>").input_ids)[-1] == "<|end|>"
    assert tokenizer.decode(tokenizer("of the bell").input_ids) == "of the bell" and tokenizer.chat_template == TEMPLATE


@pytest.mark.parametrize(("kind", "dtype"), [("F16", torch.float16), ("Q8_0", torch.bfloat16), ("Q4_1", torch.bfloat16)])
@pytest.mark.filterwarnings("ignore::shoal.engine.gguf_source.DequantisedSource")
def test_blocks_are_unpacked_to_their_values(tmp_path, teacher, kind, dtype):
    model = open_model(write_gguf(tmp_path / "packed.gguf", teacher, kind=kind)).model
    name = "blk.1.ffn_up.weight"
    number = gguf.GGMLQuantizationType[kind]
    values = gguf.quants.dequantize(gguf.quants.quantize(stored(teacher)[name], number), number)
    assert model.dtype == dtype
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, torch.from_numpy(values.astype(np.float32)).to(dtype))


def test_a_file_is_unpacked_once_and_never_changed(file, cache, capfd):
    before, heard = file.read_bytes(), []
    with pytest.warns(DequantisedSource), watched(lambda what, done, total: heard.append((what, done, total))):
        first = resolve_source(file)
    assert heard[0][0].startswith("dequantise") and heard[0][1] == 0 and heard[-1][1] == heard[-1][2]
    assert "de-quantizing" not in capfd.readouterr().err, "progress is told in one way"
    written = (first / "model.safetensors").stat().st_mtime_ns
    with warnings.catch_warnings():  # What is new here to every warning's record is not said again.
        warnings.simplefilter("error")
        assert resolve_source(str(file.parent)) == first  # The folder holds the file.
    assert (first / "model.safetensors").stat().st_mtime_ns == written and file.read_bytes() == before
    assert [one.name for one in cache.iterdir()] == [first.name]


@pytest.mark.filterwarnings("ignore::shoal.engine.gguf_source.DequantisedSource")
def test_a_changed_file_is_unpacked_again(file, teacher):
    first = resolve_source(file)
    write_gguf(file, tiny_llama(n_layers=2))
    second = resolve_source(file)
    assert second != first and json.loads((second / "config.json").read_text())["num_hidden_layers"] == 2


def test_a_folder_with_safetensors_is_read_as_before(file, teacher):
    teacher.save_pretrained(file.parent)
    assert resolve_source(file.parent) == file.parent


@pytest.mark.filterwarnings("ignore::shoal.engine.gguf_source.DequantisedSource")
def test_a_plan_of_a_file_names_the_command_that_cuts_it(shoal, file):
    code, out, err = shoal("plan", file, "--layers", 1, "--out", "p")
    assert code == 0, err
    assert f"shoal cut {file} --plan p/plan.json --out p-cut.gguf" in out


@pytest.mark.filterwarnings("ignore::shoal.engine.gguf_source.DequantisedSource")
def test_a_packed_model_is_compressed_like_any_other(tmp_path, file, teacher):
    text = tmp_path / "text.jsonl"
    draw = np.random.default_rng(0)
    words = ["bell", "rope", "the", "stone", "of"]
    text.write_text("".join(json.dumps({"text": " ".join(draw.choice(words, 30))}) + "\n" for _ in range(200)))
    options = {"model": str(file.parent), "drop": "1", "guard": 1, "text": {"sources": [str(text)], "length": 32, "samples": 8}}
    outcome = compress(load_recipe("default", options), tmp_path / "run")
    loaded = AutoModelForCausalLM.from_pretrained(outcome.model)
    assert loaded.config.num_hidden_layers == teacher.config.num_hidden_layers - 1
    assert "license: apache-2.0" in (outcome.model / "README.md").read_text()
    assert [one.name for one in file.parent.iterdir()] == [file.name]


def truncate(file, teacher):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def cut_header(file, teacher):
    file.write_bytes(file.read_bytes()[:100])


def other_format(file, teacher):
    file.write_bytes(b"PK" + file.read_bytes())


def second_file(file, teacher):
    (file.parent / "other.gguf").write_bytes(file.read_bytes())


def one_part(file, teacher):
    write_gguf(file, teacher, split=3)


def lacks_a_tensor(file, teacher):
    config, partial = teacher.config, tiny_llama(n_layers=2)
    partial.config = config
    write_gguf(file, partial)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (truncate, "cut short"),
        (cut_header, "cut short"),
        (other_format, "not a GGUF file"),
        (second_file, "holds 2 GGUF files"),
        (one_part, "one of 3 parts"),
        (lacks_a_tensor, "missing tensors"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(file, cache, teacher, spoil, said):
    spoil(file, teacher)
    with pytest.raises(ValueError, match=said) as caught:
        open_model(file.parent)
    assert "\n" not in str(caught.value)
    assert not cache.exists() or not list(cache.iterdir())  # Nothing half-written is left.


def test_without_the_package_the_message_names_the_extra(file, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "gguf":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "gguf")
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"shoal\[gguf\]"):
        read_facts(file)
