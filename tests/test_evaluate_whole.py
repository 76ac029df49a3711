"""The whole text: perplexity as papers state it equals a reference written from their definition; all of the text is read."""

import json
import math

import pytest
import torch
from text_world import BOS, word_tokenizer, write_jsonl
from world import N_WORDS, write_model, write_text

from shoal.engine.open import open_model
from shoal.evaluate.evaluation import Evaluation, Measured
from shoal.text.corpus import open_corpus

LENGTH = 16


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    write_model(folder / "teacher"), write_model(folder / "student", n_layers=4, seed=1)
    write_text(folder / "text.jsonl", n_documents=60)
    texts = [json.loads(line)["text"] for line in (folder / "text.jsonl").read_text().splitlines()]
    (folder / "text.txt").write_text("\n\n".join(texts) + "\n")
    return folder


def reference(folder, text, *, adds_bos):
    """GPTQ's way: one tokenisation, blocks without overlap, the mean of the blocks' mean losses."""
    opened = open_model(folder)
    ids = ([BOS] if adds_bos else []) + opened.tokenizer(text, add_special_tokens=False)["input_ids"]
    n = len(ids) // LENGTH
    losses = []
    for k in range(n):
        block = torch.tensor([ids[k * LENGTH : (k + 1) * LENGTH]])
        with torch.no_grad():
            losses.append(float(opened.model(block, labels=block).loss))
    return math.exp(sum(losses) / n), n * (LENGTH - 1), len(ids) - adds_bos


@pytest.mark.in_turn(2)
@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_as_papers_state_it(world, shoal, suffix, adds_bos):
    word_tokenizer(N_WORDS, start=None if adds_bos else ()).save_pretrained(world / "teacher")
    value, n_scored, n_tokens = reference(world / "teacher", (world / "text.txt").read_text(), adds_bos=adds_bos)
    code, out, err = shoal(
        "eval", world / "teacher", "--text", world / f"text.{suffix}", "--whole", "--length", LENGTH, "--json"
    )
    assert code == 0, err
    found = Measured.from_json(out)
    assert found.whole is not None and found.whole.n_tokens == n_tokens
    assert found.whole.blocks.value == pytest.approx(value, rel=1e-5)
    assert (found.whole.blocks.n_tokens, found.whole.blocks.window, found.whole.blocks.stride) == (n_scored, LENGTH, LENGTH)
    share = found.provenance.n_samples * (LENGTH - adds_bos) / n_tokens  # The end of it fills no sample.
    assert found.provenance.share == pytest.approx(share) and share < 1
    ours = found.model.perplexity  # All whole blocks of it count, with half a block of context at least.
    assert ours.start == ((BOS,) if adds_bos else ()) and n_tokens - LENGTH < ours.n_tokens <= n_tokens
    assert "as papers state it: blocks of 16, no overlap" in " ".join(err.split()) and f"{100 * share:.3g} % of it" in " ".join(
        err.split()
    )


def test_a_student_is_measured_on_all_of_it_too(world, shoal):
    word_tokenizer(N_WORDS).save_pretrained(world / "teacher")
    text = ("--text", world / "text.txt", "--whole", "--length", LENGTH, "--json")
    code, out, err = shoal("eval", world / "student", "--teacher", world / "teacher", *text)
    assert code == 0, err
    found = Evaluation.from_json(out)
    for folder, one in zip(("teacher", "student"), found.whole, strict=True):
        code, alone, _ = shoal("eval", world / folder, *text)
        assert code == 0 and Measured.from_json(alone).whole == one
    assert found.quality.n_samples == found.provenance.n_samples > 64, "KL, too, is of all of it"


def test_a_file_shorter_than_a_slice_needs_is_read_whole(world, shoal, tmp_path):
    (tmp_path / "a.txt").write_text("w1 w2 w3 w4 " * 10)
    code, out, err = shoal("eval", world / "teacher", "--text", tmp_path / "a.txt", "--whole", "--length", LENGTH, "--json")
    assert code == 0 and Measured.from_json(out).whole.n_tokens == 40, err
    code, _, err = shoal("eval", world / "teacher", "--text", tmp_path / "a.txt", "--length", LENGTH)
    assert code == 2 and "too little text" in err
    code, _, err = shoal("eval", world / "teacher", "--text", tmp_path / "a.txt", "--whole", "--length", 32, "--json")
    assert code == 0, err
    (tmp_path / "b.txt").write_text("w1 w2 w3")
    code, _, err = shoal("eval", world / "teacher", "--text", tmp_path / "b.txt", "--whole", "--length", LENGTH)
    assert code == 2 and "is 3 tokens, less than one sample of 16; give more text, or --length 3 or less" in err


def test_what_has_no_whole_is_refused(world, shoal):
    mixture = f"0.5*{world / 'text.txt'}+0.5*{world / 'text.jsonl'}"
    code, _, err = shoal("eval", world / "teacher", "--text", mixture, "--whole", "--length", LENGTH)
    assert code == 2 and "is a mixture, and only a text can be read whole" in err
    code, _, err = shoal("eval", world / "teacher", "--text", world / "text.txt", "--whole", "--samples", 4)
    assert code == 2 and "--samples takes a part of the text and --whole all of it" in err


def test_rows_are_joined_as_papers_join_them_blank_ones_included(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["", " = w1 = \n", "", "w2 w3\n"])
    assert open_corpus(path, word_tokenizer()).whole() == "\n\n = w1 = \n\n\n\n\nw2 w3\n"


def test_the_share_of_the_text_is_said(world, shoal, tmp_path):
    """Law: the share is the characters of the documents that were read over those of the text."""
    corpus = open_corpus(str(world / "text.jsonl"), word_tokenizer())
    total = sum(len(json.loads(line)["text"]) for line in (world / "text.jsonl").read_text().splitlines())
    documents = [len(document.text) for document in corpus.documents("training")]
    few = corpus.samples("training", n=3, length=LENGTH)
    assert not few.goes_on and any(few.share == sum(documents[:n]) / total for n in range(1, len(documents)))
    every = corpus.samples("training", n=10_000, length=LENGTH, fewest=1)
    assert every.share == sum(documents) / total
    small = type(corpus)(corpus.mixture, word_tokenizer(), window=500)
    assert small.samples("training", n=3, length=LENGTH).goes_on
    code, out, err = shoal("eval", world / "teacher", "--text", world / "text.jsonl", "--samples", 4, "--length", LENGTH)
    assert code == 0 and "% of it, 4 samples of 16 tokens" in " ".join(out.replace("│", " ").split()), out
