"""Laws of written answers: read from the text as lm-eval reads them, right where the model was made to be right."""

import json

import pytest
import torch
from families import tiny_model
from test_evaluate_choice import TOKENIZER, words

from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.evaluate.generate import greedy_tokens, model_of
from shoal.evaluate.tasks.benchmark import compare_tasks, task_figures
from shoal.evaluate.tasks.exact_match import new_tokens, write_answers
from shoal.evaluate.tasks.task_files import LINE, NUMBER, load_task
from shoal.evaluate.tasks.tokenised import encode_prompt
from shoal.words.types import Unit

WINDOW = 24  # half of it is for the answer
PROMPTS = [words(*range(n, n + n % 5 + 1)) for n in range(12)]


def written(model, prompt, *, n=WINDOW // 2):
    """What one prompt on its own is followed by, up to the end token."""
    tokens = greedy_tokens(model, torch.tensor(encode_prompt(TOKENIZER, prompt)[-(WINDOW - n) :]), max_new_tokens=n)
    end = model.generation_config.eos_token_id
    return TOKENIZER.decode(tokens[: tokens.index(end)] if end in tokens else tokens, skip_special_tokens=True).strip()


def task_file(folder, rows, name="said.jsonl"):
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)))
    return load_task(path)


@pytest.mark.parametrize("tokens_per_batch", [1, 4096])
def test_accuracy_is_the_share_that_was_planted(tmp_path, tokens_per_batch):
    model = tiny_model("llama", n_layers=2)
    said = [written(model, prompt) for prompt in PROMPTS]
    assert all(said) and len(set(said)) > 1
    gold = [text if n % 3 else text + " w0" for n, text in enumerate(said)]
    task = task_file(tmp_path, [{"ctx": ctx, "answer": answer} for ctx, answer in zip(PROMPTS, gold, strict=True)])
    got = write_answers(model, task, tokenizer=TOKENIZER, window=WINDOW, tokens_per_batch=tokens_per_batch)
    assert [one.said for one in got.counted.items] == said
    assert [one.is_right for one in got.counted.items] == [bool(n % 3) for n in range(12)]
    figures = task_figures(got)
    assert (figures.accuracy.value, figures.metric, figures.chance, figures.form) == (8 / 12, "exact_match", 0.0, "generation")


def test_prompts_that_leave_no_room_lose_their_beginning_and_are_counted(tmp_path):
    model = tiny_model("llama", n_layers=2)
    long = words(*(n % 40 for n in range(30)))
    whole = words(*range(WINDOW // 2 - 1))  # with the start token exactly the room there is
    assert len(encode_prompt(TOKENIZER, whole)) == WINDOW // 2
    task = task_file(tmp_path, [{"ctx": long, "answer": written(model, long)}, {"ctx": whole, "answer": "w2"}])
    got = write_answers(model, task, tokenizer=TOKENIZER, window=WINDOW)
    assert got.n_truncated == 1 and got.counted.items[0].is_right
    assert [new_tokens(256, window) for window in (None, 1024, 512, 256, 1)] == [256, 256, 256, 128, 1]


def test_a_students_answers_are_compared_as_texts(tmp_path):
    view = DecoderView(tiny_model("llama", n_layers=3))
    said = [written(view.model, prompt) for prompt in PROMPTS]
    task = task_file(tmp_path, [{"ctx": ctx, "answer": answer} for ctx, answer in zip(PROMPTS, said, strict=True)])
    models = [view.model, model_of(view, Student(frozenset({Unit("layer", 1)})))]
    teacher, student = (write_answers(model, task, tokenizer=TOKENIZER, window=WINDOW) for model in models)
    (itself,) = compare_tasks([teacher], [teacher]).tasks
    assert (itself.teacher.value, itself.answers.answers.low, itself.answers.stability.low) == (1.0, 1.0, 1.0)
    (got,) = compare_tasks([teacher], [student]).tasks
    others = [written(models[1], prompt) for prompt in PROMPTS]
    assert got.student.value == got.answers.answers.value == sum(a == b for a, b in zip(said, others, strict=True)) / 12
    assert got.answers.right_to_wrong and got.answers.kl is None and got.stability is None
    assert {(one.teacher_said, one.student_said) for one in got.answers.right_to_wrong} <= set(zip(said, others, strict=True))


def test_shots_are_the_first_items_solved_and_are_not_scored(tmp_path):
    rows = [{"question": f"q{n}?", "answer": f"so it is {n}.\n#### {n}"} for n in range(4)]
    path = tmp_path / "sums.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    got = load_task(path, shots=2)
    assert got.items[0].ctx == (
        "Question: q0?\nAnswer: so it is 0.\n#### 0\n\nQuestion: q1?\nAnswer: so it is 1.\n#### 1\n\nQuestion: q2?\nAnswer:"
    )
    assert [(one.line, one.choices) for one in got.items] == [(3, ("2",)), (4, ("3",))]
    assert got.items[0].key != load_task(path).items[2].key and got.writing == NUMBER
    choices = [{"ctx": f"c{n}", "choices": [" no", " yes"], "gold": n % 2} for n in range(3)]
    path.write_text("\n".join(map(json.dumps, choices)))
    assert load_task(path, shots=2).items[0].ctx == "c0 no\n\nc1 yes\n\nc2"
    for shots in (-1, 3):
        with pytest.raises(ValueError, match=f"shots={shots} needs 0..2"):
            load_task(path, shots=shots)


ANSWERS = [
    (NUMBER, "2 + 3 = 5\n#### 5", "5"),
    (NUMBER, " it is #### 1,234.\n\nQuestion: next #### 7", "1234"),
    (NUMBER, "#### -3 and #### 4", "-3"),
    (NUMBER, "no number here", None),
    (NUMBER, "Question: #### 5", None),
    (NUMBER, "####5", None),
    (NUMBER, "#### 0.50", "0.50"),
    (LINE, " blue \nred", "blue"),
    (LINE, "\nblue", ""),
    (LINE, "#### 5", "#### 5"),
]


@pytest.mark.parametrize(("writing", "text", "answer"), ANSWERS)
def test_answers_are_read_from_the_text(writing, text, answer):
    assert writing.answer(text) == answer


@pytest.mark.parametrize("text", [text for writing, text, _ in ANSWERS if writing is NUMBER])
def test_numbers_are_read_as_gsm8k_of_lm_eval_reads_them(text):
    """Its stop strings, its strict-match filter, its exact_match, each from lm-eval itself, against every number."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    for stop in NUMBER.stop:
        text = text.split(stop)[0]
    (found,) = RegexFilter(regex_pattern=r"#### (\-?[0-9\.\,]+)").apply([[text]], [{}])
    for gold in ("5", "1234", "-3", "0.50", "7"):
        options = dict(ignore_case=True, regexes_to_ignore=[",", "\\$", "(?s).*#### ", "\\.$"])
        theirs = exact_match_hf_evaluate(predictions=list(found), references=[f"so\n#### {gold}"], **options)
        assert bool(theirs["exact_match"]) == (NUMBER.answer(text) == gold)


WRONG = {
    "no number": ({"question": "q", "answer": "five"}, r"answer=\"five\" needs to end with '#### N'"),
    "an empty answer": ({"question": "q", "answer": ""}, "answer is empty"),
    "no answer": ({"question": "q"}, "needs the fields"),
    "two lines": ({"ctx": "q", "answer": "a\nb"}, "needs one line of text"),
    "a field too many": ({"question": "q", "answer": "#### 5", "level": 3}, "unknown field 'level'"),
    "a number as answer": ({"ctx": "q", "answer": 5}, "answer needs a text, got 5"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_file_is_one_clear_line(tmp_path, fault):
    row, message = WRONG[fault]
    with pytest.raises(ValueError, match=f"line 1: .*{message}"):
        task_file(tmp_path, [row])


def test_a_prompt_without_tokens_and_a_task_of_choices_are_refused(tmp_path):
    from text_world import word_tokenizer

    model = tiny_model("llama", n_layers=2)
    with pytest.raises(ValueError, match="line 1: the prompt has no tokens"):
        plain = word_tokenizer(40, special=("eos", "pad"))
        write_answers(model, task_file(tmp_path, [{"ctx": "", "answer": "w1"}]), tokenizer=plain)
    choice = task_file(tmp_path, [{"ctx": "w1", "choices": [" w2", " w3"], "gold": 0}])
    with pytest.raises(ValueError, match="not of written answers"):
        write_answers(model, choice, tokenizer=TOKENIZER)
