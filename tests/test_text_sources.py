"""Sources: every format gives the same documents, and what cannot be read is one clear line."""

import gzip
import json

import pytest
from text_world import CHAT_TEMPLATE, own_words, word_tokenizer, words, write_as, write_jsonl

from shoal.text.corpus import Corpus, open_corpus
from shoal.text.formats import hub_parts, parquet_rows, txt_documents
from shoal.text.mixture import parse_mixture
from shoal.text.slices import SLICE_SHARES
from shoal.text.sources import SUFFIXES, TextSource

# Each is one .txt document: above 2000 characters, below 8000.
LONG = own_words([500, 450, 600, 420, 430])


def no_chat(messages):
    raise AssertionError("no messages here")


def texts_of(spec):
    return [document.text for document in TextSource(spec, no_chat).documents()]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_documents(suffix, tmp_path):
    assert texts_of(write_as(suffix, tmp_path, LONG)) == LONG


def test_a_folder_is_its_files_by_name_and_nothing_else(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    write_jsonl(tmp_path / "b" / "z.jsonl", LONG[2:])
    write_jsonl(tmp_path / "a.jsonl", LONG[:2])
    write_jsonl(tmp_path / ".hidden" / "x.jsonl", ["hidden"])
    (tmp_path / "readme.md").write_text("not read")
    assert texts_of(str(tmp_path)) == LONG


def test_a_hub_dataset_streams_rows(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", LONG)
    assert texts_of(f"hub:{tmp_path}") == LONG
    with pytest.raises(ValueError, match="split 'nope'"):
        texts_of(f"hub:{tmp_path}::nope")


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("a/b", ("a/b", None, "train")),
        ("a/b:conf", ("a/b", "conf", "train")),
        ("a/b:validation", ("a/b", None, "validation")),
        ("a/b:conf:test", ("a/b", "conf", "test")),
        ("a/b::part1", ("a/b", None, "part1")),
    ],
)
def test_hub_names(spec, parts):
    assert hub_parts(spec) == parts


def test_paragraphs_are_grouped_until_two_thousand_characters(tmp_path):
    paragraphs = [f"paragraph {i} " + "x" * 300 for i in range(40)]
    path = tmp_path / "a.txt"
    path.write_text("\n \n".join(paragraphs))
    documents = list(txt_documents(path))
    assert "\n \n".join(documents) == "\n \n".join(paragraphs)
    assert all(2000 <= len(document) < 2400 for document in documents[:-1])


def test_text_without_blank_lines_still_falls_into_documents(tmp_path):
    path = tmp_path / "a.txt"
    lines = [f"line {i} " + "y" * 90 for i in range(1000)]
    path.write_text("\n".join(lines))
    documents = list(txt_documents(path))
    assert "\n".join(documents) == "\n".join(lines) and max(map(len, documents)) < 16_000
    path.write_text("z" * 50_000)
    assert "".join(txt_documents(path)) == "z" * 50_000 and max(map(len, txt_documents(path))) <= 8000


def test_line_ends_and_a_byte_order_mark_change_nothing(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(LONG).encode())
    assert texts_of(str(path)) == LONG


def test_messages_go_through_the_chat_template(tmp_path):
    path = tmp_path / "chat.jsonl"
    messages = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    path.write_text(
        "".join(json.dumps({"messages": messages + [{"role": "user", "content": f"w{i}"}]}) + "\n" for i in range(99))
    )
    corpus = open_corpus(str(path), word_tokenizer(chat_template=CHAT_TEMPLATE))
    texts = {document.text for name in SLICE_SHARES for document in corpus.documents(name)}
    assert texts == {f"<bos> user w1 assistant w2 user w{i}" for i in range(99)}
    # The template spells BOS and the tokenizer adds one: the sample has it once.
    samples = corpus.samples("training", n=2, length=8, packing="padded")
    assert samples.lengths_N.tolist() == [7, 7] and (samples.ids_NT == 0).sum(1).tolist() == [1, 1]


def test_a_row_with_text_and_messages_is_its_text(tmp_path):
    assert texts_of(write_jsonl(tmp_path / "a.jsonl", ["w1"], messages=[[{"role": "user", "content": "w2"}]])) == ["w1"]


def test_reading_stops_where_the_samples_are_full(tmp_path):
    """A broken line far behind the window that was needed is never met; a call that needs more meets it."""
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [words(i, 10) for i in range(8000)])
    path.write_text(path.read_text() + "broken\n")
    corpus = Corpus(parse_mixture(str(path)), word_tokenizer(), window=5000)
    assert corpus.samples("training", n=2, length=8).n_samples == 2
    with pytest.raises(ValueError, match="line 8001 is not JSON"):
        corpus.samples("training", n=20_000, length=8)


BROKEN = {
    "missing.txt": (None, "no such text: .*missing.txt"),
    "a.pdf": (b"x", r"suffix '.pdf'; we read .txt, .jsonl, .json, .csv, .tsv .*.parquet"),
    "a.gz": (b"x", r"suffix '.gz'; we read"),
    "empty.txt": (b"", "holds no text"),
    "blank.txt": (b" \n\n \n", "holds no text"),
    "blank.jsonl": (b'{"text": " "}\n\n', "holds no text"),
    "binary.txt": (b"\x89PNG\xff\xfe", "not UTF-8 text .*byte 0"),
    "zero.txt": (b"abc\0def", "binary"),
    "plain.txt.gz": (b"not packed", "not a whole gzip file"),
    "short.txt.gz": (gzip.compress(b"words " * 1000)[:-20], "not a whole gzip file"),
    "bad.jsonl": (b'{"text": "w1"}\n{"text": \n', "line 2 is not JSON"),
    "list.jsonl": (b"[1, 2]\n", "line 1 is a JSON list"),
    "other.jsonl": (b'{"body": "w1", "id": 3}\n', "line 1 has no column .* only body, id; .* --field NAME"),
    "number.jsonl": (b'{"text": 3}\n', r"line 1: text is a number \(3\)"),
    "digits.jsonl": (b'{"text": ' + b"1" * 5000 + b"}\n", "line 1 is not JSON .*digits"),
    "deep.jsonl": (b'{"text": ' + b"[" * 100_000 + b"\n", "line 1 is not JSON"),
    "half.json": (b'[{"text": "w1"}, {"text"', "half.json is not JSON"),
    "number.json": (b"7", "holds a JSON int; write one list of objects"),
    "rows.json": (b'[{"text": "w1"}, 7]', "row 2 is a JSON int"),
    "deep.json": (b"[" * 100_000, "is not JSON"),
    "columns.csv": (b"a,b\nw1,w2\n", "row 1 has no column .* only a, b"),
    "wide.csv": (b"text,id\nw1,2\nw1,w2,w3\n", "row 2 has more than the 2 values of the header"),
    "short.csv": (b"text,id\n", "holds no text"),
    "surrogate.jsonl": (b'{"text": "\\ud800"}\n', "line 1 holds half a character"),
    "messages.jsonl": (b'{"messages": "hello"}\n', r"line 1: messages is a text \("),
    "bad.parquet": (b"PAR1 no", "not a whole parquet file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_one_clear_line(name, tmp_path):
    content, message = BROKEN[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        open_corpus(str(tmp_path / name), word_tokenizer())
    assert "\n" not in str(error.value)


def test_a_template_that_refuses_the_messages_names_the_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "user", "content": "w1"}]}\n')
    tokenizer = word_tokenizer(chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match="line 1: the chat template refuses these messages .roles must alternate"):
        open_corpus(str(tmp_path / "a.jsonl"), tokenizer)


def test_an_empty_folder_and_an_empty_name(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(ValueError, match="holds no text; put .txt"):
        open_corpus(str(tmp_path), word_tokenizer())
    for spec in ("", " ", []):
        with pytest.raises(ValueError, match="the text is empty"):
            open_corpus(spec, word_tokenizer())


def test_of_a_parquet_file_only_the_columns_that_are_looked_at_are_read(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = {"text": ["a b", "c d"], "meta": [{"domain": "x"}, {"domain": "y"}], "embedding": [[0.5] * 8] * 2}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    assert [row for _, row in parquet_rows(tmp_path / "a.parquet", ("text", "messages"))] == [{"text": "a b"}, {"text": "c d"}]
    # The message names what is there.
    assert [set(row) for _, row in parquet_rows(tmp_path / "a.parquet", ("words",))] == [set(rows)] * 2
    found = TextSource(str(tmp_path / "a.parquet"), no_chat, domain_key="meta.domain").documents()
    assert [(one.text, one.domain) for one in found] == [("a b", "x"), ("c d", "y")]
