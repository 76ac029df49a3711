"""Chats of a model with itself: the template decides where a turn begins and ends, and a killed run writes the same."""

import json
from types import SimpleNamespace

import pytest
import torch
from text_world import BOS, EOS, PAD, word_tokenizer
from world import N_WORDS, write_model

from shoal.recipes.recipe_file import load_recipe
from shoal.run.own_chats import Speaker, write_own_chats
from shoal.text.conversations import conversations
from shoal.words.progress import watched

ENDED = (
    "{% for m in messages %} {{ m.role }} {{ m.content }} <eos>{% endfor %}{% if add_generation_prompt %} assistant{% endif %}"
)
SPELT = "{% for m in messages %} w9 {{ m.content }} w1 w2{% endfor %}{% if add_generation_prompt %} w8{% endif %}"


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    """A random model with a chat template: it ends a turn after some forty tokens."""
    folder = write_model(tmp_path_factory.mktemp("chatty") / "model", n_layers=2)
    word_tokenizer(N_WORDS, chat_template=ENDED).save_pretrained(folder)
    return folder


def recipe(model, *sources, length=64):
    return load_recipe("default", {"model": str(model), "text": {"sources": list(map(str, sources)), "length": length}})


def test_chats_are_turns_that_the_other_verbs_read(chatty, shoal, tmp_path):
    out = tmp_path / "own.jsonl"
    code, said, err = shoal("write", chatty, "--chats", "--n", 12, "--length", 64, "--out", out, "--json")
    assert code == 0, err
    made, rows = json.loads(said), [json.loads(line)["messages"] for line in out.read_text().splitlines()]
    assert made["n_texts"] == len(rows) == 12 and not (tmp_path / "own.jsonl.part").exists()
    for chat in rows:
        assert [turn["role"] for turn in chat] == ["user", "assistant"]
        assert all(turn["content"] and "<" not in turn["content"].replace("<unk>", "") for turn in chat)
    code, _, err = shoal("eval", chatty, "--text", out, "--whole", "--length", 16)
    assert code == 0, err


def test_questions_come_from_conversations_that_are_given(chatty, tmp_path):
    given = [[{"role": "system", "content": "w3"}, {"role": "user", "content": f"w{i} w5"}] for i in range(9)]
    given.insert(4, [{"role": "assistant", "content": "w6"}])  # Nobody asked.
    answered = [[*chat, {"role": "assistant", "content": "w7"}] for chat in given]
    source = tmp_path / "asked.jsonl"
    source.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in answered))
    write_own_chats(recipe(chatty, source), tmp_path / "own.jsonl", n=50)
    found = [turns for _, turns in conversations([str(tmp_path / "own.jsonl")])]
    wanted = [chat for chat in given if len(chat) == 2]
    asked = [chat[:-1] for chat in found]
    assert asked == [chat for chat in wanted if chat in asked] and len(asked) >= len(wanted) - 2, "in their order, each once"
    assert all(chat[-1]["role"] == "assistant" and chat[-1]["content"] for chat in found)


def test_a_run_that_was_killed_writes_the_same(chatty, tmp_path, monkeypatch):
    monkeypatch.setattr("shoal.run.own_chats.GROUP", 4)
    whole, killed = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_own_chats(recipe(chatty), whole, n=9)

    def kill(what, done, total):
        if what == "write" and done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), watched(kill):
        write_own_chats(recipe(chatty), killed, n=9)
    assert not killed.exists() and (tmp_path / "b.jsonl.part").exists()
    steps = []
    with watched(lambda what, done, total: steps.append(done) if what == "write" else None):
        write_own_chats(recipe(chatty), killed, n=9)
    assert killed.read_text() == whole.read_text() and steps[0] >= 4, "it goes on"


def test_tokens_are_those_of_the_chats_that_are_kept(chatty, tmp_path, monkeypatch):
    monkeypatch.setattr("shoal.run.own_chats.GROUP", 8)
    few, more = (write_own_chats(recipe(chatty), tmp_path / f"{n}.jsonl", n=n) for n in (2, 3))
    *kept, last = (tmp_path / "3.jsonl").read_text().splitlines(keepends=True)
    assert (tmp_path / "2.jsonl").read_text() == "".join(kept)
    said = " ".join(turn["content"] for turn in json.loads(last)["messages"]).split()
    n_last = more.n_tokens - few.n_tokens
    assert len(said) + len([BOS, "user", EOS, "assistant", EOS]) <= n_last <= 64, "special tokens that it says are no words"
    assert few.n_tokens <= 2 * 64


class Says:
    """A model that says what is given, behind any prompt."""

    generation_config = SimpleNamespace(eos_token_id=EOS)

    def __init__(self, *rows):
        self.rows = rows

    def get_input_embeddings(self):
        return SimpleNamespace(weight=torch.zeros(1))

    def generate(self, ids_BT, *, attention_mask, max_new_tokens, **how):
        self.prompts = [ids[mask.bool()].tolist() for ids, mask in zip(ids_BT, attention_mask, strict=True)]
        self.most, self.how = max_new_tokens, how
        said = torch.tensor([row[:max_new_tokens] + [EOS] * (max_new_tokens - len(row)) for row in self.rows])
        return torch.cat([ids_BT, said], 1)


def spoken(template, *rows, length=32):
    tokenizer = word_tokenizer(N_WORDS, chat_template=template)
    ids = [tokenizer.convert_tokens_to_ids(row.split()) for row in rows]
    return Speaker(Says(*ids), tokenizer, length, 0.7)


def test_a_question_begins_behind_the_template_and_what_does_not_end_is_left_out():
    speaker = spoken(ENDED, "w1 w2", "w4 w5 w6 w7 w8 w9 w10 w11", "", "w3")
    said = [[{"role": "user", "content": text}] for text in ("w1 w2", "w3")]
    assert speaker.questions(4) == said, "the second one is as long as a quarter of the length"
    assert speaker.model.prompts == [[BOS, *speaker._ids("user")]] * 4 and speaker.model.most == 8
    assert speaker.model.how["temperature"] == 0.7 and speaker.model.how["eos_token_id"] == [EOS]


def test_an_answer_goes_as_far_as_its_question_leaves_room():
    speaker = spoken(ENDED, "w7", "w8 w9")
    short, long = ([{"role": "user", "content": text}] for text in ("w1", "w1 w2 w3"))
    chats, n_tokens = speaker.answered([short, long])
    assert [chat[-1]["content"] for chat in chats] == ["w7", "w8 w9"]
    prompts = [[BOS, *speaker._ids(f"user {turns[0]['content']} <eos> assistant")] for turns in (short, long)]
    assert speaker.model.prompts == prompts and speaker.model.most == 32 - len(prompts[1])
    assert n_tokens == [len(prompts[0]) + 2, len(prompts[1]) + 3], "with the token that ends each"


def test_a_turn_may_end_with_words():
    speaker = spoken(SPELT, "w4 w1 w2 w5", "w6 w2 w1", length=32)
    assert [turns[0]["content"] for turns in speaker.questions(2)] == ["w4", "w6 w2 w1"]
    assert speaker.model.how["stop_strings"] == ["w1 w2"]
    speaker = spoken(SPELT, "w4 w5 w1 w2", "w6 w7 w8 w9 w10 w1 w2")
    chats, n_tokens = speaker.answered([[{"role": "user", "content": "w3"}]] * 2)
    assert [chat[-1]["content"] for chat in chats] == ["w4 w5", "w6 w7 w8 w9 w10"]
    n_prompt = len(speaker.model.prompts[0])
    assert n_tokens == [n_prompt + 2, n_prompt + 5], "neither the words that end it nor what fills the batch is said"


def test_a_mark_that_is_a_token_ends_a_turn_whatever_the_template_writes_behind_it():
    marked = ENDED.replace("<eos>", "<pad> w9")
    speaker = spoken(marked, "w4 <pad> w5", "w6 w7")
    assert [turns[0]["content"] for turns in speaker.questions(2)] == ["w4", "w6 w7"] and PAD in speaker.ends
    assert speaker.model.how["stop_strings"] is None


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template, so the model has no chats; leave out --chats"),
        ("{{ messages[0].content | upper }}", "writes a user's words 0 times"),
        ("{{ messages[0].content }} {{ messages[0].content }}", "writes a user's words 2 times"),
        ("{{ raise_exception('no') }}", "refuses these messages"),
    ],
)
def test_templates_that_cannot_ask_are_refused(template, message):
    with pytest.raises(ValueError, match=message):
        spoken(template, "w1").questions(1)


def test_refusals_are_one_line(chatty, small, shoal, tmp_path):
    code, _, err = shoal("write", small["model"], "--chats", "--n", 2, "--out", tmp_path / "a.jsonl")
    assert code == 2 and "leave out --chats" in err
    code, _, err = shoal("write", chatty, "--chats", "--text", small["text"], "--out", tmp_path / "a.jsonl")
    assert code == 2 and "holds plain text, no turns" in err
    code, _, err = shoal(
        "write", chatty, "--chats", "--n", 2, "--length", 8, "--temperature", 0.01, "--out", tmp_path / "a.jsonl"
    )
    assert code == 2 and "of 32 chats none ended within 8 tokens" in err
    assert not (tmp_path / "a.jsonl").exists()
