"""Laws of benchmarks: the teacher keeps all of itself, chance is flagged, averages are of the tasks that count; the verbs."""

import json
import math
import random
import sys

import numpy as np
import pytest
from families import tiny_model
from test_evaluate_choice import TOKENIZER, task_of, words
from test_evaluate_stability import FEW, opencompass, random_pair, sample_log
from world import N_WORDS, write_model, write_text

from shoal.engine.student import TEACHER, Student
from shoal.engine.view import DecoderView
from shoal.evaluate.evaluation import Evaluation, Measured
from shoal.evaluate.perplexity import Perplexity
from shoal.evaluate.tasks.benchmark import compare_tasks
from shoal.evaluate.tasks.choice import PairScore, answers_of_scores, score_task
from shoal.evaluate.tasks.disagreement import disagreement, kept_shares
from shoal.show.task_tables import accuracy, flips, task_notes
from shoal.words.types import Unit


def made(name, right, *, n_choices=2, form="choice"):
    """Scores of a task with the given items right: the log-likelihood of gold (0) is -1, of the others -2, or swapped."""
    choices = [f" w{k}" for k in range(n_choices)] if form == "choice" else [" w0"]
    task = task_of(*((words(1, n % N_WORDS), choices, 0) for n in range(len(right))), form=form, path=f"{name}.jsonl")
    scores = []
    for yes in right:
        own = [(-1.0 if (k == 0) is bool(yes) else -2.0) for k in range(len(choices))]
        scores.append([PairScore(x, -x / 3, bool(yes)) for x in own])
    return answers_of_scores(task, scores)


def shown(renderable):
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_the_teacher_against_itself_keeps_everything():
    view = DecoderView(tiny_model("llama", n_layers=3))
    draw = random.Random(0)
    rows = [(words(*(draw.randrange(40) for _ in range(5))), [" w1 w2", " w3", " w4"], draw.randrange(3)) for _ in range(12)]
    tasks = [task_of(*rows), task_of((words(1, 2), [" w3"], 0), form="last_word", path="last.jsonl")]
    scores = [score_task(view, task, tokenizer=TOKENIZER, students=[TEACHER, Student()]) for task in tasks]
    got = compare_tasks([a for a, _ in scores], [b for _, b in scores], **FEW)
    for one in got.tasks:
        assert one.teacher == one.student and one.teacher_norm == one.student_norm
        for figures in filter(None, (one.answers, one.stability)):
            assert (figures.stability.value, figures.stability.low) == (1.0, 1.0)
            assert figures.right_to_wrong == figures.wrong_to_right == ()
            assert figures.kl is None or figures.kl.value == figures.kl.high == 0.0
    assert got.tasks[0].stability.variant == "mean_nll" and got.tasks[1].stability is None
    if got.tasks[0].retained is not None:
        assert (got.tasks[0].retained.value, got.tasks[0].retained.low, got.tasks[0].retained.high) == (1.0, 1.0, 1.0)


def test_a_teacher_at_chance_is_flagged_and_left_out():
    """40 of 80 of two options is chance, 70 of 80 is not; the average is over the second alone."""
    even, good = [1, 0] * 40, [1] * 70 + [0] * 10
    less = [1] * 49 + [0] * 31
    got = compare_tasks([made("even", even), made("good", good)], [made("even", less), made("good", less)])
    assert [one.at_chance for one in got.tasks] == [True, False] and got.counted == ("good",)
    assert (got.teacher_average, got.student_average) == (70 / 80, 49 / 80)
    assert got.retained.value == got.tasks[1].retained.value == pytest.approx(0.7)
    assert got.retained.low == got.tasks[1].retained.low < 0.7 < got.retained.high
    table = shown(accuracy(got))
    assert "even *" in table and "good *" not in table and "average of 1" in table
    assert any("even: the teacher is at chance (50.0 %)" in note for note in task_notes(got))


def test_the_average_is_of_accuracies_and_its_interval_is_paired():
    good, best = [1] * 60 + [0] * 20, [1] * 40
    got = compare_tasks([made("a", good), made("b", best)], [made("a", good), made("b", best)])
    assert (got.teacher_average, got.retained.value) == (pytest.approx((0.75 + 1) / 2), 1.0)
    # The items and draws are the same, so there is no spread, although 60 of 80 has one.
    assert (got.retained.low, got.retained.high) == (1.0, 1.0)
    assert got.tasks[0].teacher.low < 0.75


def test_the_interval_of_what_is_retained_covers_the_truth_as_often_as_it_says():
    """Studies of 60 paired items: 70 % right for the teacher, of which the student loses 20 % and wins 10 % of the others."""
    truth = (0.7 * 0.8 + 0.3 * 0.1) / 0.7
    draw = np.random.default_rng(5)
    covered = 0
    for study in range(100):
        teacher = draw.random(60) < 0.7
        student = np.where(teacher, draw.random(60) < 0.8, draw.random(60) < 0.1)
        found = compare_tasks([made("a", teacher)], [made("a", student)], n_resamples=200, seed=study).tasks[0].retained
        covered += found.low <= truth <= found.high
    assert 0.88 <= covered / 100  # One standard error is 2.2 %, and so few items cost a little.


def test_kinds_of_tasks_stand_apart_above_chance():
    """Choices keep (0.6 - 0.5) / (0.9 - 0.5) of what guessing does not give, last words 3 of 4; the warning says so."""
    teacher = [made("quiz", [1] * 90 + [0] * 10), made("last", [1] * 80 + [0] * 20, form="last_word")]
    student = [made("quiz", [1] * 60 + [0] * 40), made("last", [1] * 60 + [0] * 40, form="last_word")]
    got = compare_tasks(teacher, student)
    assert [(kind.form, kind.tasks) for kind in got.kinds] == [("choice", ("quiz",)), ("last_word", ("last",))]
    assert [kind.share.value for kind in got.kinds] == pytest.approx([1 / 4, 3 / 4])
    assert all(kind.share.low < kind.share.value < kind.share.high for kind in got.kinds)
    same = compare_tasks(teacher, teacher)
    assert all((kind.share.low, kind.share.high) == (1.0, 1.0) for kind in same.kinds)


def test_a_warning_when_the_measures_disagree():
    def said(tasks, rise):
        nll = (3.0, 3.0 + rise)
        texts = [Perplexity(value=math.exp(x), nll=x, n_tokens=9, window=4, stride=2) for x in nll]
        return kept_shares(tasks, teacher=texts[0], student=texts[1])

    teacher = [made("quiz", [1] * 90 + [0] * 10), made("last", [1] * 80 + [0] * 20, form="last_word")]
    lost = [teacher[0], made("last", [1] * 20 + [0] * 60 + [1] * 20, form="last_word")]
    same, worse = compare_tasks(teacher, teacher), compare_tasks(teacher, lost)
    assert disagreement(said(same, 0.0)) is None
    assert disagreement(said(same, -1.0)) is None  # A better student keeps everything.
    assert disagreement(said(same, 0.05)) is None  # 5 %: apart, but not worth a warning
    assert "multiple choice 100 %, last words 100 %, perplexity 37 %" in disagreement(said(same, 1.0))
    warning = disagreement(said(worse, 0.0))
    assert "last words 50 % (" in warning and "\n" not in warning
    assert disagreement(said(None, 1.0)) is None  # One measure alone disagrees with nothing.
    shares = said(worse, 0.5)
    assert shares["perplexity"].value == pytest.approx(math.exp(-0.5)) and shares["last words"].value == pytest.approx(0.5)
    assert set(kept_shares(worse)) == {"multiple choice", "last words"}


def test_no_task_above_chance_has_no_average():
    got = compare_tasks([made("a", [0] * 10, form="last_word")], [made("a", [0] * 10, form="last_word")], **FEW)
    assert got.counted == () and got.retained is None and got.tasks[0].retained is None and got.tasks[0].at_chance
    assert got.tasks[0].teacher_perplexity == pytest.approx(2.718281828**2)
    assert "average" not in shown(accuracy(got)) and task_notes(got)[0].startswith("No average: the teacher is at chance")


def test_flips_are_listed_with_their_scores_and_are_not_markup():
    got = compare_tasks([made("a", [1, 1, 0])], [made("a", [1, 0, 0])], **FEW)
    lost = got.tasks[0].answers.right_to_wrong
    assert [(f.teacher, f.student, f.teacher_scores, f.student_scores) for f in lost] == [(0, 1, (1.0, 2.0), (2.0, 1.0))]
    table = shown(flips([got.tasks[0].answers]))
    assert "[1.000]  2.000" in table and "[2.000]  1.000" in table and "right → wrong" in table


def test_other_tasks_and_two_of_one_name_are_refused():
    with pytest.raises(ValueError, match="the teacher's tasks are a, the student's b"):
        compare_tasks([made("a", [1])], [made("b", [1])])
    with pytest.raises(ValueError, match="two tasks have one name"):
        compare_tasks([made("a", [1])] * 2, [made("a", [1])] * 2)
    with pytest.raises(ValueError, match="2 items of the teacher, 1 of the student"):
        compare_tasks([made("a", [1, 1])], [made("a", [1])])


# -- the verbs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_model(folder / "model", n_layers=4)
    write_model(folder / "other", n_layers=3, seed=1)
    write_text(folder / "text.jsonl")
    draw = random.Random(1)

    def some(n):
        return words(*(draw.randrange(N_WORDS) for _ in range(n)))

    rows = [{"ctx": some(6), "choices": [f" {some(2)}", f" {some(1)}"], "gold": draw.randrange(2)} for _ in range(10)]
    rows.append({"ctx": some(100), "choices": [" w1", " w2"], "gold": 0})
    (folder / "quiz.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "last.jsonl").write_text("\n".join(json.dumps({"ctx": some(5), "target": f" {some(1)}"}) for _ in range(4)))
    return folder


def test_eval_adds_the_tasks(world, shoal):
    common = ("--text", world / "text.jsonl", "--samples", 4, "--length", 16)
    tasks = ("--task", world / "quiz.jsonl", "--task", world / "last.jsonl")
    code, out, err = shoal("eval", world / "other", "--teacher", world / "model", *common, *tasks, "--json")
    assert code == 0, err
    found = Evaluation.from_json(out).tasks
    assert [(one.facts.task, one.facts.form, one.facts.n_items, one.facts.n_truncated) for one in found.tasks] == [
        ("quiz", "choice", 11, 1),
        ("last", "last_word", 4, 0),
    ]
    assert "Tasks, accuracy" in err and "1 of 11 contexts cut" in err
    assert 0 < found.tasks[0].answers.kl.value < 10
    code, out, _ = shoal("eval", world / "model", "--teacher", world / "model", *common, *tasks, "--json")
    whole = Evaluation.from_json(out)
    assert (whole.quality.kl, whole.quality.agreement, whole.by_position.acceptance) == (0.0, 1.0, 1.0)
    itself = whole.tasks
    assert code == 0 and all(one.answers.stability.low == 1.0 and one.teacher == one.student for one in itself.tasks)
    assert all(one.answers.right_to_wrong == one.answers.wrong_to_right == () for one in itself.tasks)
    assert itself.tasks[0].stability.kl.value == itself.tasks[0].answers.kl.high == 0.0


def test_the_result_is_json_for_any_reader(world, shoal, tmp_path):
    """One sample has no standard error: JSON knows no NaN, and the file reads back as it was."""
    common = ("--text", world / "text.jsonl", "--samples", 1, "--length", 16)
    code, out, err = shoal("eval", world / "other", "--teacher", world / "model", *common, "--json")
    assert code == 0, err

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    content = json.loads(out, parse_constant=refuse)
    found = Evaluation.from_json(out)
    assert content["quality"]["kl_stderr"] == "NaN" and math.isnan(found.quality.kl_stderr)
    found.save(tmp_path / "again.json")
    json.loads((tmp_path / "again.json").read_text(), parse_constant=refuse)


def test_eval_without_a_teacher_has_the_tasks_too(world, shoal):
    tasks = ("--task", world / "quiz.jsonl", "--task", world / "last.jsonl")
    code, out, err = shoal(
        "eval", world / "other", "--text", world / "text.jsonl", "--samples", 4, "--length", 16, *tasks, "--json"
    )
    found = Measured.from_json(out)
    assert code == 0 and "Tasks: quiz, last by the built-in scorer" in err
    assert [(one.facts.task, one.facts.n_items, one.facts.n_truncated) for one in found.tasks] == [
        ("quiz", 11, 1),
        ("last", 4, 0),
    ]
    assert found.tasks[0].accuracy_norm is not None and found.tasks[1].word_perplexity > 1


def test_tasks_that_cannot_be_are_one_line(world, shoal, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"ctx": "a", "choices": ["b", "c"]}')
    for args, message in (
        (("--teacher", world / "model", "--task", "nowhere.jsonl"), "no task file at nowhere.jsonl"),
        (("--teacher", world / "model", "--task", "bad.jsonl"), "bad.jsonl, line 1: the field 'gold' is missing"),
    ):
        code, out, err = shoal("eval", world / "other", "--text", world / "text.jsonl", *args)
        assert code == 2 and out == "" and message in err and len(err.strip().splitlines()) == 1


def test_an_item_that_cannot_be_scored_is_said_before_anything_is_read(world, shoal, tmp_path, monkeypatch):
    def read(*args, **kwargs):
        raise AssertionError("a model was asked")

    monkeypatch.setattr("shoal.evaluate.tasks.choice.run_pass", read)
    monkeypatch.setattr("shoal.run.measuring.against_teacher", read)
    long = {"ctx": "w1", "choices": [words(*[1] * 200), " w2"], "gold": 0}
    (tmp_path / "long.jsonl").write_text(json.dumps(long))
    tasks = ("--task", world / "quiz.jsonl", "--task", "long.jsonl")
    for more in ((), ("--teacher", world / "model")):
        code, _, err = shoal("eval", world / "other", "--text", world / "text.jsonl", *more, *tasks)
        assert code == 2 and "long.jsonl, line 1: an option of 199 tokens is longer than the model's window" in err, err


def test_stability_of_folders(shoal, tmp_path):
    pair = random_pair(12)
    for who, answers in zip("ts", pair, strict=True):
        opencompass(tmp_path / f"oc-{who}", answers)
        sample_log(tmp_path / f"lm-{who}", answers)
    code, out, err = shoal("stability", "oc-t", "oc-s", "--json")
    found = json.loads(out)
    assert code == 0 and found["tasks"][0]["variant"] == "mean_nll" and 0 < found["official_script"]["quiz"] < 1 + 1e-9
    assert "official" in err
    code, out, err = shoal("stability", "lm-t", "lm-s")
    assert code == 0 and "option_nll" in out and "official" not in out
    code, out, err = shoal("stability", "oc-t", "lm-s")
    assert code == 2 and "the teacher's scores are mean_nll, the student's option_nll" in err
    code, out, err = shoal("stability", "oc-t", "nowhere")
    assert code == 2 and "no folder at nowhere" in err


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", '{"architectures": []}', "shoal compare TEACHER STUDENT --task"),
        ("quiz.json", "{}", "has no items"),
        ("quiz.json", '{"0": {"label: A": {"PPL": 1.0}, "prediction": "A"}}', "item '0': 'gold' is missing"),
        ("quiz.json", '{"0": {"label: A": {"PPL": NaN}, "prediction": "A", "gold": "A"}}', "are not finite"),
        ("quiz.json", '{"0": {"label: A": {"PPL": 1.0}, "prediction": "A", "gold": "A"}}', "only with the teacher"),
        ("quiz.json", '{"0": {"label: A": {"ppl": 1.0}, "prediction": "A", "gold": "A"}}', "has no number 'PPL'"),
        ("other.json", '{"0": {"label: A": {"PPL": 1.0}, "prediction": "A", "gold": "A"}}', "both need the same"),
        ("samples_quiz.jsonl", "\n", "has no samples"),
    ],
)
def test_answers_that_cannot_be_compared_are_one_line(name, content, said, shoal, tmp_path):
    opencompass(tmp_path / "teacher", random_pair(5)[0])
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / name).write_text(content)
    code, out, err = shoal("stability", "teacher", "student")
    assert code == 2 and out == "" and said in err and len(err.strip().splitlines()) == 1


def test_a_missing_extra_says_what_to_install(world, shoal, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, _, err = shoal("eval", world / "model", "--text", world / "text.jsonl", "--task", "arc_easy")
    assert code == 2 and err.strip().splitlines()[-1] == "shoal: error: lm-eval is not installed: pip install 'shoal[eval]'"


def test_a_removed_layer_changes_the_answers_of_a_deep_enough_task():
    """The measure sees something: without a layer that matters, some log-likelihoods move and KL is above 0."""
    view = DecoderView(tiny_model("llama", n_layers=3))
    task = task_of(*((words(1, n), [" w2", " w3"], 0) for n in range(6)))
    a, b = score_task(view, task, tokenizer=TOKENIZER, students=[TEACHER, Student(frozenset({Unit("layer", 1)}))])
    assert compare_tasks([a], [b], **FEW).tasks[0].answers.kl.value > 1e-6
