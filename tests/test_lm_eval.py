"""A view answers lm-eval's requests as lm-eval's own model of transformers does, and its tasks say what the files say."""

import copy
import json
import random
import re
from pathlib import Path

import pytest
import torch
from families import tiny_model
from test_evaluate_choice import N_WORDS, TOKENIZER, words
from text_world import word_tokenizer

from shoal.engine.student import TEACHER, Student
from shoal.engine.view import DecoderView
from shoal.evaluate.evaluation import Measured
from shoal.evaluate.generate import greedy_tokens, model_of
from shoal.evaluate.tasks.benchmark import compare_tasks, task_figures
from shoal.evaluate.tasks.lm_eval_model import Requests, as_lm, rolling_pairs
from shoal.evaluate.tasks.lm_eval_tasks import ask_tasks, written_task
from shoal.evaluate.tasks.task_files import load_task
from shoal.evaluate.tasks.tokenised import encode_prompt
from shoal.run.asked_tasks import answer_tasks, open_tasks
from shoal.run.job import bundled_model
from shoal.words.progress import watched
from shoal.words.types import Unit

pytest.importorskip("lm_eval")
pytest.importorskip("datasets")
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

WINDOW = 24
PLAIN = word_tokenizer(N_WORDS, start=())
CUT = Student(frozenset({Unit("layer", 1)}))
DRAW = random.Random(0)


def some(n):
    return words(*(DRAW.randrange(N_WORDS) for _ in range(n)))


FILES = {
    "quiz": [{"ctx": some(6), "choices": [f" {some(2)}", f" {some(3)}", f" {some(1)}"], "gold": n % 3} for n in range(8)]
    + [
        {"ctx": some(40), "choices": [f" {some(2)}", f" {some(5)}"], "gold": 1},
        {"ctx": "", "choices": [" w1", " w2"], "gold": 0},
    ],
    "last": [{"ctx": some(5), "target": f" {some(2)}"} for _ in range(6)] + [{"ctx": some(60), "target": " w1"}],
    "line": [{"ctx": some(n + 1), "answer": some(1)} for n in range(5)] + [{"ctx": some(30), "answer": "w1"}],
}
PROMPTS = [words(*range(n, n + n % 5 + 1)) for n in range(12)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, rows in FILES.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def view():
    return DecoderView(tiny_model("llama", n_layers=3))


def own_model(view, student, tokenizer):
    """A student as lm-eval's own model of transformers."""
    model = model_of(view, student)
    return HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=4, max_length=WINDOW, device="cpu")


@pytest.fixture(scope="module", params=[TEACHER, CUT], ids=["teacher", "student"])
def both(request, view):
    """Our model of lm-eval and lm-eval's own, of the teacher and of a student beside it."""
    theirs = own_model(view, request.param, TOKENIZER)
    students = [TEACHER, CUT]
    return as_lm(Requests(view, students, tokenizer=TOKENIZER, window=WINDOW), students.index(request.param)), theirs


def asked(kind, *arguments):
    return [Instance(kind, {}, one, n) for n, one in enumerate(arguments)]


# -- the contract of lm-eval's models ----------------------------------------------------------------------------------------


def test_loglikelihoods_are_those_of_its_own_model(both):
    pairs = [(row["ctx"], choice) for row in FILES["quiz"] for choice in row["choices"]]
    pairs += [(row["ctx"], row["target"]) for row in FILES["last"]] + [("w1 w2  ", "w3")]
    ours, theirs = (one.loglikelihood(asked("loglikelihood", *pairs)) for one in both)
    for a, b in zip(ours, theirs, strict=True):
        assert a[0] == pytest.approx(b[0], abs=2e-5) and a[1] == b[1]  # Logits are fp32 of order 1, summed in another order.


def test_loglikelihoods_of_whole_texts_are_those_of_its_own_model_where_nothing_is_added(view):
    texts = [(some(n),) for n in (3, WINDOW, WINDOW + 1, 70)]
    ours = as_lm(Requests(view, [TEACHER, CUT], tokenizer=PLAIN, window=WINDOW), 1)
    theirs = own_model(view, CUT, PLAIN)
    ours, theirs = (one.loglikelihood_rolling(asked("loglikelihood_rolling", *texts)) for one in (ours, theirs))
    assert ours == pytest.approx(theirs, abs=2e-4)


@pytest.mark.parametrize("start", [("<bos>",), ("<pad>", "<bos>")])
def test_windows_of_whole_texts_begin_with_the_start_tokens_once(view, start):
    """Against the log-likelihood of every token from one plain forward for each window."""
    tokenizer = word_tokenizer(N_WORDS, start=start)
    begin = tokenizer.convert_tokens_to_ids(list(start))
    room = WINDOW - len(begin)
    for n in (3, room, room + 1, 70):
        text = some(n)
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        pairs = rolling_pairs(tokenizer, text, longest=WINDOW)
        assert [token for pair in pairs for token in pair.option] == tokens
        naive = 0.0
        for pair in pairs:
            row = [*pair.context, *pair.option]
            assert len(row) - 1 <= WINDOW and row[: len(begin)] == begin and row[len(begin)] in tokens
            log_p = view.model(input_ids=torch.tensor([row])).logits[0].detach().log_softmax(-1)
            naive += sum(float(log_p[at - 1, row[at]]) for at in range(len(pair.context), len(row)))
        (ours,) = Requests(view, tokenizer=tokenizer, window=WINDOW).loglikelihood_rolling([text], 0)
        assert ours == pytest.approx(naive, abs=1e-4 * n)
        spelled = rolling_pairs(tokenizer, f"{' '.join(start)} {text}", longest=WINDOW)
        assert spelled == pairs


def test_written_texts_are_those_of_its_own_model(both):
    kwargs = {"until": ["w7", "\n"], "max_gen_toks": 9, "do_sample": False}
    prompts = [(prompt, kwargs) for prompt in (*PROMPTS, some(40))]
    ours, theirs = (one.generate_until(asked("generate_until", *prompts)) for one in both)
    assert ours == theirs and len(set(ours)) > 1 and not any("w7" in text for text in ours)


def test_all_students_are_scored_in_one_reading(view, monkeypatch):
    """The second student finds its answers; they are those it would have got alone."""
    pairs = [(row["ctx"], choice) for row in FILES["quiz"] for choice in row["choices"]]
    together = Requests(view, [TEACHER, CUT], tokenizer=TOKENIZER, window=WINDOW)
    alone = [Requests(view, [one], tokenizer=TOKENIZER, window=WINDOW).loglikelihood(pairs, 0) for one in (TEACHER, CUT)]
    found = [together.loglikelihood(pairs, 0)]
    monkeypatch.setattr("shoal.evaluate.tasks.lm_eval_model.score_pairs", None)
    assert [*found, together.loglikelihood(pairs, 1)] == alone
    assert together.cut and all(len(context.split()) > 20 for context, _ in together.cut)


@pytest.mark.parametrize(
    ("kind", "argument", "said"),
    [
        ("loglikelihood", ("w1", " " + some(70)), "an option of 70 tokens is longer than the model's window"),
        ("loglikelihood", ("w1", ""), "the option '' has no tokens"),
        ("generate_until", ("w1", {"do_sample": True, "temperature": 0.7}), "the task samples its texts"),
        ("generate_until", ("w1", {"max_gen_toks": WINDOW}), "leaves nothing of the model's window"),
    ],
)
def test_what_cannot_be_answered_is_one_clear_line(both, kind, argument, said):
    with pytest.raises(ValueError, match=said):
        getattr(both[0], kind)(asked(kind, argument))


# -- tasks by name -------------------------------------------------------------------------------------------------------

YAML = """
task: shoal_animals
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "{{ctx}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
"""


@pytest.fixture
def named(files, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml" / "animals.yaml").write_text(YAML.replace("DATA", str(files / "quiz.jsonl")))
    return tmp_path / "yaml"


@pytest.mark.parametrize("student", [None, CUT])
def test_a_task_by_name_says_what_its_file_says(view, files, named, student):
    """Accuracies, stability by mean NLL, and how many contexts were cut."""
    tasks = open_tasks([str(files / "quiz.jsonl"), "shoal_animals"], include=named)
    assert "quiz by the built-in scorer; shoal_animals by lm-eval" in str(tasks)
    ours, theirs = answer_tasks(view, tasks, tokenizer=TOKENIZER, window=WINDOW, student=student)
    for fact in ("form", "metric", "n_items", "n_truncated", "chance"):
        assert getattr(ours.facts, fact) == getattr(theirs.facts, fact)
    for one in ("counted", "weighed"):
        for a, b in zip(getattr(ours, one).items, getattr(theirs, one).items, strict=True):
            assert (a.gold, a.chosen) == (b.gold, b.chosen) and a.scores == pytest.approx(b.scores, abs=2e-5)
    assert [a.is_right for a in ours.norm.items] == [b.is_right for b in theirs.norm.items]


def test_a_student_is_not_its_teacher_and_the_teacher_is_itself(view, named):
    tasks = open_tasks(["shoal_animals"], include=named).named
    teacher, student = ask_tasks(view, tasks, tokenizer=TOKENIZER, students=[TEACHER, CUT], window=WINDOW)
    (itself,) = compare_tasks(teacher, teacher).tasks
    assert itself.stability.stability.low == 1.0 and not itself.answers.right_to_wrong and itself.answers.kl.value == 0.0
    (got,) = compare_tasks(teacher, student).tasks
    assert got.answers.kl.value > 1e-6 and got.stability.variant == "mean_nll"


@pytest.mark.slow  # The call reads the index of all tasks of lm-eval.
def test_unknown_names_and_data_out_of_reach_are_one_clear_line(named):
    with pytest.raises(ValueError, match="lm-eval has no task 'shoal_animal'; did you mean shoal_animals"):
        open_tasks(["shoal_animal"], include=named)
    with pytest.raises(ValueError, match="the data of task 'gsm8k' cannot be loaded"):
        open_tasks(["gsm8k"])


# -- files of written answers ----------------------------------------------------------------------------------------------


def written(model, prompt, *, n=WINDOW // 2):
    """What one prompt on its own is followed by, up to the end token."""
    tokens = greedy_tokens(model, torch.tensor(encode_prompt(TOKENIZER, prompt)[-(WINDOW - n) :]), max_new_tokens=n)
    end = model.generation_config.eos_token_id
    return TOKENIZER.decode(tokens[: tokens.index(end)] if end in tokens else tokens, skip_special_tokens=True).strip()


def task_file(folder, rows, name="said.jsonl", **options):
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)))
    return load_task(path, **options)


def answered(view, task, student=TEACHER):
    ((found,),) = ask_tasks(view, [written_task(task, window=WINDOW)], tokenizer=TOKENIZER, students=[student], window=WINDOW)
    return found


def test_accuracy_is_the_share_that_was_planted(view, tmp_path):
    said = [written(view.model, prompt) for prompt in PROMPTS]
    assert all(said) and len(set(said)) > 1
    gold = [text if n % 3 else text + " w0" for n, text in enumerate(said)]
    rows = [{"ctx": ctx, "answer": answer} for ctx, answer in zip(PROMPTS, gold, strict=True)]
    got = answered(view, task_file(tmp_path, rows))
    assert [one.said for one in got.counted.items] == said
    assert [one.is_right for one in got.counted.items] == [bool(n % 3) for n in range(12)]
    figures = task_figures(got)
    assert (figures.accuracy.value, figures.facts.metric, figures.facts.chance) == (8 / 12, "exact_match", 0.0)


def test_prompts_that_leave_no_room_lose_their_beginning_and_are_counted(view, tmp_path):
    long = words(*(n % 40 for n in range(30)))
    whole = words(*range(WINDOW // 2 - 1))  # With the start token this is exactly the room there is.
    assert len(encode_prompt(TOKENIZER, whole)) == WINDOW // 2
    rows = [{"ctx": long, "answer": written(view.model, long)}, {"ctx": whole, "answer": "w2"}]
    got = answered(view, task_file(tmp_path, rows))
    assert got.facts.n_truncated == 1 and got.counted.items[0].is_right


def test_a_students_answers_are_compared_as_texts(view, tmp_path):
    said, others = ([written(model_of(view, one), prompt) for prompt in PROMPTS] for one in (TEACHER, CUT))
    task = task_file(tmp_path, [{"ctx": ctx, "answer": answer} for ctx, answer in zip(PROMPTS, said, strict=True)])
    teacher, student = answered(view, task), answered(view, task, CUT)
    (got,) = compare_tasks([teacher], [student]).tasks
    assert got.student.value == got.answers.answers.value == sum(a == b for a, b in zip(said, others, strict=True)) / 12
    assert got.answers.right_to_wrong and got.answers.kl is None and got.stability is None
    assert {(one.teacher_said, one.student_said) for one in got.answers.right_to_wrong} <= set(zip(said, others, strict=True))


def test_sums_are_read_as_gsm8k_reads_them(view, tmp_path, monkeypatch):
    """Its stop strings, its strict filter and what its exact_match ignores; what the model writes is given."""
    texts = ["2 + 3 = 5\n#### 5", " it is #### 1,234.\n\nQuestion: next #### 7", "#### -3 and #### 4", "no number", "####5"]
    gold, right = ("5", "1,234", "-3", "5", "5"), [True, True, True, False, False]
    rows = [{"question": f"w{n}", "answer": f"so\n#### {g}"} for n, g in enumerate(gold)]
    monkeypatch.setattr("shoal.evaluate.tasks.lm_eval_model.greedy_texts", lambda *unused, **options: iter(enumerate(texts)))
    got = answered(view, task_file(tmp_path, rows))
    assert [one.is_right for one in got.counted.items] == right and got.facts.metric == "exact_match, strict-match"


def test_shots_are_the_first_items_solved_and_are_not_scored(tmp_path):
    rows = [{"question": f"q{n}?", "answer": f"so it is {n}.\n#### {n}"} for n in range(4)]
    got = task_file(tmp_path, rows, shots=2)
    assert got.items[0].ctx == (
        "Question: q0?\nAnswer: so it is 0.\n#### 0\n\nQuestion: q1?\nAnswer: so it is 1.\n#### 1\n\nQuestion: q2?\nAnswer:"
    )
    assert [one.line for one in got.items] == [3, 4] and got.written == "gsm8k"
    assert got.items[0].key != task_file(tmp_path, rows).items[2].key
    choices = [{"ctx": f"c{n}", "choices": [" no", " yes"], "gold": n % 2} for n in range(3)]
    assert task_file(tmp_path, choices, shots=2).items[0].ctx == "c0 no\n\nc1 yes\n\nc2"
    for shots in (-1, 3):
        with pytest.raises(ValueError, match=f"shots={shots} needs 0..2"):
            task_file(tmp_path, choices, shots=shots)


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


def test_a_prompt_without_tokens_is_refused(view, tmp_path):
    plain = word_tokenizer(40, special=("eos", "pad"))
    task = written_task(task_file(tmp_path, [{"ctx": "", "answer": "w1"}]))
    with pytest.raises(ValueError, match="the prompt '' has no tokens"):
        ask_tasks(view, [task], tokenizer=plain)


def test_progress_and_the_first_items(view, files):
    tasks, seen = open_tasks([str(files / f"{name}.jsonl") for name in FILES], n_items=2), []
    with watched(lambda what, *step: what == "write tokens" or seen.append((what, *step))):
        got = answer_tasks(view, tasks, tokenizer=TOKENIZER, window=WINDOW)
    assert [one.facts.n_items for one in got] == [2, 2, 2] and got[0].counted.items[0].key == tasks.files[0].items[0].key
    assert {what for what, _, _ in seen} == {"quiz, model", "last, model", "lm-eval, model"}
    assert seen[-1][1:] == (2, 2) and all(0 < done <= total for _, done, total in seen)


def test_the_python_of_the_page_runs(tmp_path, monkeypatch):
    """On the bundled model: a file and a task of lm-eval, the teacher and a student without layer 9."""
    page = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text()
    monkeypatch.chdir(tmp_path)
    row = {"ctx": "The sun rose over the", "choices": [" sea", " of and"], "gold": 0}
    (tmp_path / "quiz.jsonl").write_text(json.dumps(row))
    (tmp_path / "lines.jsonl").write_text(json.dumps({"ctx": "The sun rose over the", "answer": "sea"}))
    names: dict[str, object] = {}
    found = []
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block.replace('"TEACHER"', repr(str(bundled_model()))).replace("2048", "256"), names)
        found.append(names["found"].tasks[0])
    assert [one.facts.engine for one in found] == ["built-in", "lm-eval"]
    assert found[0].answers.kl.value > 0 and found[1].answers.answers is not None


# -- the verb --------------------------------------------------------------------------------------------------------------


def test_eval_of_every_form(shoal, files, small):
    tasks = [part for name in FILES for part in ("--task", files / f"{name}.jsonl")]
    common = ("eval", small["model"], "--text", small["text"], "--samples", 4, "--length", 16, "--json")
    code, out, err = shoal(*common, *tasks, "--items", 5)
    assert code == 0, err
    assert [one.facts.form for one in Measured.from_json(out).tasks] == ["choice", "last_word", "generation"]
    assert "Tasks, accuracy in %" in err and "quiz, last by the built-in scorer; line by lm-eval" in err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--task", "nowhere.jsonl"), "no task file at nowhere.jsonl"),
        (("--task", "quiz.jsonl", "--items", "0"), "--items 0 needs at least 1"),
        (("--shots", "2"), "give --task as well"),
        (("--task", "shoal_x", "--include", "nowhere"), "no folder at nowhere"),
        (("--task", "quiz.jsonl", "--task", "quiz.jsonl"), "two tasks have one name"),
        (("--task", "long.jsonl"), "long.jsonl, line 1: an option of 70 tokens is longer than the model's window of 64"),
        (("--task", "empty.jsonl"), "has no items"),
    ],
)
def test_what_cannot_be_asked_is_one_line(args, said, shoal, files, small, tmp_path):
    (tmp_path / "quiz.jsonl").write_bytes((files / "quiz.jsonl").read_bytes())
    (tmp_path / "long.jsonl").write_text(json.dumps({"ctx": "w1", "choices": [" " + some(70), " w2"], "gold": 0}))
    (tmp_path / "empty.jsonl").write_text("\n")
    code, out, err = shoal("eval", small["model"], "--text", small["text"], "--samples", 2, "--length", 16, *args)
    assert code == 2 and said in err and out.count("\n") <= 1 and said in err.strip().splitlines()[-1]
