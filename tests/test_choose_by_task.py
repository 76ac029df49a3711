"""A choice by answers to tasks, from the command to the plan: the windowed estimator on accuracy (2409.14381), and searches."""

import json
import random

import pytest
from test_unread_options import one_line
from world import N_WORDS, write_model, write_text

from shoal import compress
from shoal.edits.plan import Plan
from shoal.engine.open import open_model
from shoal.engine.view import DecoderView
from shoal.evaluate.tasks.task_files import load_task
from shoal.evaluate.tasks.task_loss import task_function
from shoal.measure.windowed import windowed_growth
from shoal.words.types import Unit, model_units

N_LAYERS = 4
TEXT = ("--samples", 8, "--length", 16, "--no-speed")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, a text, and two tasks of choices."""
    folder = tmp_path_factory.mktemp("tasks")
    write_model(folder / "model", n_layers=N_LAYERS)
    write_text(folder / "text.jsonl")
    draw = random.Random(0)

    def word():
        return f"w{draw.randrange(N_WORDS)}"

    for name in ("first", "second"):
        items = [
            {"ctx": " ".join(word() for _ in range(5)), "choices": [f" {word()}" for _ in range(3)], "gold": draw.randrange(3)}
            for _ in range(20)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / "again").mkdir()
    (folder / "again" / "first.jsonl").write_text((folder / "second.jsonl").read_text())
    (folder / "written.jsonl").write_text(json.dumps({"ctx": "w1 w2", "answer": "w3"}) + "\n")
    return folder


def accuracies(place, units, n_items=None):
    """The function that the command is to ask, made by hand."""
    opened = open_model(str(place / "model"))
    tasks = [load_task(place / f"{name}.jsonl") for name in ("first", "second")]
    tasks = [task if n_items is None else task.head(n_items) for task in tasks]
    return task_function(DecoderView(opened.model), tasks, units, tokenizer=opened.tokenizer, window=64)


@pytest.mark.parametrize("units", ["layers", "sublayers"])
def test_the_windowed_estimator_on_accuracy_chooses_by_the_command(units, place, shoal, tmp_path):
    n = {"layers": 1, "sublayers": 2}[units]
    code, _, err = shoal(
        "compress", place / "model", "--select", "lowest", "--by", "windowed_task", "--units", units, "--drop", n,
        "--task", place / "first.jsonl", "--task", place / "second.jsonl", "--items", 12,
        "--protect", "none", "--guard", 1, "--repair", "none", "--text", place / "text.jsonl", "--out", "run", *TEXT,
    )  # fmt: skip
    assert code == 0, err
    every = model_units(N_LAYERS) if units == "layers" else tuple(Unit(k, i) for i in range(N_LAYERS) for k in ("attn", "mlp"))
    expected = windowed_growth(accuracies(place, every, 12))
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["values"] == pytest.approx(
        {str(unit): value for unit, value in zip(expected.units, expected.values, strict=True)}
    )
    assert (scores["by"], scores["n_tokens"]) == ("windowed_task", 0)
    assert scores["data"] == "12 items of first, 12 items of second"
    gone = Plan.load(tmp_path / "run" / "plan.json").removed_units
    assert len(gone) == n
    assert max(scores["values"][str(unit)] for unit in gone) <= min(
        value for unit, value in scores["values"].items() if unit not in {str(one) for one in gone}
    )
    assert "12 items of first" in (tmp_path / "run" / "report.html").read_text()


def test_a_search_by_accuracy_finds_the_best_set_of_its_round(place, tmp_path):
    """Greedy: the first layer that goes is the one without which most items are answered rightly; nothing is asked twice."""
    search = {"metric": "task", "tasks": [str(place / "first.jsonl"), str(place / "second.jsonl")]}
    text = {"sources": [str(place / "text.jsonl")], "samples": 8, "length": 16, "selection": 4, "evaluation": 4}
    found = compress(
        "sleb", tmp_path / "run", model=str(place / "model"), drop="1", text=text, search=search, protect=[], speed=False
    )
    function = accuracies(place, model_units(N_LAYERS))
    alone = [frozenset({unit}) for unit in function.units]
    losses = dict(zip(alone, function.values(alone), strict=True))
    assert losses[found.plan.removed_units] == min(losses.values())
    record = json.loads((tmp_path / "run" / "search.json").read_text())
    assert record["metric"] == "task" and record["data"] == "20 items of first, 20 items of second"
    assert "by task on 20 items of first" in found.plan.method


WRONG = [
    ("--select lowest --by windowed_task", "give --task FILE"),
    ("--select greedy --metric task", "give --task FILE"),
    ("--select greedy --metric kl --task first.jsonl", "--metric task"),
    ("--task first.jsonl", "--metric task"),
    ("--select greedy-refit --metric task --task first.jsonl", "choose another --metric than task"),
    ("--select laco --metric task --task first.jsonl", "choose another --metric than task"),
    ("--select greedy --metric task --task written.jsonl", "written answers"),
    ("--select greedy --metric task --task nowhere.jsonl", "nowhere.jsonl"),
    ("--select greedy --metric task --task first.jsonl --task again/first.jsonl", "two tasks have one name"),
    ("--select greedy --metric kl --items 3", "name their files"),
    ("--select greedy --metric task --task first.jsonl --items 0", "items"),
    ("--select span --by windowed_task --task first.jsonl", "use --select lowest"),
    ("--select laco --evaluations 9", "--evaluations is for selectors"),
]


@pytest.mark.parametrize(("line", "said"), WRONG, ids=[line for line, _ in WRONG])
def test_a_choice_by_tasks_that_cannot_be_is_one_line(line, said, place, shoal, tmp_path):
    args = [place / word if word.endswith(".jsonl") else word for word in line.split()]
    options = ("--drop", 1, "--guard", 1, "--repair", "none", "--text", place / "text.jsonl", "--out", "run", *TEXT)
    code, _, err = shoal("compress", place / "model", *args, *options)
    one_line(code, err, said)
    assert not (tmp_path / "run" / "plan.json").exists()
