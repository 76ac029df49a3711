"""Slices: a document's slice follows from its own text and nothing else."""

import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_world import N_SPECIAL, own_words, word_tokenizer, words, write_jsonl

from shoal.text.corpus import open_corpus
from shoal.text.slices import SLICE_SHARES, content_digest, slice_of

TOKENIZER = word_tokenizer(20_000)


def documents_by_slice(texts, *, seed=0):
    with tempfile.TemporaryDirectory() as folder:
        corpus = open_corpus(write_jsonl(Path(folder) / "a.jsonl", texts), TOKENIZER, seed=seed)
        return {name: [document.text for document in corpus.documents(name)] for name in SLICE_SHARES}


some_text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(lambda text: text.strip())


@settings(max_examples=30, deadline=None)
@given(st.lists(some_text, min_size=1, max_size=40), st.integers(0, 9), st.integers(0, 9))
def test_every_document_is_in_one_slice_whatever_the_seed(texts, seed, other_seed):
    found = documents_by_slice(texts, seed=seed)
    digests = [content_digest(text) for slice_texts in found.values() for text in slice_texts]
    assert len(digests) == len(set(digests))
    assert set(digests) == {content_digest(text) for text in texts}
    other = documents_by_slice(texts, seed=other_seed)
    assert all(sorted(map(content_digest, found[name])) == sorted(map(content_digest, other[name])) for name in SLICE_SHARES)


@settings(max_examples=30, deadline=None)
@given(st.lists(some_text, min_size=1, max_size=30, unique_by=content_digest), some_text, st.integers(0, 30))
def test_adding_a_document_moves_no_other(texts, extra, place):
    before = documents_by_slice(texts)
    after = documents_by_slice([*texts[:place], extra, *texts[place:]])
    new = content_digest(extra)
    for name in SLICE_SHARES:
        # Neither to another slice, nor in the order.
        assert [t for t in before[name] if content_digest(t) != new] == [t for t in after[name] if content_digest(t) != new]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.sampled_from(["packed", "padded"]), st.integers(2, 12))
def test_no_token_of_one_slice_is_in_another(sizes, packing, length):
    """Every document has words of its own, so slices that share a token share a document or a block."""
    texts = own_words(sizes)
    found = documents_by_slice(texts)
    with tempfile.TemporaryDirectory() as folder:
        corpus = open_corpus(write_jsonl(Path(folder) / "a.jsonl", texts), TOKENIZER)
        seen: set[int] = set()
        for name, slice_texts in found.items():
            n_tokens = sum(len(text.split()) + 1 for text in slice_texts) - 1
            n = n_tokens // (length - 1) if packing == "packed" else len(slice_texts)  # BOS comes on top.
            if n < 1:
                continue
            samples = corpus.samples(name, n=n, length=length, packing=packing)
            ids = {i for i in samples.ids_NT.flatten().tolist() if i >= N_SPECIAL}
            assert ids and not ids & seen
            seen |= ids
            with pytest.raises(ValueError, match="too little text"):
                corpus.samples(name, n=n + 1, length=length, packing=packing)


def test_a_copy_lands_with_its_original_and_is_used_once():
    texts = own_words([20] * 50)
    copies = [text.replace(" ", "  ") + "\n" for text in texts]
    assert documents_by_slice(texts + copies + texts) == documents_by_slice(texts)


def test_shares_are_those_stated():
    """Counts of 4000 documents within four standard deviations of a binomial."""
    n = 4000
    counts = dict.fromkeys(SLICE_SHARES, 0)
    for i in range(n):
        counts[slice_of(content_digest(f"document {i}"))] += 1
    assert math.isclose(sum(SLICE_SHARES.values()), 1)
    for name, share in SLICE_SHARES.items():
        assert abs(counts[name] - n * share) < 4 * math.sqrt(n * share * (1 - share)), (name, counts)


def test_assignment_is_fixed_across_versions():
    """Reported numbers rest on these slices: a change of the hash would mix evaluation into training, unseen."""
    names = [slice_of(content_digest(f"document {i}")) for i in range(12)]
    short = {"calibration": "c", "training": "t", "selection": "s", "evaluation": "e"}
    assert "".join(short[name] for name in names) == "tscttttttsct"


def test_the_seed_shuffles_within_a_slice():
    texts = own_words([5] * 200)
    orders = [documents_by_slice(texts, seed=seed)["training"] for seed in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    assert orders[0] != sorted(orders[0], key=texts.index)


def test_unknown_slice_names_the_nearest(tmp_path):
    corpus = open_corpus(write_jsonl(tmp_path / "a.jsonl", [words(0, 9)]), TOKENIZER)
    with pytest.raises(ValueError, match="unknown slice 'evaluate'; did you mean 'evaluation'"):
        corpus.samples("evaluate", n=1, length=4)
