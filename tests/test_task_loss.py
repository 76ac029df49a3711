"""v(S) by a task is 1 - the accuracy that the scorer finds without the units."""

import pytest
from families import tiny_model
from test_evaluate_choice import ITEMS, N_WORDS, TOKENIZER, task_of, words
from text_world import word_tokenizer

from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.evaluate.tasks.choice import score_task
from shoal.evaluate.tasks.task_loss import task_function
from shoal.words.types import model_units

UNITS = model_units(4)
SETS = [frozenset(), frozenset({UNITS[1]}), frozenset(UNITS[2:])]


@pytest.fixture(scope="module")
def view():
    return DecoderView(tiny_model("llama", n_layers=4))


@pytest.mark.parametrize("form", ["choice", "last_word"])
def test_values_are_what_the_scorer_finds(view, form, tmp_path):
    items = ITEMS if form == "choice" else tuple((words(n, n + 1), [f" w{n + 2}"], 0) for n in range(8))
    task = task_of(*items, form=form)
    found = score_task(view, task, tokenizer=TOKENIZER, students=[Student(removed=one) for one in SETS])
    right = [sum(item.chosen == item.gold for item in one.counted.items) / len(items) for one in found]
    v = task_function(view, [task], UNITS, tokenizer=TOKENIZER, folder=tmp_path, model_hash="m")
    assert v.values(SETS) == [1 - one for one in right]
    again = task_function(view, [task], UNITS, tokenizer=TOKENIZER, folder=tmp_path, model_hash="m")
    assert again.values(SETS) == v.values(SETS) and again.n_measured == 0


def test_values_are_kept_for_their_tokenizer_and_for_every_file(view, tmp_path):
    first, second, changed = task_of(*ITEMS), task_of(*ITEMS[:2]), task_of(*ITEMS[1:])  # All three have one name.

    def n_measured(tasks, tokenizer=TOKENIZER):
        v = task_function(view, tasks, UNITS, tokenizer=tokenizer, folder=tmp_path, model_hash="m")
        v.values(SETS)
        return v.n_measured

    assert n_measured([first, second]) == len(SETS)
    assert n_measured([second, first]) == 0
    assert n_measured([changed, second]) == len(SETS)
    assert n_measured([first, second], word_tokenizer(N_WORDS, start=())) == len(SETS)


def test_tasks_count_alike_whatever_their_items(view):
    several = [task_of(*ITEMS), task_of(*ITEMS[:2])]
    alone = [task_function(view, [task], UNITS, tokenizer=TOKENIZER).values(SETS) for task in several]
    together = task_function(view, several, UNITS, tokenizer=TOKENIZER).values(SETS)
    assert together == pytest.approx([(one + other) / 2 for one, other in zip(*alone, strict=True)])


def test_written_answers_and_nameless_models_are_refused(view, tmp_path):
    with pytest.raises(ValueError, match="written answers"):
        task_function(view, [task_of((words(1), [""], 0), form="generation")], UNITS, tokenizer=TOKENIZER)
    with pytest.raises(ValueError, match="model_hash"):
        task_function(view, [task_of(*ITEMS)], UNITS, tokenizer=TOKENIZER, folder=tmp_path)
    with pytest.raises(ValueError, match="no task"):
        task_function(view, [], UNITS, tokenizer=TOKENIZER)
