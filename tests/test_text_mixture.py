"""Mixtures: the proportions are those written, at every prefix; specs that make no sense are refused."""

import json

import pytest
from text_world import CHAT_TEMPLATE, own_words, word_tokenizer, words, write_jsonl

from shoal.text.corpus import Corpus, open_corpus
from shoal.text.mixture import PRESETS, parse_mixture
from shoal.text.slices import SLICE_SHARES

TOKENIZER = word_tokenizer(100)


def numbered(prefix, n, size=20):
    return [f"{prefix}{i} " + "x" * size for i in range(n)]


@pytest.mark.parametrize("name", SLICE_SHARES)
def test_weights_are_shares_of_characters_at_every_prefix(name, tmp_path):
    """Part b has documents ten times as long; the shares hold all the same, to within one document of each."""
    a = write_jsonl(tmp_path / "a+1.jsonl", numbered("a", 4000, 100))
    b = write_jsonl(tmp_path / "b.jsonl", numbered("b", 400, 1000))
    corpus = open_corpus(f"7 * {a} + 3*{b}", TOKENIZER)
    used = {"a": 0, "b": 0}
    for document in corpus.documents(name):
        used[document.text[0]] += len(document.text)
        total = sum(used.values())
        assert abs(used["a"] - 0.7 * total) <= 1100 + 1000
    assert used["a"] > 10_000


def test_the_preset_draws_documents_by_domain(tmp_path):
    """Counts of documents follow the weights to within one, out of rows in any proportion."""
    weights = PRESETS["slimpajama"].weights
    domains = [domain for domain in weights for _ in range(600)] + ["Unlisted"] * 300
    path = write_jsonl(
        tmp_path / "rows.jsonl", numbered("d", len(domains)), meta=[{"redpajama_set_name": domain} for domain in domains]
    )
    corpus = open_corpus(f"mix:slimpajama={path}", TOKENIZER)
    drawn = [document.domain for document in corpus.documents("training")]
    n = len(drawn)
    assert n > 300 and "Unlisted" not in drawn
    for domain, weight in weights.items():
        assert abs(drawn.count(domain) - n * weight / sum(weights.values())) <= 1, domain


def test_the_weights_of_the_preset():
    """The mix of LLM-Streamline's official code; its weights sum to 0.662, hence 66 213 of 100 000 documents."""
    weights = PRESETS["slimpajama"].weights
    assert round(100_000 * sum(weights.values())) in range(66_200, 66_220)
    assert weights["RedPajamaBook"] * 200 == pytest.approx(0.091) and len(weights) == 7
    assert parse_mixture("mix:slimpajama").parts[0].sources == ("hub:DKYoon/SlimPajama-6B",)


def test_a_part_that_runs_out_ends_the_mixture_and_is_named(tmp_path):
    a = write_jsonl(tmp_path / "a.jsonl", [words(i, 20) for i in range(70)])
    b = write_jsonl(tmp_path / "b.jsonl", ["w0"])
    corpus = open_corpus(f"0.5*{a}+0.5*{b}", TOKENIZER)
    with pytest.raises(ValueError, match=r"b.jsonl ran out first"):
        corpus.samples("training", n=30, length=20)


def test_several_texts_are_read_as_one(tmp_path):
    texts = own_words([4] * 100)
    whole = open_corpus(write_jsonl(tmp_path / "c.jsonl", texts), TOKENIZER)
    halves = [write_jsonl(tmp_path / "a.jsonl", texts[:50]), write_jsonl(tmp_path / "b.jsonl", texts[50:])]
    both = open_corpus(halves, TOKENIZER)
    assert [d.text for d in both.documents("training")] == [d.text for d in whole.documents("training")]


def test_a_document_in_two_parts_is_used_once(tmp_path):
    shared = numbered("s", 200)
    a = write_jsonl(tmp_path / "a.jsonl", shared + numbered("a", 100))
    b = write_jsonl(tmp_path / "b.jsonl", numbered("b", 100) + shared)
    drawn = [document.text for document in open_corpus(f"1*{a}+1*{b}", TOKENIZER).documents("training")]
    assert len(drawn) == len(set(drawn)) > 100


def test_domains_are_drawn_the_same_through_windows(tmp_path):
    """Small windows change the order inside a domain, never the sequence of domains."""
    domains = list(PRESETS["slimpajama"].weights) * 100
    path = write_jsonl(
        tmp_path / "rows.jsonl", numbered("d", len(domains)), meta=[{"redpajama_set_name": domain} for domain in domains]
    )
    mixture = parse_mixture(f"mix:slimpajama={path}")
    whole, small = (
        [d.domain for d in Corpus(mixture, TOKENIZER, window=window).documents("training")] for window in (10**9, 2000)
    )
    assert whole == small


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mix:slimpyjama", "unknown mixture 'slimpyjama'; did you mean 'slimpajama'"),
        ("0*a.txt+1*b.txt", "needs a positive weight"),
        ("0.5*a.txt+0.5*a.txt", "named twice"),
        ("0.5*mix:slimpajama+0.5*a.txt", "a mixture inside the mixture"),
        (["a.txt", "0.5*b.txt"], "a mixture among 2 texts"),
        (["a.txt", "a.txt"], "named twice"),
        ("hub:a:b:c:d", "not a hub dataset"),
        ("0.5*missing.txt+0.5*b.txt", "no such text: missing.txt"),
    ],
)
def test_specs_that_make_no_sense(spec, message):
    with pytest.raises(ValueError, match=message):
        open_corpus(spec, TOKENIZER)


def test_a_domain_mixture_needs_domains(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["w1"])
    with pytest.raises(ValueError, match=r"line 1 has no domain; this mixture needs meta.redpajama_set_name"):
        open_corpus(f"mix:slimpajama={path}", TOKENIZER)
    (tmp_path / "a.txt").write_text("w1")
    with pytest.raises(ValueError, match="names no domains"):
        open_corpus(f"mix:slimpajama={tmp_path / 'a.txt'}", TOKENIZER)


def test_chats_go_through_the_template_beside_plain_text(tmp_path):
    """Half and half by characters as they are read, the marks of the roles included; plain text gets none."""
    tokenizer = word_tokenizer(2000, chat_template=CHAT_TEMPLATE)
    turns = [[{"role": "user", "content": f"w{i}"}, {"role": "assistant", "content": words(i, 4)}] for i in range(1000, 1600)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    plain = write_jsonl(tmp_path / "plain.jsonl", [words(i, 30) for i in range(800)])
    corpus = open_corpus(f"0.5*{tmp_path / 'chats.jsonl'}+0.5*{plain}", tokenizer)
    used = {True: 0, False: 0}
    for document in corpus.documents("training"):
        is_chat = " user " in document.text
        assert is_chat == (" assistant " in document.text) == document.text.startswith("<bos> user w1")
        used[is_chat] += len(document.text)
        assert abs(used[True] - used[False]) <= 2 * 2000
    assert min(used.values()) > 5_000
    marks = [tokenizer.convert_tokens_to_ids(one) for one in ("user", "assistant")]
    ids = corpus.samples("training", n=8, length=64).ids_NT
    assert all(int((ids == mark).sum()) > 8 for mark in marks)
