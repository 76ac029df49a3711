"""Rows as public data sets have them: columns, content in parts, chat templates of every kind."""

import json
from pathlib import Path

import pytest
from text_world import CHAT_TEMPLATE, own_words, word_tokenizer, write_jsonl

from shoal.text.chat import chat_of, deadline
from shoal.text.corpus import open_corpus
from shoal.text.rows import COLUMNS, text_of, turns_of
from shoal.text.slices import SLICE_SHARES
from shoal.text.sources import TextSource

PLAIN = chat_of(word_tokenizer())  # A base model has no template.
TURNS = chat_of(word_tokenizer(chat_template="{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"))
ASK, SAY = {"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}

ROWS = {
    # The columns are the row, the text of a base model, and the text through a template.
    "text": ({"text": "w1 w2", "id": 7}, "w1 w2", "w1 w2"),
    "text before all others": ({"text": "w9", "instruction": "w1", "output": "w2"}, "w9", "w9"),
    "OpenAI": ({"messages": [ASK, SAY]}, "w1\n\nw2", "<user>w1<assistant>w2"),
    "content in parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "w1 "}, {"type": "text", "text": "w3"}, "w4"]},
                SAY,
            ]
        },
        "w1 w3w4\n\nw2",
        "<user>w1 w3w4<assistant>w2",
    ),
    "a call of a tool": (
        {"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": []}, SAY]},
        "w1\n\nw2",
        "<user>w1<assistant><assistant>w2",
    ),
    "SlimOrca": (
        {
            "conversations": [
                {"from": "system", "value": "w0", "weight": None},
                {"from": "human", "value": "w1", "weight": 0.0},
                {"from": "gpt", "value": "w2", "weight": 1.0},
            ]
        },
        "w0\n\nw1\n\nw2",
        "<system>w0<user>w1<assistant>w2",
    ),
    "OpenAI's turns under ShareGPT's name": ({"conversations": [ASK, SAY]}, "w1\n\nw2", "<user>w1<assistant>w2"),
    "prompt and completion": ({"prompt": "w1 w2", "completion": " w3"}, "w1 w2 w3", "w1 w2 w3"),
    "prompt and completion as turns": ({"prompt": [ASK], "completion": [SAY]}, "w1\n\nw2", "<user>w1<assistant>w2"),
    "Alpaca": ({"instruction": "w1", "input": "w3", "output": "w2"}, "w1\n\nw3\n\nw2", "<user>w1\n\nw3<assistant>w2"),
    "Alpaca without input": ({"instruction": "w1", "input": "", "output": "w2"}, "w1\n\nw2", "<user>w1<assistant>w2"),
    "Dolly": (
        {"instruction": "w1", "context": "w3", "response": "w2", "category": "qa"},
        "w1\n\nw3\n\nw2",
        "<user>w1\n\nw3<assistant>w2",
    ),
    "OpenOrca": (
        {"id": "1", "system_prompt": "w0", "question": "w1", "response": "w2"},
        "w0\n\nw1\n\nw2",
        "<system>w0<user>w1<assistant>w2",
    ),
    "question and answer": ({"question": "w1", "answer": "w2"}, "w1\n\nw2", "<user>w1<assistant>w2"),
    "content": ({"content": "w1 w2", "path": "a.py"}, "w1 w2", "w1 w2"),
    "an empty column is none": ({"text": None, "content": "w1"}, "w1", "w1"),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_public_data_sets_say_this(name):
    row, plain, through_template = ROWS[name]
    assert text_of(row, "a.jsonl, line 1", PLAIN) == plain
    assert text_of(row, "a.jsonl, line 1", TURNS) == through_template


@pytest.mark.parametrize(
    ("row", "field", "text"),
    [
        ({"body": "w1", "text": "w2"}, "body", "w1"),
        ({"meta": {"text": "w3"}, "text": "w2"}, "meta.text", "w3"),
        ({"meta.text": "w4", "meta": {"text": "w3"}}, "meta.text", "w4"),
        ({"chat": [ASK, SAY]}, "chat", "<user>w1<assistant>w2"),
    ],
)
def test_a_field_is_taken_by_its_name(row, field, text):
    assert text_of(row, "", TURNS, field=field) == text


BROKEN = {
    "no such field": ({"body": "w1"}, "title", "has no 'title', only body; name another with --field"),
    "no known column": ({"body": "w1"}, None, "only body; name the one that holds it with --field NAME"),
    "a list of texts": ({"messages": ["hi"]}, None, "messages, turn 1 is a text"),
    "no role": ({"messages": [{"content": "hi"}]}, None, "turn 1 has content; it needs role and content"),
    "a role that is no text": ({"messages": [{"role": 3, "content": "hi"}]}, None, "turn 1 has content, role; it needs"),
    "a picture": (
        {"messages": [ASK, {"role": "user", "content": [{"type": "image", "url": "x"}]}]},
        None,
        "turn 2 holds a part of type 'image', which is no text",
    ),
    "a number in parts": ({"messages": [{"role": "user", "content": [7]}]}, None, "holds a part of type a number"),
    "content that is a number": ({"messages": [{"role": "user", "content": 7}]}, None, "content is a number (7)"),
    "no turns": ({"messages": []}, None, "messages has no turns"),
    "an answer that is a number": ({"question": "w1", "answer": 7}, None, "answer is a number (7); it must be a text"),
    "a text that is an object": ({"text": {"a": 1}}, None, "text is an object"),
    "a text that is null": ({"id": 3, "text": None}, None, "text is empty (null), and nothing else of the row is text"),
    "a field that is null": ({"body": None}, "body", "body is empty (null); leave the row out"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_row_that_does_not_fit_is_one_line_with_file_and_row(name):
    row, field, message = BROKEN[name]
    with pytest.raises(ValueError) as error:
        text_of(row, "a.jsonl, line 7", TURNS, field=field)
    said = str(error.value)
    assert said.startswith("a.jsonl, line 7") and message in said and "\n" not in said and len(said) < 400


TEMPLATES = {
    "adds a text to a list": ("{{ messages[0]['role'] + messages }}", "can only concatenate str"),
    "divides by zero": ("{{ 1 / 0 }}", "division by zero"),
    "recurses": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "maximum recursion depth"),
    "includes a file": ("{% include 'x' %}", "no loader"),
    "counts to a billion": ("{% for i in range(1000000000) %}{% endfor %}", "Range too big"),
    "is no template": ("{% for %}", "refuses these messages"),
    "refuses": ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_whatever_a_template_does_is_one_line(name, tmp_path):
    template, message = TEMPLATES[name]
    path = write_jsonl(tmp_path / "a.jsonl", [""], messages=[[ASK]])
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": [ASK, SAY]}) + "\n")
    with pytest.raises(ValueError, match="a.jsonl, line 1: the chat template refuses these messages") as error:
        open_corpus(path, word_tokenizer(chat_template=template))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_template_that_loops_is_stopped():
    with pytest.raises(TimeoutError, match="more than 0 seconds"), deadline(0.2):
        while True:
            pass
    nested = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    from shoal.text import chat

    before, chat.MOST_SECONDS = chat.MOST_SECONDS, 0.2
    try:
        with pytest.raises(ValueError, match="refuses these messages .it takes more than"):
            chat_of(word_tokenizer(chat_template=nested))([ASK])
    finally:
        chat.MOST_SECONDS = before


def test_a_template_without_a_system_gets_it_in_the_first_turn():
    """As Gemma's: the system's turn is refused, and SlimOrca has one in every row."""
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    chat = chat_of(word_tokenizer(chat_template=template))
    turns = [{"role": "system", "content": "w0"}, ASK, SAY]
    assert chat(turns) == "<user>w0\n\nw1<assistant>w2"
    with pytest.raises(ValueError, match="System role not supported"):
        chat([{"role": "system", "content": "w0"}])


def test_turns_keep_what_a_template_may_ask_for():
    turn = {"role": "assistant", "content": "w1", "tool_calls": [{"name": "f"}], "name": "x"}
    assert turns_of([turn], "") == [turn]


def texts_of(path, **options):
    return [document.text for document in TextSource(str(path), PLAIN, **options).documents()]


def test_json_in_every_shape(tmp_path):
    rows = [{"text": "w1"}, {"text": "w2"}]
    for name, content in {
        "list": json.dumps(rows),
        "texts": json.dumps(["w1", "w2"]),
        "inside": json.dumps({"version": 1, "data": rows}),
        "lines": "\n".join(map(json.dumps, rows)),
    }.items():
        (tmp_path / f"{name}.json").write_text(content)
        assert texts_of(tmp_path / f"{name}.json") == ["w1", "w2"], name
    (tmp_path / "one.json").write_text(json.dumps({"conversations": [{"from": "human", "value": "w1"}]}))
    assert texts_of(tmp_path / "one.json") == ["w1"]


def test_tables_with_quotes_lines_and_other_marks(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n1,"w1, ""w2""\nw3"\n2,w4\n')
    (tmp_path / "b.csv").write_text("id;text\n1;w1, w2\n")
    (tmp_path / "c.csv").write_text("text\n" + "w1 " * 100_000 + "\n")
    assert texts_of(tmp_path / "a.csv") == ['w1, "w2"\nw3', "w4"]
    assert texts_of(tmp_path / "b.csv") == ["w1, w2"]
    assert len(texts_of(tmp_path / "c.csv")[0]) == 300_000
    (tmp_path / "d.csv").write_text("title,body\nw1,w2\n")
    assert texts_of(tmp_path / "d.csv", field="body") == ["w2"]


def test_in_a_folder_files_that_describe_text_are_not_text(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ["w1"])
    (tmp_path / "dataset_info.json").write_text('{"description": "w9"}')
    assert texts_of(tmp_path) == ["w1"]
    (tmp_path / "a.jsonl").rename(tmp_path / "a.hidden")
    (tmp_path / "dataset_info.json").write_text('[{"text": "w2"}]')
    assert texts_of(tmp_path) == ["w2"]


def test_a_parquet_file_is_read_by_the_same_columns(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"conversations": [{"from": "human", "value": "w1"}, {"from": "gpt", "value": f"w{i}"}]} for i in range(3)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert texts_of(tmp_path / "a.parquet") == [f"w1\n\nw{i}" for i in range(3)]
    assert texts_of(tmp_path / "a.parquet", field="conversations") == [f"w1\n\nw{i}" for i in range(3)]
    assert set(COLUMNS) >= {"text", "messages", "conversations", "instruction", "input", "output", "content"}


def test_the_page_names_every_column():
    page = (Path(__file__).parent.parent / "docs/text.md").read_text()
    assert [name for name in COLUMNS if f"`{name}`" not in page] == []


def test_a_hub_data_set_is_read_by_the_same_columns(tmp_path):
    rows = [{"instruction": f"w{i}", "input": "", "output": "w2"} for i in range(4)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert texts_of(f"hub:{tmp_path}") == [f"w{i}\n\nw2" for i in range(4)]
    assert texts_of(f"hub:{tmp_path}", field="output") == ["w2"] * 4


def test_a_field_of_plain_text_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("w1 w2")
    with pytest.raises(ValueError, match="--field 'body' names a column, and .*a.txt is plain text; leave it out"):
        open_corpus(str(tmp_path / "a.txt"), word_tokenizer(), field="body")


def test_names_that_no_file_can_have(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.txt")
    for spec, message in ((f"{'x' * 5000}.txt", "cannot be opened"), (str(tmp_path / "pipe.txt"), "no file with an end")):
        with pytest.raises(ValueError, match=message) as error:
            open_corpus(spec, word_tokenizer())
        assert len(str(error.value)) < 300


def test_the_command_takes_a_field(shoal, small, tmp_path):
    with open(small["text"]) as file:
        rows = [json.dumps({"title": "w1", "body": json.loads(line)["text"]}) for line in file]
    (tmp_path / "a.json").write_text(f"[{', '.join(rows)}]")
    same = ("--samples", 4, "--length", 16, "--json")
    code, out, err = shoal("eval", small["model"], "--text", tmp_path / "a.json", "--field", "body", *same)
    assert code == 0, err
    _, plain, _ = shoal("eval", small["model"], "--text", small["text"], *same)
    assert json.loads(out)["model"]["perplexity"] == json.loads(plain)["model"]["perplexity"]
    code, _, err = shoal("eval", small["model"], "--text", tmp_path / "a.json", *same)
    assert code == 2 and "a.json, row 1 has no column" in err and "--field NAME" in err
    code, _, err = shoal("eval", small["model"], "--field", "body", *same)
    assert code == 2 and "plain text; leave it out" in err


def test_chat_rows_of_a_base_model_make_samples(tmp_path):
    rows = [
        {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "w1"}]} for text in own_words([9] * 99)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for template in (None, CHAT_TEMPLATE):
        corpus = open_corpus(str(tmp_path / "a.jsonl"), word_tokenizer(chat_template=template))
        assert sum(1 for name in SLICE_SHARES for _ in corpus.documents(name)) == 99


def test_chats_and_plain_text_mix_by_their_characters(tmp_path):
    """A chat model is calibrated on both: turns through its template, plain text as it is, in the shares asked for."""
    rows = [{"messages": [ASK, {"role": "assistant", "content": text}]} for text in own_words([20] * 300)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = write_jsonl(tmp_path / "plain.jsonl", [f"w7 {text}" for text in own_words([20] * 300)])
    tokenizer = word_tokenizer(7000, chat_template=CHAT_TEMPLATE)
    corpus = open_corpus(f"0.5*{tmp_path / 'chat.jsonl'}+0.5*{plain}", tokenizer)
    texts = [document.text for document in corpus.documents("training")]
    sizes = [sum(len(text) for text in texts if text.startswith(start)) for start in ("<bos> user w1 assistant", "w7 ")]
    assert sum(sizes) == sum(map(len, texts)) and abs(sizes[0] - sizes[1]) < 300
    samples = corpus.samples("training", n=20, length=32)
    assert samples.ids_NT[:, 0].eq(0).all() and not samples.ids_NT[:, :2].eq(0).all(1).any(), "BOS in front, and once"
