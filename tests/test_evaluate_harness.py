"""lm-eval as the engine says what the built-in scorer says, item by item, on live models, students and every form of file."""

import json
import random
import re
from pathlib import Path

import pytest
from families import tiny_model
from test_evaluate_choice import N_WORDS, TOKENIZER, words

from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.evaluate.evaluation import Measured
from shoal.evaluate.tasks.benchmark import compare_tasks, task_figures
from shoal.evaluate.tasks.harness_answers import answers_of_samples
from shoal.evaluate.tasks.task_files import load_task
from shoal.run.asked_tasks import answer_tasks, open_tasks
from shoal.run.job import bundled_model
from shoal.words.types import Unit

pytest.importorskip("lm_eval")
pytest.importorskip("datasets")

WINDOW = 24
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


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, rows in FILES.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def view():
    return DecoderView(tiny_model("llama", n_layers=3))


def asked(view, files, engine, *, student=None, window=WINDOW, **options):
    tasks = open_tasks([str(files / f"{name}.jsonl") for name in FILES], engine=engine, **options)
    return answer_tasks(view, tasks, tokenizer=TOKENIZER, window=window, student=student)


@pytest.mark.parametrize("student", [None, CUT])
@pytest.mark.parametrize("shots", [None, 1])
def test_both_engines_agree_item_by_item(view, files, student, shots):
    built_in, harness = (asked(view, files, engine, student=student, shots=shots) for engine in ("built-in", "lm-eval"))
    for ours, theirs in zip(built_in, harness, strict=True):
        assert (ours.engine, theirs.engine) == ("built-in", "lm-eval")
        for same in ("task", "form", "data_hash", "chance"):
            assert getattr(ours, same) == getattr(theirs, same)
        assert ours.n_truncated == theirs.n_truncated >= 1
        for a, b in zip(ours.counted.items, theirs.counted.items, strict=True):
            assert (a.key, a.gold, a.chosen, a.said, a.is_right) == (b.key, b.gold, b.chosen, b.said, b.is_right)
            assert a.scores == pytest.approx(b.scores, abs=2e-5)  # fp32 logits of order 1, summed in another order
        if ours.norm is not None:
            assert [a.is_right for a in ours.norm.items] == [b.is_right for b in theirs.norm.items]
        assert (ours.word_perplexity or 0.0) == pytest.approx(theirs.word_perplexity or 0.0, rel=1e-4)
    assert {one.form for one in harness} == {"choice", "last_word", "generation"}
    assert compare_tasks(built_in, harness).tasks[0].answers.kl.value < 1e-6


def test_a_student_is_not_its_teacher_and_the_teacher_is_itself(view, files):
    teacher, student = asked(view, files, "lm-eval"), asked(view, files, "lm-eval", student=CUT)
    itself = compare_tasks(teacher, teacher)
    assert all(one.answers.stability.low == 1.0 and not one.answers.right_to_wrong for one in itself.tasks)
    assert itself.tasks[0].answers.kl.value == 0.0 and itself.tasks[0].answers.variant == "option_nll"
    got = compare_tasks(teacher, student)
    assert got.tasks[0].answers.kl.value > 1e-6 and got.tasks[0].stability is None


def test_progress_counts_every_request_of_every_kind(view, files):
    tasks = open_tasks([str(files / f"{name}.jsonl") for name in FILES], engine="lm-eval")
    seen = []
    answer_tasks(view, tasks, tokenizer=TOKENIZER, window=WINDOW, progress=lambda what, *step: seen.append((what, *step)))
    n_scored, n_written = (
        sum(len(row.get("choices", [0])) for name in ("quiz", "last") for row in FILES[name]),
        len(FILES["line"]),
    )
    assert {what for what, _, _ in seen} == {"lm-eval, model"}
    assert [step[1:] for step in seen if step[1] == step[2]][-1] == (n_written, n_written)
    assert ("lm-eval, model", n_scored, n_scored) in seen and all(0 < done <= total for _, done, total in seen)


def test_the_first_items_are_the_first_of_the_file(view, files):
    for engine in ("built-in", "lm-eval"):
        got = asked(view, files, engine, n_items=2)
        assert [len(one.counted.items) for one in got] == [2, 2, 2]
        assert [one.key for one in got[0].counted.items] == [item.key for item in load_task(files / "quiz.jsonl").items[:2]]


def test_the_python_of_the_page_runs(tmp_path, monkeypatch):
    """On the bundled model: both engines, the teacher and a student without layer 9."""
    page = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text()
    monkeypatch.chdir(tmp_path)
    row = {"ctx": "The sun rose over the", "choices": [" sea", " of and"], "gold": 0}
    (tmp_path / "quiz.jsonl").write_text(json.dumps(row))
    names: dict[str, object] = {}
    found = []
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block.replace('"TEACHER"', repr(str(bundled_model()))).replace("2048", "256"), names)
        found.append(names["found"].tasks[0])
    assert [one.engine for one in found] == ["built-in", "lm-eval"]
    assert found[0].teacher == found[1].teacher and found[0].student == found[1].student
    assert found[0].answers.kl.value == pytest.approx(found[1].answers.kl.value, abs=1e-5) and found[0].answers.kl.value > 0


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
"""


@pytest.fixture
def named(files, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml" / "animals.yaml").write_text(YAML.replace("DATA", str(files / "quiz.jsonl")))
    return tmp_path / "yaml"


def test_a_task_by_name_says_what_its_file_says(view, files, named):
    tasks = open_tasks(["shoal_animals"], include=named)
    assert "shoal_animals by lm-eval" in str(tasks)
    (got,) = answer_tasks(view, tasks, tokenizer=TOKENIZER, window=WINDOW)
    expected = asked(view, files, "built-in")[0]
    assert (got.task, got.metric, got.n_truncated, got.norm) == ("shoal_animals", "acc", expected.n_truncated, None)
    for a, b in zip(got.counted.items, expected.counted.items, strict=True):
        assert (a.gold, a.is_right) == (b.gold, b.is_right) and a.scores == pytest.approx(b.scores, abs=2e-5)


@pytest.mark.slow  # reads the index of all of lm-eval's tasks
def test_unknown_names_and_data_out_of_reach_are_one_clear_line(named):
    with pytest.raises(ValueError, match="lm-eval has no task 'shoal_animal'; did you mean shoal_animals"):
        open_tasks(["shoal_animal"], include=named)
    with pytest.raises(ValueError, match="the data of task 'gsm8k' cannot be loaded"):
        open_tasks(["gsm8k"])


# -- samples ---------------------------------------------------------------------------------------------------------------


def sample(doc_id=0, **fields):
    arguments = [("w1", " w2"), ("w1", " w3")]
    plain = dict(doc_id=doc_id, doc={"q": doc_id}, target=1, arguments=arguments, filter="none", metrics=["acc"], acc=1.0)
    hashes = dict(doc_hash=f"d{doc_id}", prompt_hash="p", target_hash="t")
    return plain | hashes | dict(filtered_resps=[(-2.0, False), (-1.0, False)]) | fields


def read(*rows, output="multiple_choice"):
    return answers_of_samples(rows, name="quiz", file=None, output=output, tokenizer=TOKENIZER, window=WINDOW)


def test_a_task_that_accepts_several_options_has_one_gold_for_every_model():
    """Two golds: a model that takes either is right, and items still match between models."""
    first, second, neither = (
        read(sample(target=[0, 1], filtered_resps=values, arguments=[("w1", f" w{n}") for n in range(3)], acc=acc))
        for values, acc in (
            ([(-1.0, False), (-2.0, False), (-3.0, False)], 1.0),
            ([(-2.0, False), (-1.0, False), (-3.0, False)], 1.0),
            ([(-2.0, False), (-3.0, False), (-1.0, False)], 0.0),
        )
    )
    assert [one.counted.items[0].is_right for one in (first, second, neither)] == [True, True, False]
    assert compare_tasks([first], [second]).tasks[0].student.value == 1.0
    assert compare_tasks([first], [neither]).tasks[0].student.value == 0.0
    as_text = read(sample(target="w3"))
    assert as_text.counted.items[0].gold == 1 and as_text.counted.items[0].is_right
    odd = read(sample(target="odd", filtered_resps=[(-1.0, False), (-2.0, False)], acc=0.0))
    assert not odd.counted.items[0].is_right


def test_of_several_filters_the_first_counts():
    rows = [
        sample(
            n, arguments=[("w1", {"until": []})], filter=name, filtered_resps=["5"], metrics=["exact_match"], exact_match=value
        )
        for name, value in (("strict", 0.0), ("flexible", 1.0))
        for n in (0, 1)
    ]
    got = read(*rows, output="generate_until")
    assert (got.metric, task_figures(got).accuracy.value, len(got.counted.items)) == ("exact_match, strict", 0.0, 2)


@pytest.mark.parametrize(
    ("row", "output", "said"),
    [
        ({"metrics": ["f1"], "f1": 0.5}, "multiple_choice", "no accuracy per item, only f1; needed: acc or exact_match"),
        ({"acc": 0.5}, "multiple_choice", "gives acc 0.5 to an item"),
        ({}, "loglikelihood_rolling", "measures loglikelihood_rolling, not answers"),
        ({"filtered_resps": [(float("nan"), False), (-1.0, False)]}, "multiple_choice", "are not finite"),
    ],
)
def test_what_cannot_be_compared_is_one_clear_line(row, output, said):
    with pytest.raises(ValueError, match=said):
        read(sample(**row), output=output)
    with pytest.raises(ValueError, match="has no items"):
        read()


# -- the verb --------------------------------------------------------------------------------------------------------------


def test_eval_with_either_engine(shoal, files, small):
    common = ("eval", small["model"], "--text", small["text"], "--samples", 4, "--length", 16, "--json")
    tasks = [part for name in FILES for part in ("--task", files / f"{name}.jsonl")]
    found = {}
    for engine in ("built-in", "lm-eval"):
        code, out, err = shoal(*common, *tasks, "--engine", engine, "--items", 5)
        assert code == 0, err
        found[engine] = Measured.from_json(out).tasks
        assert "Tasks, accuracy in %" in err and f"line by {'lm-eval' if engine == 'lm-eval' else 'the built-in scorer'}" in err
    assert [one.accuracy for one in found["built-in"]] == [one.accuracy for one in found["lm-eval"]]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--task", "quiz.jsonl", "--engine", "other"), "unknown --engine 'other'"),
        (("--task", "gsm8k", "--engine", "built-in"), "'gsm8k' is none"),
        (("--task", "nowhere.jsonl", "--engine", "lm-eval"), "no task file at nowhere.jsonl"),
        (("--task", "quiz.jsonl", "--items", "0"), "--items 0 needs at least 1"),
        (("--shots", "2"), "give --task as well"),
        (("--task", "shoal_x", "--include", "nowhere"), "no folder at nowhere"),
        (("--task", "quiz.jsonl", "--task", "quiz.jsonl"), "two tasks have one name"),
        (("--task", "long.jsonl"), "is longer than the model's window of 64"),
        (("--task", "long.jsonl", "--engine", "lm-eval"), "long.jsonl, line 1: an option of 70 tokens is longer than"),
        (("--task", "empty.jsonl", "--engine", "lm-eval"), "has no items"),
    ],
)
def test_what_cannot_be_asked_is_one_line(args, said, shoal, files, small, tmp_path):
    (tmp_path / "quiz.jsonl").write_bytes((files / "quiz.jsonl").read_bytes())
    (tmp_path / "long.jsonl").write_text(json.dumps({"ctx": "w1", "choices": [" " + some(70), " w2"], "gold": 0}))
    (tmp_path / "empty.jsonl").write_text("\n")
    code, out, err = shoal("eval", small["model"], "--text", small["text"], "--samples", 2, "--length", 16, *args)
    assert code == 2 and said in err and out.count("\n") <= 1 and said in err.strip().splitlines()[-1]
