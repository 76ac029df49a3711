"""What a GGUF file says of a tokenizer and of its positions, as other readers have it."""

import json

import numpy as np
import pytest
from gguf_files import keys_of

from shoal.export.exporter import Options
from shoal.export.gguf.convert import Rotary, llama3_factors
from shoal.export.gguf.tokenizer import pieces, split_name
from shoal.export.table import export

SPLITS = {
    "gpt-2": {"type": "ByteLevel", "use_regex": True},
    "smollm": {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "use_regex": True}]},
    "llama-bpe": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+"}},
        {"type": "ByteLevel", "use_regex": False}]},
    "qwen2": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+"}},
        {"type": "ByteLevel", "use_regex": False}]},
}  # fmt: skip


@pytest.mark.parametrize("name", SPLITS)
def test_ways_of_splitting_text_have_their_names(name):
    assert split_name({"pre_tokenizer": SPLITS[name]}) == name


@pytest.mark.parametrize("pre", [None, {"type": "Whitespace"}, {"type": "Sequence", "pretokenizers": [{"type": "Metaspace"}]}])
def test_an_unknown_way_of_splitting_is_refused(pre):
    with pytest.raises(ValueError, match="no known name in llama.cpp; export with --like"):
        split_name({"pre_tokenizer": pre})


def test_pieces_of_a_sentencepiece_model():
    import struct

    def piece(text, score, kind=None):
        raw = b"\x0a" + bytes([len(text.encode())]) + text.encode() + b"\x15" + struct.pack("<f", score)
        raw += b"" if kind is None else b"\x18" + bytes([kind])
        return b"\x0a" + bytes([len(raw)]) + raw

    trainer = b"\x12\x03abc"
    raw = piece("<s>", 0.0, 3) + trainer + piece("▁the", -1.5) + piece("<0x0A>", 0.0, 6)
    assert list(pieces(raw)) == [("<s>", 0.0, 3), ("▁the", -1.5, 1), ("<0x0A>", 0.0, 6)]
    for n in range(1, len(raw)):
        try:
            list(pieces(raw[:n]))
        except ValueError as error:
            assert "damaged" in str(error)


def test_the_bundled_model_brings_its_tokenizer(tmp_path):
    from pathlib import Path

    import shoal

    bundled = Path(shoal.__file__).parent / "assets" / "books-16l"
    keys = keys_of(export("gguf", bundled, tmp_path / "m.gguf", Options(kind="q8_0")).path)
    content = json.loads((bundled / "tokenizer.json").read_text())
    tokens = keys["tokenizer.ggml.tokens"]
    assert len(tokens) == 4096 and all(tokens[i] == token for token, i in content["model"]["vocab"].items())
    assert keys["tokenizer.ggml.pre"] == split_name(content) and keys["tokenizer.ggml.eos_token_id"] == 0
    assert len(keys["tokenizer.ggml.merges"]) == len(content["model"]["merges"])


def test_frequencies_of_llama_3_are_those_of_transformers():
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = LlamaConfig(hidden_size=512, num_attention_heads=4, rope_parameters=scaling, max_position_embeddings=131072)
    wanted, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1.0 / 5e5 ** (np.arange(0, 128, 2) / 128)
    assert np.allclose(plain / llama3_factors(Rotary(5e5, scaling), 128), wanted.numpy(), rtol=1e-6)
