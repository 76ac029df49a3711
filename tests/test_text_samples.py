"""Samples: packing against a naive reference, padding masks, hashes, prefixes, errors."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_world import BOS, EOS, N_SPECIAL, PAD, UNK, own_words, word_tokenizer, words, write_jsonl

from shoal.text.corpus import Corpus, open_corpus
from shoal.text.mixture import parse_mixture
from shoal.text.samples import Samples, tokenizer_hash

SIZES = [3, 11, 1, 25, 7, 40, 2, 18, 9, 30] * 12


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("text") / "a.jsonl", own_words(SIZES))


def naive_ids(text):
    return [N_SPECIAL + int(word[1:]) for word in text.split()]


SEPARATORS = [
    (word_tokenizer(), [EOS], [BOS]),
    (word_tokenizer(special=("eos",)), [EOS], []),
    (word_tokenizer(special=("bos",)), [BOS], [BOS]),
    (word_tokenizer(special=(), eos_token="<bos>"), [0], []),  # The id 0 is an id.
    (word_tokenizer(special=()), [], []),
    (word_tokenizer(start=("<unk>", "<bos>")), [EOS], [UNK, BOS]),  # GLM has two of them.
    (word_tokenizer(start=()), [EOS], []),  # The tokenizer has a BOS, and does not add it.
]


@pytest.mark.parametrize(("tokenizer", "between", "start"), SEPARATORS)
@pytest.mark.parametrize("length", [3, 7, 64])
def test_packing_equals_a_naive_reference(path, tokenizer, between, start, length):
    """Every block is the start tokens and the next tokens of the stream."""
    corpus = open_corpus(path, tokenizer)
    stream = []
    for document in corpus.documents("training"):
        stream += (between if stream else []) + naive_ids(document.text)
    room = length - len(start)
    n = len(stream) // room
    if start == between:  # Where the separator is the start token, a block that begins with it has it once.
        blocks, at = [], 0
        while True:
            own = [] if stream[at : at + 1] == start else start
            stop = at + length - len(own)
            if stop > len(stream):
                break
            blocks, at = [*blocks, own + stream[at:stop]], stop
        n = len(blocks)
    else:
        blocks = [start + stream[i * room : (i + 1) * room] for i in range(n)]
    samples = corpus.samples("training", n=n, length=length)
    assert samples.ids_NT.tolist() == blocks and samples.start == tuple(start)
    assert samples.ids_NT.shape == (n, length) and samples.ids_NT.dtype == torch.int64
    assert samples.n_tokens == n * length and all(batch.mask_BT is None for batch in samples.batches(3))


def test_start_tokens_that_a_text_spells_are_not_doubled(tmp_path):
    """Chat templates write BOS themselves."""
    texts = [f"<bos> {text}" for text in own_words([9] * 200)]
    tokenizer = word_tokenizer(special=("bos",))  # Documents are joined by BOS, too.
    for packing in ("packed", "padded"):
        samples = open_corpus(write_jsonl(tmp_path / "a.jsonl", texts), tokenizer).samples(
            "training", n=8, length=10, packing=packing
        )
        assert (samples.ids_NT[:, 0] == BOS).all() and (samples.ids_NT[0, 1:] != BOS).all()


def test_start_tokens_need_room(path):
    with pytest.raises(ValueError, match="length=2 leaves no room for text: .* 2 tokens of its own; give at least 3"):
        open_corpus(path, word_tokenizer(start=("<unk>", "<bos>"))).samples("training", n=1, length=2)


@pytest.mark.parametrize(("special", "pad"), [(("bos", "eos", "pad"), PAD), (("bos", "eos"), 0)])
def test_padding_equals_a_naive_reference(path, special, pad):
    corpus = open_corpus(path, word_tokenizer(special=special))
    texts = [document.text for document in corpus.documents("training")]
    rows = [([BOS] + naive_ids(text))[:16] for text in texts]
    samples = corpus.samples("training", n=len(rows), length=16, packing="padded")
    assert samples.lengths_N.tolist() == [len(row) for row in rows]
    assert samples.ids_NT.tolist() == [row + [pad] * (16 - len(row)) for row in rows]
    assert samples.n_tokens == sum(map(len, rows))


def test_documents_with_nothing_to_predict_are_left_out_of_padded_samples(path):
    corpus = open_corpus(path, word_tokenizer(special=()))
    texts = [document.text for document in corpus.documents("training") if len(document.text.split()) >= 2]
    samples = corpus.samples("training", n=len(texts), length=64, packing="padded")
    assert samples.lengths_N.tolist() == [min(64, len(text.split())) for text in texts]


lengths = st.lists(st.integers(2, 9), min_size=1, max_size=20)


@settings(max_examples=50, deadline=None)
@given(lengths, st.integers(1, 7))
def test_batches_lose_nothing_and_mask_exactly_the_padding(lengths, batch_size):
    rows = [list(range(10 * i + 1, 10 * i + 1 + n)) for i, n in enumerate(lengths)]
    ids_NT = torch.tensor([row + [0] * (9 - len(row)) for row in rows])
    samples = Samples(ids_NT, torch.tensor(lengths), "training", "planted", "a-b", 0)
    batches = samples.batches(batch_size)
    assert [batch.index for batch in batches] == list(range(len(batches)))
    assert [len(batch.ids_BT) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    back = []
    for batch in batches:
        mask_BT = torch.ones_like(batch.ids_BT, dtype=torch.bool) if batch.mask_BT is None else batch.mask_BT
        assert batch.mask_BT is None or not mask_BT.all()
        assert mask_BT.dtype == torch.bool and mask_BT.any(0).all()  # Samples are trimmed to the longest.
        back += [ids[mask].tolist() for ids, mask in zip(batch.ids_BT, mask_BT, strict=True)]
    assert back == rows


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_fewer_samples_are_a_prefix_of_more(path, packing):
    more = open_corpus(path, word_tokenizer()).samples("training", n=20, length=8, packing=packing)
    fewer = open_corpus(path, word_tokenizer()).samples("training", n=6, length=8, packing=packing)
    taken = more.take(6)
    assert torch.equal(taken.ids_NT, fewer.ids_NT) and torch.equal(taken.lengths_N, fewer.lengths_N)
    assert taken.data_hash == fewer.data_hash != more.data_hash
    assert (taken.slice, taken.seed, taken.data) == ("training", 0, path)
    assert more.take(20).data_hash == more.data_hash
    with pytest.raises(ValueError, match=re.escape("n=21 needs 1..20")):
        more.take(21)


def test_windows_change_the_order_only_and_keep_the_prefix(path):
    """A text larger than a window: every document once, in windows; the prefix law holds across their borders."""
    whole = open_corpus(path, word_tokenizer())
    small = Corpus(parse_mixture(path), word_tokenizer(), window=700)
    documents = [document.text for document in small.documents("training")]
    assert sorted(documents) == sorted(document.text for document in whole.documents("training"))
    order = [int(text.split()[0][1:]) for text in documents]
    assert order != [int(document.text.split()[0][1:]) for document in whole.documents("training")]
    assert max(order[:5]) < min(order[-5:])
    more, fewer = (small.samples("training", n=n, length=8) for n in (60, 20))
    assert torch.equal(more.ids_NT[:20], fewer.ids_NT)


def test_the_hash_names_everything_that_made_the_samples(path, tmp_path):
    def hashed(spec=path, tokenizer=None, *, seed=0, name="training", **how):
        corpus = open_corpus(spec, tokenizer or word_tokenizer(), seed=seed)
        return corpus.samples(name, **{"n": 4, "length": 8, **how}).data_hash

    copy = write_jsonl(tmp_path / "elsewhere.jsonl", own_words(SIZES))
    changed = write_jsonl(tmp_path / "changed.jsonl", own_words(SIZES[1:] + [5]))
    assert hashed() == hashed() == hashed(copy)
    others = [
        hashed(changed),
        hashed(tokenizer=word_tokenizer(3000)),
        hashed(tokenizer=word_tokenizer(special=("bos", "eos"))),
        hashed(seed=1),
        hashed(name="calibration"),
        hashed(n=5),
        hashed(length=9),
        hashed(packing="padded"),
    ]
    assert len({hashed(), *others}) == len(others) + 1
    # The settings have a half of their own: only other documents and another n leave it as it is.
    assert len({one.partition("-")[0] for one in (hashed(), *others)}) == len(others) - 1


def test_a_call_leaves_no_trace_in_the_hash():
    tokenizer = word_tokenizer()
    before = tokenizer_hash(tokenizer)
    tokenizer(["w1 w2 w3", "w4"], truncation=True, max_length=2, padding=True)
    assert tokenizer_hash(tokenizer) == before != tokenizer_hash(word_tokenizer(99))


def test_too_little_text_says_how_much_is_needed_and_that_is_enough(tmp_path):
    def corpus_of(n_documents):
        texts = [words(i, 50) for i in range(n_documents)]
        return open_corpus(write_jsonl(tmp_path / f"{n_documents}.jsonl", texts), word_tokenizer()), sum(map(len, texts))

    corpus, n_characters = corpus_of(40)
    slice_tokens = sum(len(document.text.split()) + 1 for document in corpus.documents("evaluation")) - 1
    with pytest.raises(ValueError) as error:
        corpus.samples("evaluation", n=100, length=32)
    message = str(error.value)
    assert (
        f"has {slice_tokens:,} tokens" in message
        and "100 x 31 = 3,100 (beside the start token of each sample)" in message
        and "\n" not in message
    )
    needed, found = (float(value) * 1000 for value in re.findall(r"([\d.]+) k", message))
    assert abs(found - n_characters) < 1000
    # The stated amount, and a third more for the luck of the hash, is enough.
    corpus, _ = corpus_of(round(40 * needed / n_characters * 4 / 3))
    assert corpus.samples("evaluation", n=100, length=32).n_tokens == 3200


def test_too_few_documents_for_padded_samples(path):
    with pytest.raises(ValueError, match="documents of two tokens or more, but 5,000 are needed"):
        open_corpus(path, word_tokenizer()).samples("selection", n=5000, length=8, packing="padded")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"n": 0}, "n=0"),
        ({"length": 1}, "length=1"),
        ({"packing": "pack"}, "unknown packing 'pack'; did you mean 'packed'"),
    ],
)
def test_impossible_requests(path, how, message):
    with pytest.raises(ValueError, match=message):
        open_corpus(path, word_tokenizer()).samples("training", **{"n": 2, "length": 8, **how})
    with pytest.raises(ValueError, match="batch_size=0"):
        open_corpus(path, word_tokenizer()).samples("training", n=2, length=8).batches(0)


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_fewer_samples_are_taken_where_the_text_ends_if_that_is_allowed(packing, tmp_path):
    path = write_jsonl(tmp_path / "text.jsonl", own_words([12] * 120))
    corpus = open_corpus(path, word_tokenizer())
    some = corpus.samples("training", n=10_000, length=8, packing=packing, fewest=4)
    assert 4 <= some.n_samples < 10_000
    assert torch.equal(some.ids_NT, corpus.samples("training", n=some.n_samples, length=8, packing=packing).ids_NT)
    with pytest.raises(ValueError, match="too little text"):
        corpus.samples("training", n=10_000, length=8, packing=packing, fewest=some.n_samples + 1)
    with pytest.raises(ValueError, match="too little text"):
        corpus.samples("training", n=some.n_samples + 1, length=8, packing=packing)
