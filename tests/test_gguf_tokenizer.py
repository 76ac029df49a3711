"""What a GGUF file says of a tokenizer and of its positions, as other readers have it."""

import json
import shutil
import struct
import subprocess

import numpy as np
import pytest
from gguf_files import keys_of
from gguf_world import BYTES, tiny_llama
from test_export_engines import installed

from shoal.export.engines import run_llama_cpp
from shoal.export.engines.table import ENGINES
from shoal.export.exporter import Options
from shoal.export.gguf.convert import Rotary, llama3_factors
from shoal.export.gguf.pre_tokenizer import split_name
from shoal.export.gguf.tokenizer import pieces, tokenizer_keys
from shoal.export.table import export

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = CASED % ("", "", r"\p{N}")
GPT_4O = CASED % (*["(?i:'s|'t|'re|'ve|'m|'ll|'d)?"] * 2, r"\p{N}{1,3}")


def byte_level(use_regex, prefix=False):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": use_regex}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


def split(pattern, **more):
    return sequence(
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False, **more}, byte_level(False)
    )


DIGITS = {"type": "Digits", "individual_digits": True}
SPLITS = {
    "gpt-2": (byte_level(True), False),
    "smollm": (sequence(DIGITS, byte_level(True)), False),
    "llama-bpe": (split(LLAMA_3), True),
    "smaug-bpe": (split(LLAMA_3), False),
    "qwen2": (split(QWEN_2), False),
    "tekken": (split(TEKKEN), True),
    "gpt-4o": (split(GPT_4O), False),
}
"""llama.cpp's name to the section of the models that it is named after, and their ``ignore_merges``."""


def content_of(pre, ignores_merges=False, normaliser=None):
    return {"pre_tokenizer": pre, "normalizer": normaliser, "model": {"ignore_merges": ignores_merges}}


@pytest.mark.parametrize("name", SPLITS)
def test_ways_of_splitting_text_have_their_names(name):
    assert split_name(content_of(*SPLITS[name])) == name
    assert split_name(content_of(*SPLITS[name], {"type": "NFC"})) == name


UNKNOWN = {
    "none": content_of(None),
    "words": content_of({"type": "Whitespace"}),
    "spaces": content_of(sequence({"type": "Metaspace"})),
    "no pattern": content_of(byte_level(False)),
    "groups of digits": content_of(sequence({**DIGITS, "individual_digits": False}, byte_level(True))),
    "digits behind": content_of(sequence(byte_level(True), DIGITS)),
    "two patterns": content_of(sequence(*split(QWEN_2)["pretokenizers"][:1], byte_level(True))),
    "nearly llama": content_of(split(LLAMA_3.replace(r"\s*[\r\n]+", r"\s*[\r\n]")), True),
    "a pattern alone": content_of({"pretokenizers": [], **split(QWEN_2)["pretokenizers"][0]}),
    "removed": content_of(split(QWEN_2, behavior="Removed")),
    "inverted": content_of(split(QWEN_2, invert=True)),
    "a piece of merges": content_of(split(TEKKEN), False),
    "a whole piece": content_of(split(QWEN_2), True),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_an_unknown_way_of_splitting_is_refused(case):
    with pytest.raises(ValueError, match="no known name in llama.cpp; export with --like"):
        split_name(UNKNOWN[case])


@pytest.mark.parametrize("kinds", [["Lowercase"], ["NFKC"], ["NFC", "Replace"]])
def test_a_tokenizer_that_changes_text_is_refused(kinds):
    steps = [{"type": kind} for kind in kinds]
    normaliser = steps[0] if len(steps) == 1 else {"type": "Sequence", "normalizers": steps}
    with pytest.raises(ValueError, match=rf"changes text before it splits it \({kinds[-1]}\).*export with --like"):
        split_name(content_of(byte_level(True), False, normaliser))


def test_a_space_in_front_of_a_text_is_refused():
    for content, config in (
        (content_of(byte_level(True, prefix=True)), {}),
        (content_of(byte_level(True)), {"add_prefix_space": True}),
    ):
        with pytest.raises(ValueError, match="a space in front of a text.*export with --like"):
            split_name(content, config)


def message(number, content):
    """A field of a message: bytes with their length, or a small number."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(n):
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def piece(text, score, kind=None):
    raw = message(1, text.encode()) + b"\x15" + struct.pack("<f", score)
    return message(1, raw + (b"" if kind is None else message(3, kind)))


def test_pieces_of_a_sentencepiece_model():
    trainer = b"\x12\x03abc"
    raw = piece("<s>", 0.0, 3) + trainer + piece("▁the", -1.5) + piece("<0x0A>", 0.0, 6)
    assert list(pieces(raw)) == [("<s>", 0.0, 3), ("▁the", -1.5, 1), ("<0x0A>", 0.0, 6)]
    for n in range(1, len(raw)):
        try:
            list(pieces(raw[:n]))
        except ValueError as error:
            assert "damaged" in str(error)


@pytest.mark.parametrize(
    ("spec", "prefix", "squeezed"),
    [({3: 0, 4: 0}, False, False), ({3: 1, 4: 0}, True, False), ({3: 0}, False, True), ({}, True, True), (None, True, True)],
)
def test_spaces_of_a_sentencepiece_model_are_those_of_its_normaliser(spec, prefix, squeezed, tmp_path):
    """Gemma puts no space in front of a text, Llama does; what a message leaves out is true by the format's definition."""
    raw = piece("<s>", 0.0, 3) + piece("▁the", -1.5)
    if spec is not None:
        raw += message(3, message(1, b"identity") + b"".join(message(*one) for one in spec.items()))
    (tmp_path / "tokenizer.model").write_bytes(raw)
    keys = tokenizer_keys(tmp_path, 2)
    assert keys["tokenizer.ggml.add_space_prefix"].value is prefix
    assert keys["tokenizer.ggml.remove_extra_whitespaces"].value is squeezed


ACROSS = ["1 2", "12 3", "123 4", "o W", "' S", "! Ċ", "Ċ /", "Ġ 1"]
"""Merges over the borders that some of the patterns have and others do not."""
KNOWN = [*BYTES, *(merge.replace(" ", "") for merge in ACROSS), "zz", "<|end|>"]
"""Tokens of the tests with llama.cpp; no merge makes ``zz``, found only where a piece that is a token is not merged."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The tiny Llama without a tokenizer."""
    folder = tmp_path_factory.mktemp("plain") / "m"
    model = tiny_llama(n_layers=1)
    model.resize_token_embeddings(len(KNOWN))
    model.save_pretrained(folder)
    return folder


def tokens_in_llama_cpp(folder, texts, tmp_path):
    """Ids that llama.cpp makes of texts with the tokenizer of an exported folder."""
    asked, reply = tmp_path / "request.json", tmp_path / "reply.npz"
    file = export("gguf", folder, tmp_path / "m.gguf", Options(kind="f32")).path
    request = {"path": str(file), "ids": [1, 2], "positions": [1], "n_greedy": 0, "n_vocab": len(KNOWN), "texts": texts}
    asked.write_text(json.dumps(request))
    subprocess.run([ENGINES["llama.cpp"].interpreter(), run_llama_cpp.__file__, asked, reply], check=True, capture_output=True)
    return json.loads(str(np.load(reply)["said"]))["tokens"]


@installed("llama.cpp")
@pytest.mark.parametrize("prefix", [False, True])
def test_llama_cpp_begins_a_text_as_the_normaliser_says(prefix, plain, tmp_path):
    words = ["▁", "▁t", "▁th", "▁the", "th", "the", *"the"]
    scores = [-50.0, -2.0, -1.0, -0.5, -3.0, -2.5, -20.0, -21.0, -22.0]
    raw = piece("<s>", 0.0, 3) + b"".join(piece(*one) for one in zip(words, scores, strict=True))
    shutil.copytree(plain, tmp_path / "m")
    (tmp_path / "m" / "tokenizer.model").write_bytes(raw + message(3, message(3, int(prefix)) + message(4, 0)))
    first, second = tokens_in_llama_cpp(tmp_path / "m", ["the the", "the  the"], tmp_path)
    begun = "▁the" if prefix else "the"
    assert [words[i - 1] for i in first] == [begun, "▁the"] and [words[i - 1] for i in second] == [begun, "▁", "▁the"]


@pytest.mark.slow
@installed("llama.cpp")
@pytest.mark.parametrize("name", SPLITS)
def test_llama_cpp_splits_text_as_the_tokenizer_does(name, plain, tmp_path):
    from tokenizers import Tokenizer

    texts = ["it'S 1234 heoWorld", "zz!\n/ they'll 12", " 1  2\n\n !/\n"]
    vocab = {token: i for i, token in enumerate(KNOWN)}
    content = content_of(*SPLITS[name])
    content["model"] |= {"type": "BPE", "vocab": vocab, "merges": ACROSS}
    shutil.copytree(plain, tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], **content}))
    wanted = [Tokenizer.from_file(str(tmp_path / "m" / "tokenizer.json")).encode(text).ids for text in texts]
    assert tokens_in_llama_cpp(tmp_path / "m", texts, tmp_path) == wanted


def test_spaces_that_llama_cpp_keeps_are_told(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "m")
    for squeezed in (0, 1):
        (tmp_path / "m" / "tokenizer.model").write_bytes(piece("▁the", -1.5) + message(3, message(4, squeezed)))
        notes = export("gguf", tmp_path / "m", tmp_path / f"{squeezed}.gguf", Options()).notes
        assert any("one space of several" in note for note in notes) is bool(squeezed)


TEMPLATES = {"default": "{{ messages }}", "rag": "{{ documents }}", "tool_use": "{{ tools }}"}


@pytest.mark.parametrize("form", ["list", "files", "both"])
def test_every_named_chat_template_is_written(form, tmp_path):
    """As a list in tokenizer_config.json, and as the files of transformers 5, which it reads before the list."""
    listed = [{"name": name, "template": text if form == "list" else "old"} for name, text in TEMPLATES.items()]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": listed} if form != "files" else {}))
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({**content_of(byte_level(True)), "model": {"type": "BPE", "vocab": {}}})
    )
    if form != "list":
        (tmp_path / "additional_chat_templates").mkdir()
        for name, text in TEMPLATES.items():
            path = "chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja"
            (tmp_path / path).write_text(text)
    keys = {name: one.value for name, one in tokenizer_keys(tmp_path, 4).items() if "chat_template" in name}
    assert keys.pop("tokenizer.chat_templates") == ["rag", "tool_use"]
    assert keys == {f"tokenizer.chat_template{'' if n == 'default' else f'.{n}'}": text for n, text in TEMPLATES.items()}


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
