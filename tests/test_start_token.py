"""The start token: where the tokenizer adds one, every block that any stage reads begins with it, once."""

import json

import pytest
import torch
from text_world import BOS, EOS, N_SPECIAL, UNK, word_tokenizer
from world import N_WORDS, write_model, write_text

import shoal.evaluate.tasks.choice
from shoal import compress, load_recipe
from shoal.engine.view import DecoderView
from shoal.evaluate.tasks.tokenised import encode_pair
from shoal.run.asked_tasks import open_tasks
from shoal.run.comparing import compare_models
from shoal.run.measuring import evaluate_alone, evaluate_pair
from shoal.text.start import begun, start_tokens

TOKENIZERS = {
    "adds BOS": (word_tokenizer(), (BOS,)),
    "has BOS and does not add it": (word_tokenizer(start=()), ()),
    "has none": (word_tokenizer(special=("eos",)), ()),
    "adds two": (word_tokenizer(start=("<unk>", "<bos>")), (UNK, BOS)),
    "adds one that is no BOS": (word_tokenizer(special=("eos",), start=("<eos>",)), (EOS,)),
    "adds BOS and an end": (word_tokenizer(end="<eos>"), (BOS,)),
    "adds an end alone": (word_tokenizer(start=(), end="<eos>"), ()),
    "adds what it knows nothing by, on both sides": (word_tokenizer(start=("<unk>",), end="<unk>"), (UNK,)),
    "adds BOS twice": (word_tokenizer(start=("<bos>", "<bos>")), (BOS, BOS)),
    "knows its words alone": (word_tokenizer(unknown=None, end="<eos>"), (BOS,)),
}


@pytest.mark.parametrize("which", TOKENIZERS)
def test_start_tokens_are_what_the_tokenizer_adds(which):
    tokenizer, expected = TOKENIZERS[which]
    assert start_tokens(tokenizer) == expected
    for text in ("w1 w2", "w3"):
        assert tokenizer(text)["input_ids"][: len(expected)] == list(expected)


@pytest.mark.parametrize("which", TOKENIZERS)
def test_a_text_to_go_on_from_begins_once_and_does_not_end(which):
    tokenizer, expected = TOKENIZERS[which]
    one, two, three = (N_SPECIAL + i for i in (1, 2, 3))
    assert begun(tokenizer, "w1 w2") == [*expected, one, two]
    spelled = " ".join([*tokenizer.convert_ids_to_tokens(list(expected)), "w1"])
    assert begun(tokenizer, spelled) == [*expected, one]
    assert encode_pair(tokenizer, "w1 w2", " w3 w1") == ([*expected, one, two], [three, one])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    write_model(folder / "teacher"), write_model(folder / "student", n_layers=4, seed=1)
    write_text(folder / "text.jsonl")
    items = [{"ctx": f"w{i} w{i + 1}", "choices": [f" w{i + 2}", f" w{i + 3} w1"], "gold": 0} for i in range(20)]
    (folder / "quiz.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder


@pytest.fixture
def first_tokens(monkeypatch):
    """The first two tokens of every row that any model's view reads."""
    seen = set()
    read = DecoderView.read

    def spy(self, batch):
        seen.update((int(row[0]), int(row[1])) for row in batch.ids_BT)
        return read(self, batch)

    monkeypatch.setattr(DecoderView, "read", spy)
    # The model reads random tokens.
    monkeypatch.setattr(shoal.evaluate.tasks.choice, "shares_context", lambda view, longest: False)
    return seen


def recipe(world, **changes):
    text = {"sources": [str(world / "text.jsonl")], "samples": 12, "length": 16, "selection": 8, "evaluation": 8}
    train = {"tokens": 640, "batch": 8, "micro_batch": 4}
    return load_recipe("default", {"model": str(world / "teacher"), "drop": "2", "text": text, "train": train, **changes})


CALLS = {
    "compress": lambda world, out: compress(recipe(world), out),
    "compress and train": lambda world, out: compress(recipe(world, replace="layer", polish="kl"), out),
    "rounds": lambda world, out: compress(recipe(world, rounds=2, repair="none"), out),
    "eval": lambda world, out: evaluate_alone(recipe(world), tasks=open_tasks([str(world / "quiz.jsonl")])),
    "eval of two": lambda world, out: evaluate_pair(
        recipe(world), str(world / "student"), tasks=open_tasks([str(world / "quiz.jsonl")])
    ),
    "compare": lambda world, out: compare_models(
        [str(world / "teacher"), str(world / "student")], recipe=recipe(world), tasks=open_tasks([str(world / "quiz.jsonl")])
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_block_of_every_verb_begins_with_the_start_token(call, world, tmp_path, first_tokens):
    CALLS[call](world, tmp_path / "run")
    assert {first for first, _ in first_tokens} == {BOS}
    assert BOS not in {second for _, second in first_tokens}, "and it is there once"


def test_a_model_that_needs_its_start_token_gets_it(world):
    """Planted: behind any first token but BOS the model is uniform; behind BOS it knows the one word of the text."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(world / "teacher")
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[4] = 1.0
        model.model.norm.weight.fill_(1.0)
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight.zero_()
        # The stream says "BOS was seen" only through attention, so give the value straight to the last layer's output.
        attention = model.model.layers[0].self_attn
        attention.q_proj.weight.zero_(), attention.k_proj.weight.zero_()
        model.model.embed_tokens.weight.zero_()
        model.model.embed_tokens.weight[BOS] = 10.0
        attention.v_proj.weight.fill_(1.0), attention.o_proj.weight.fill_(1.0)
    folder = world / "needy"
    model.save_pretrained(folder), word_tokenizer(N_WORDS).save_pretrained(folder)
    (world / "one.jsonl").write_text("".join(json.dumps({"text": "w0 " * (30 + i)}) + "\n" for i in range(400)))
    text = {"sources": [str(world / "one.jsonl")], "length": 16, "evaluation": 8}
    made = {}
    for start in (None, ()):
        word_tokenizer(N_WORDS, start=start).save_pretrained(folder)
        found = evaluate_alone(load_recipe("default", {"model": str(folder), "text": text}))
        made[start] = found.model.perplexity
    assert made[None].start == (BOS,) and made[()].start == ()
    assert made[None].value < 3 < 40 < made[()].value
