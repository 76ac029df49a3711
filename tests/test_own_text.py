"""Text of the model's own: it begins as the given text does, can be given to --text, and is the same after a kill."""

import json

import pytest
import torch
from families import tiny_model
from text_world import BOS, EOS, word_tokenizer

from shoal.recipes.recipe_file import load_recipe
from shoal.run.own_text import texts_of, write_own_text
from shoal.text.corpus import open_corpus
from shoal.train.heal.teacher_text import write_text
from shoal.train.heal.text_rows import TextRows
from shoal.words.progress import watched


def recipe(small):
    return load_recipe("default", {"model": small["model"], "text": {"sources": [small["text"]], "length": 16}})


def test_what_is_written_can_be_calibrated_on(shoal, small, tmp_path):
    text = ("--text", small["text"], "--length", 16)
    code, out, err = shoal("write", small["model"], "--out", tmp_path / "own.jsonl", "--n", 40, *text, "--json")
    assert code == 0, err
    made, lines = json.loads(out), (tmp_path / "own.jsonl").read_text().splitlines()
    assert made["n_texts"] == len(lines) and made["n_tokens"] == 40 * 16 and not (tmp_path / "own.jsonl.part").exists()
    texts = [json.loads(line)["text"] for line in lines]
    assert all(text and "<bos>" not in text and "<eos>" not in text for text in texts)
    opened = open_corpus(small["text"], word_tokenizer(40)).samples("training", n=1, length=16)
    first = word_tokenizer(40).decode(opened.ids_NT[0, 1:5].tolist(), skip_special_tokens=True)
    assert texts[0].startswith(first), "the first words are those of the given text"
    code, _, err = shoal("eval", small["model"], "--text", tmp_path / "own.jsonl", "--whole", "--length", 8)
    assert code == 0, err
    code, _, err = shoal("write", small["model"], "--out", tmp_path / "own.jsonl", *text)
    assert code == 2 and "is there already" in err
    code, _, err = shoal("write", small["model"], "--out", tmp_path / "own.txt", *text)
    assert code == 2 and "give a name that ends in .jsonl" in err


def test_a_run_that_was_killed_writes_the_same(small, tmp_path):
    whole, killed = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_own_text(recipe(small), whole, n=40)

    def kill(what, done, total):
        if what == "write" and done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        with watched(kill):
            write_own_text(recipe(small), killed, n=40)
    assert not killed.exists() and (tmp_path / "b.jsonl.part").exists()
    steps = []
    with watched(lambda what, done, total: steps.append(done) if what == "write" else None):
        write_own_text(recipe(small), killed, n=40)
    assert killed.read_text() == whole.read_text() and steps[0] > 16


def test_text_is_drawn_as_the_model_has_learned_it_ends_included(tmp_path):
    """An even model writes every token equally often, the end of a text too."""
    model = tiny_model("llama", n_layers=2)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.generation_config.eos_token_id = EOS
    prompts = TextRows(torch.full((64, 48), 7), torch.full((64,), 48), None, "", "")
    written = write_text(tmp_path, model, prompts, n_prompt=1, temperature=1.0, seed=0, key="").ids_NT[:, 1:]
    counts = written.flatten().bincount(minlength=model.config.vocab_size).double()
    even = counts.sum() / len(counts)
    assert ((counts - even) / even.sqrt()).pow(2).mean().sqrt() < 1.5 and abs(counts[EOS] - even) < 5 * even.sqrt()


def test_documents_end_at_separators():
    tokenizer = word_tokenizer()
    w = [tokenizer.convert_tokens_to_ids(f"w{i}") for i in range(9)]

    class Prompts:
        start = (BOS,)

    rows = [[BOS, w[1], w[2], EOS, w[3]], [BOS, EOS, EOS, w[4], w[5]]]
    assert texts_of(Prompts, rows, tokenizer) == ["w1 w2", "w3", "w4 w5"]
