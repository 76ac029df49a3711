"""Laws of the multiple-choice scorer: every score equals a forward of its own, however contexts are shared, batched or cut."""

import json
import math
from dataclasses import replace

import pytest
import torch
from families import every_family, tiny_model
from text_world import N_SPECIAL, word_tokenizer

from shoal.engine.open import open_model
from shoal.engine.streamed import open_streamed
from shoal.engine.student import TEACHER, Student
from shoal.engine.view import DecoderView
from shoal.evaluate.tasks.choice import score_pairs, score_task
from shoal.evaluate.tasks.task_files import Task, TaskItem, _task, load_task
from shoal.evaluate.tasks.tokenised import TokenRow, batch_of, encode_pair, pairs_of, rows_of, shares_context, task_pairs
from shoal.words.types import Unit

N_WORDS = 40
TOKENIZER = word_tokenizer(N_WORDS)
# Logits are fp32 of order 1, and the order of sums differs between a tree and its lines.
TOLERANCE = 2e-5
# Without positions as an argument, with windows of 5 tokens, or with ALiBi contexts cannot be shared exactly.
LINES_ONLY = {"bloom", "mpt", "mistral", "qwen2", "gemma2", "gemma3_text", "gpt_oss", "cohere2"}


def task_of(*items, form="choice", path="some/made.jsonl"):
    from pathlib import Path

    rows = tuple(TaskItem(f"k{n}", n + 1, ctx, tuple(choices), gold) for n, (ctx, choices, gold) in enumerate(items))
    return _task(Path(path), form, rows)


def words(*numbers):
    return " ".join(f"w{n}" for n in numbers)


ITEMS = (
    (words(1, 2, 3, 4, 5, 6, 7), [" w8", " w9 w10 w11", " w12 w13", " w14 w15 w16 w17"], 1),
    (words(20, 21), [" w1 w2 w3 w4 w5", " w6"], 0),
    (words(*range(30)), [" w31", " w32", " w33"], 2),
    (words(5, 5, 5), [" w5 w5", " w6 w6", " w5"], 2),
)


def naive(model, item, *, window=None):
    """One plain forward per option, everything written out; (loglikelihood, mean NLL, greedy) per option."""
    found = []
    for choice in item.choices:
        context, option = encode_pair(TOKENIZER, item.ctx, choice)
        tokens = context + option
        if window is not None:
            tokens = tokens[-(window + 1) :]
        with torch.no_grad():
            logits_TV = model(input_ids=torch.tensor([tokens[:-1]]), use_cache=False).logits[0].double()
        logp = [float(logits_TV[t].log_softmax(-1)[token]) for t, token in enumerate(tokens[1:])]
        best = [int(logits_TV[t].argmax()) == token for t, token in enumerate(tokens[1:])]
        n = len(option)
        found.append((sum(logp[-n:]), -sum(logp) / len(tokens), all(best[-n:])))
    return found


def scores_of(view, task, *, window=None, tokens_per_batch=None):
    """Per item and option, and whether contexts were read once."""
    pairs = task_pairs(task, tokenizer=TOKENIZER, window=window)
    (scores,), shared = score_pairs(view, pairs, tokens_per_batch=tokens_per_batch)
    return scores, shared


def assert_equal_to_naive(scores, task, model, *, window=None):
    for one, item in zip(scores, task.items, strict=True):
        expected = naive(model, item, window=window)
        assert [x.loglikelihood for x in one] == pytest.approx([e[0] for e in expected], abs=TOLERANCE)
        assert [x.mean_nll for x in one] == pytest.approx([e[1] for e in expected], abs=TOLERANCE)
        assert [x.is_greedy for x in one] == [e[2] for e in expected]


@pytest.mark.parametrize("family", every_family())
def test_every_family_equals_one_forward_per_option(family):
    model = tiny_model(family, n_layers=3)
    got, shared = scores_of(DecoderView(model), task_of(*ITEMS))
    assert shared is (family not in LINES_ONLY)
    assert_equal_to_naive(got, task_of(*ITEMS), model)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_options_of_the_same_tokens_tie_to_the_last_bit_and_the_first_of_them_is_taken(family):
    """Words that the tokenizer does not know are one token: options may differ as texts alone."""
    model = tiny_model(family, n_layers=3)
    items = [(words(*range(n, n + n % 7 + 1)), [" w3 u v", " x y z", " w3 s t", " w3 q r"], 0) for n in range(30)]
    got, _ = scores_of(DecoderView(model), task_of(*items))
    assert_equal_to_naive(got, task_of(*items), model)
    assert all(one[0] == one[2] == one[3] and one[0].loglikelihood != one[1].loglikelihood for one in got)
    (answers,) = score_task(DecoderView(model), task_of(*items), tokenizer=TOKENIZER)
    assert {one.chosen for one in answers.counted.items} <= {0, 1}


@pytest.mark.parametrize("tokens_per_batch", [1, 64, 10_000])
def test_batches_of_any_size_give_the_same_scores(tokens_per_batch):
    model = tiny_model("llama", n_layers=2)
    got, _ = scores_of(DecoderView(model), task_of(*ITEMS), tokens_per_batch=tokens_per_batch)
    assert_equal_to_naive(got, task_of(*ITEMS), model)


def test_a_greedy_option_is_marked_in_a_tree_and_in_a_line():
    model = tiny_model("llama", n_layers=2)
    context = TOKENIZER.encode(words(1, 2, 3))
    tokens = list(context)
    for _ in range(3):
        logits_V = model(input_ids=torch.tensor([tokens])).logits[0, -1]
        logits_V[:N_SPECIAL] = -math.inf
        logits_V[N_SPECIAL + N_WORDS :] = -math.inf
        tokens.append(int(logits_V.argmax()))
    with torch.no_grad():  # There are words only: the head never prefers a special or an unused token.
        model.get_output_embeddings().weight[:N_SPECIAL] = 0
        model.get_output_embeddings().weight[N_SPECIAL + N_WORDS :] = 0
    best = " " + words(*(token - N_SPECIAL for token in tokens[len(context) :]))
    other = best.rsplit(" ", 1)[0] + f" w{(tokens[-1] - N_SPECIAL + 1) % N_WORDS}"
    task = task_of((words(1, 2, 3), [other, best], 1))
    (got,), _ = scores_of(DecoderView(model), task)
    assert_equal_to_naive([got], task, model)
    (word,) = score_task(DecoderView(model), task_of((words(1, 2, 3), [best], 0), form="last_word"), tokenizer=TOKENIZER)
    assert word.counted.items[0].is_right is got[1].is_greedy


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("window", [64, 12])
def test_long_contexts_are_cut_from_the_left_and_counted(family, window):
    """Up to ``window`` tokens are read, one more predicted; a tree may be longer than the window, its branches are not."""
    model = tiny_model(family, n_layers=2)
    long = words(*(n % N_WORDS for n in range(100)))
    fitting = words(*(n % N_WORDS for n in range(window - 5)))
    choices = [" " + words(*range(k, k + 4)) for k in range(8)]
    task = task_of((long, [" w1", " w2 w3", " w4 w5"], 0), (fitting, choices, 0), (words(1, 2), [" w3", " w4"], 1))
    (answers,) = score_task(DecoderView(model), task, tokenizer=TOKENIZER, window=window)
    assert answers.facts.n_truncated == 1
    assert_equal_to_naive(scores_of(DecoderView(model), task, window=window)[0], task, model, window=window)


def test_options_that_were_cut_alike_share_their_context():
    pairs = [pairs_of(task_of((words(*range(30)), [" w1", " w2 w3", " w4 w5"], 0)).items[0], tokenizer=TOKENIZER, window=12)]
    rows = rows_of(pairs, share=True)
    assert [row.which for row in rows] == [((0, 0),), ((0, 1), (0, 2))]
    assert [len(row.context) + len(row.options[0]) for row in rows] == [13, 13]
    assert [pair.n_cut for pair in pairs[0]] == [31 + 1 - 13, 31 + 2 - 13, 31 + 2 - 13]  # 31: the start token comes first


def test_many_students_in_one_reading_equal_each_alone():
    view = DecoderView(tiny_model("llama", n_layers=4))
    students = [TEACHER, Student(frozenset({Unit("layer", 1)})), Student(frozenset({Unit("layer", 2)}))]
    together = score_task(view, task_of(*ITEMS), tokenizer=TOKENIZER, students=students)
    for student, one in zip(students, together, strict=True):
        assert one == score_task(view, task_of(*ITEMS), tokenizer=TOKENIZER, students=[student])[0]
    assert together[0].counted.items[0].scores != together[1].counted.items[0].scores


def test_layers_read_from_disk_give_the_same_bits(tmp_path):
    tiny_model("llama", n_layers=3).save_pretrained(tmp_path)
    opened, streamed = open_streamed(tmp_path)
    views = DecoderView(open_model(tmp_path).model), DecoderView(opened.model, residency=streamed)
    a, b = (score_task(view, task_of(*ITEMS), tokenizer=TOKENIZER, tokens_per_batch=64) for view in views)
    assert a == b


def test_the_order_of_the_items_changes_no_bit():
    view = DecoderView(tiny_model("llama", n_layers=2))
    task = task_of(*ITEMS)
    turned = Task(task.name, task.path, task.form, task.items[::-1], task.data_hash)
    (a,), (b,) = (score_task(view, one, tokenizer=TOKENIZER) for one in (task, turned))
    assert a.counted.items == b.counted.items[::-1]


def test_acc_and_acc_norm_are_lm_evals():
    """acc: highest sum; acc_norm: highest sum per character of the option, its leading space included; first of equals."""
    view = DecoderView(tiny_model("llama", n_layers=2))
    task = task_of(*ITEMS)
    (got,), (scores, _) = score_task(view, task, tokenizer=TOKENIZER), scores_of(view, task)
    for item, options, one, norm in zip(task.items, scores, got.counted.items, got.norm.items, strict=True):
        own = [option.loglikelihood for option in options]
        per_character = [value / len(choice) for value, choice in zip(own, item.choices, strict=True)]
        assert one.chosen == own.index(max(own)) and norm.chosen == per_character.index(max(per_character))
    assert [a.scores for a in got.weighed.items] == [tuple(one.mean_nll for one in options) for options in scores]


def test_a_tree_attends_to_its_context_and_its_own_branch_only():
    batch = batch_of(
        [TokenRow((1, 2), ((3, 4, 5), (6, 7)), ((0, 0), (0, 1))), TokenRow((1,), ((3, 4), (6, 7)), ((1, 0), (1, 1)))], 0
    )
    assert batch.ids_BT.tolist() == [[1, 2, 3, 4, 6], [1, 3, 6, 0, 0]]
    assert batch.branches.positions_BT.tolist() == [[0, 1, 2, 3, 2], [0, 1, 1, 0, 0]]
    seen = [[[s for s in range(5) if row[t][s]] for t in range(5)] for row in batch.branches.sees_BTT.tolist()]
    assert seen[0] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4]]
    assert seen[1] == [[0], [0, 1], [0, 2], [3], [4]]


def test_a_window_wide_enough_shares_and_one_too_narrow_does_not():
    view = DecoderView(tiny_model("mistral", n_layers=2))
    view.config.sliding_window = 20
    assert shares_context(view, longest=20) and not shares_context(view, longest=21)


# -- tokens as lm-eval splits them -------------------------------------------------------------------------------------


def test_trailing_spaces_move_to_the_option_and_the_start_token_comes_once():
    bos, w = 0, N_SPECIAL
    assert encode_pair(TOKENIZER, "w1 w2", " w3") == ([bos, w + 1, w + 2], [w + 3])
    assert encode_pair(TOKENIZER, "w1 w2  \n", "w3") == ([bos, w + 1, w + 2], [w + 3])
    assert encode_pair(TOKENIZER, "<bos> w1", " w2") == ([bos, w + 1], [w + 2])
    assert encode_pair(TOKENIZER, "w1", "w2") == ([bos, w + 1], [])  # "w1w2" is one unknown word: nothing of it is the option's


def test_an_empty_context_is_the_start_token():
    w = N_SPECIAL
    assert encode_pair(TOKENIZER, "", "w3 w4") == ([0], [w + 3, w + 4])
    assert encode_pair(TOKENIZER, "", "<bos> w4") == ([0], [w + 4])
    endless = word_tokenizer(N_WORDS, special=("eos", "pad"))
    assert encode_pair(endless, "", "w3") == ([1], [w + 3])
    model = tiny_model("llama", n_layers=2)
    task = task_of(("", [" w1 w2", " w3"], 0))
    assert_equal_to_naive(scores_of(DecoderView(model), task)[0], task, model)


def test_what_cannot_be_scored_is_one_clear_line():
    view = DecoderView(tiny_model("llama", n_layers=2))
    nothing = task_of((words(1), [" w2", " w3"], 0), ("w1", ["w2", " w3"], 0))
    with pytest.raises(ValueError, match=r"made.jsonl, line 2: the option 'w2' has no tokens"):
        score_task(view, nothing, tokenizer=TOKENIZER)
    long = task_of((words(1), [" " + words(*range(9)), " w3"], 0))
    with pytest.raises(ValueError, match="line 1: an option of 9 tokens is longer than the model's window of 8"):
        score_task(view, long, tokenizer=TOKENIZER, window=8)
    written = replace(nothing, form="generation")
    with pytest.raises(ValueError, match="a task of written answers, not of choices or last words"):
        score_task(view, written, tokenizer=TOKENIZER)


# -- last words --------------------------------------------------------------------------------------------------------


def test_last_words_are_greedy_or_not_and_have_a_perplexity_per_word():
    model = tiny_model("llama", n_layers=2)
    task = task_of((words(1, 2, 3), [" w4 w5"], 0), (words(7), [" w8"], 0), form="last_word")
    (got,) = score_task(DecoderView(model), task, tokenizer=TOKENIZER)
    expected = [naive(model, item)[0] for item in task.items]
    assert got.word_perplexity == pytest.approx(math.exp(-(expected[0][0] + expected[1][0]) / 2), rel=1e-5)
    assert [a.chosen for a in got.counted.items] == [0 if e[2] else None for e in expected]
    assert task.chance == got.facts.chance == 0.0


# -- task files --------------------------------------------------------------------------------------------------------

GOOD = {"ctx": "a", "choices": [" b", " c"], "gold": 1}


def test_a_task_file_is_read_as_it_stands(tmp_path):
    path = tmp_path / "quiz.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps({"ctx": "a\u2028b", "choices": ["x", "y", "z"], "gold": 0}))
    task = load_task(path)
    assert (task.name, task.form, [item.line for item in task.items]) == ("quiz", "choice", [1, 3])
    assert task.items[0].choices == (" b", " c") and task.items[1].ctx == "a\u2028b"
    assert task.chance == pytest.approx((1 / 2 + 1 / 3) / 2)
    turned = tmp_path / "turned.jsonl"
    turned.write_text("\n".join(path.read_text().split("\n")[::-1]))
    assert load_task(turned).data_hash == task.data_hash
    assert {item.key for item in load_task(turned).items} == {item.key for item in task.items}
    assert task.head(1).items == task.items[:1] and task.head(1).data_hash != task.data_hash


WRONG = {
    "a gold that is missing": ({"ctx": "a", "choices": ["b", "c"]}, "line 2: the field 'gold' is missing"),
    "a gold that is NaN": ({**GOOD, "gold": math.nan}, "line 2: gold=NaN needs a whole number 0..1"),
    "a gold outside": ({**GOOD, "gold": 2}, "line 2: gold=2 needs a whole number 0..1"),
    "a gold that is true": ({**GOOD, "gold": True}, "line 2: gold=true needs"),
    "a wrong field": (
        {"ctx": "a", "choises": ["b", "c"], "gold": 0},
        "line 2: unknown field 'choises'; did you mean 'choices'",
    ),
    "a field of the other form": ({**GOOD, "target": "x"}, "line 2: unknown field 'target'"),
    "one choice": ({**GOOD, "choices": ["b"]}, "line 2: choices=.* needs a list of at least 2 texts"),
    "an empty choice": ({**GOOD, "choices": ["b", ""]}, "line 2: a choice is empty"),
    "a choice that is a number": ({**GOOD, "choices": ["b", 3]}, "line 2: every choice needs a text, got 3"),
    "a context that is null": ({**GOOD, "ctx": None}, "line 2: ctx needs a text, got null"),
    "a field that comes twice": (
        '{"ctx": "a", "choices": ["b", "c"], "gold": 0, "gold": 1}',
        "line 2 states 'gold' twice",
    ),
    "half a character": ({**GOOD, "ctx": "a\ud800"}, "line 2 holds half a character"),
    "a list": ([1], "line 2: needs an object"),
    "no JSON": ("{'ctx': 1}", "line 2 is not valid JSON"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_task_file_is_one_clear_line(tmp_path, fault):
    row, message = WRONG[fault]
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + (row if isinstance(row, str) else json.dumps(row)) + "\n")
    with pytest.raises(ValueError, match=message) as caught:
        load_task(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_items(tmp_path):
    plain, marked = tmp_path / "plain.jsonl", tmp_path / "marked.jsonl"
    plain.write_text(json.dumps(GOOD) + "\n", encoding="utf-8")
    marked.write_text(json.dumps(GOOD) + "\n", encoding="utf-8-sig")
    assert marked.read_bytes() != plain.read_bytes() and load_task(marked).items == load_task(plain).items


def test_files_without_items_or_of_no_form_are_refused(tmp_path):
    path = tmp_path / "t.jsonl"
    with pytest.raises(ValueError, match="no task file"):
        load_task(path)
    path.write_text(" \n\n")
    with pytest.raises(ValueError, match="has no items"):
        load_task(path)
    path.write_text('{"question": "a", "chioces": []}')
    with pytest.raises(ValueError, match="line 1: needs the fields ctx, choices and gold; .*Unknown field 'chioces'"):
        load_task(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        load_task(path)
    path.write_text(json.dumps({"ctx": "a", "target": ""}))
    with pytest.raises(ValueError, match="line 1: target is empty"):
        load_task(path)
