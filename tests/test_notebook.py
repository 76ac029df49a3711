"""Shoal in a notebook: one call by name, a result that prints in a few lines, progress that is seen."""

import builtins
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from shoal import compare_models, compress, heal, load_recipe, open_model
from shoal.measure.scan import Scan
from shoal.run.healing.heal_checkpoint import refuse_inside
from shoal.run.healing.requested import request_of
from shoal.words.progress import LogLines
from shoal.words.refusal import in_one_line
from shoal.words.types import Span

TEXT = {"samples": 8, "length": 16, "selection": 8, "evaluation": 4}


class Page:
    """IPython's printer, as far as a value that knows its own text needs it."""

    def text(self, said):
        self.said = said


def shown(value):
    page = Page()
    value._repr_pretty_(page, False)
    return page.said


def options(small):
    text = {"sources": [small["text"]], **TEXT}
    return {"model": small["model"], "drop": "2", "guard": 1, "repair": "none", "speed": False, "text": text}


def test_a_recipe_by_its_name_and_a_result_that_is_short(small, tmp_path, capsys):
    outcome = compress("default", tmp_path / "a", **options(small))
    said = repr(outcome)
    assert len(said) < 1000 and "6 -> 4 layers" in said and "KL" in said and str(outcome.model) in said
    assert capsys.readouterr().out == "", "a program is not talked to"
    again = compress(load_recipe("default", options(small)), tmp_path / "b")
    assert again.evaluation == outcome.evaluation
    assert shown(outcome.plan) in said and shown(outcome.evaluation) in said
    both = shown(compare_models([small["model"], str(tmp_path / "b")], recipe=load_recipe("default", options(small))))
    assert both.count("\n") == 2 and "4 layers" in both and f"KL {outcome.evaluation.quality.kl:.4g}" in both
    changed = compress(load_recipe("default", options(small)), tmp_path / "c", drop="1")
    assert changed.plan.after.layers == 5


def test_a_healing_by_its_name_and_a_result_that_is_short(cut, tmp_path, capsys):
    text = {"sources": [cut["text"]], "length": 16}
    healed = heal(cut["run"], tmp_path / "healed", teacher=cut["teacher"], text=text, tokens=128, batch=4, speed=False)
    said = repr(healed)
    assert len(said) < 1000 and str(healed.training) in said and str(healed.model) in said and f"{healed.repaired:.0%}" in said
    assert capsys.readouterr().out == "", "a program is not talked to"
    asked = json.loads((tmp_path / "healed" / "heal.request.json").read_text())
    assert asked["plan"] == str(cut["run"] / "plan.json") and asked["heal"]["tokens"] == 128 and not asked["speed"]


def test_a_home_in_a_name_is_the_folder_it_stands_for(cut, monkeypatch):
    """No shell expands it here."""
    monkeypatch.setenv("HOME", str(cut["run"].parent))
    run, model = f"~/{cut['run'].name}", str(cut["run"] / "model")
    wanted = str(cut["run"] / "plan.json")
    for student, plan in ((run, None), (f"{run}/model", None), (model, f"{run}/plan.json")):
        assert request_of(student, None, {}, plan=plan).plan == wanted
    for out, student in ((run, model), (model, f"{run}/model")):
        with pytest.raises(ValueError, match="overlap"):
            refuse_inside(Path(out), student)


def test_what_is_wrong_is_said_before_anything_is_opened(small, tmp_path):
    for recipe, changes, message in (
        ("defualt", {}, "no recipe 'defualt'.*'default'"),
        ("default", {}, "no model given"),
        ("default", {"modle": "x"}, "unknown key 'modle'.*'model'"),
        (load_recipe("default", options(small)), {"dorp": "2"}, "unknown key 'dorp'.*'drop'"),
    ):
        with pytest.raises(ValueError, match=message):
            compress(recipe, tmp_path / "run", **changes)


def test_in_a_notebook_lines_are_printed(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(builtins, "__IPYTHON__", True, raising=False)
    compress("default", tmp_path / "run", **options(small))
    lines = capsys.readouterr().out.splitlines()
    assert any(", scan" in line for line in lines) and any(", evaluate" in line for line in lines)


def test_the_doors_are_listed_and_a_wrong_one_names_them():
    import shoal

    assert set(shoal.__all__) <= set(dir(shoal)) and all(f"{name}(" in shoal.__doc__ for name in shoal.__all__)
    with pytest.raises(AttributeError, match="no attribute 'scan'.*compress.*shoal --help"):
        _ = shoal.scan


def test_what_belongs_to_the_opening_is_shown_its_place():
    with pytest.raises(ValueError, match=r"unknown key 'device'; .*--device.*opening=Opening\(device=") as told:
        load_recipe("default", {"device": "cuda"})
    assert "known:" not in str(told.value)


def test_a_recipe_at_the_end_of_a_cell_is_its_file():
    recipe = load_recipe("uidl")
    assert shown(recipe) == recipe.to_yaml() and shown(recipe.text) == repr(recipe.text)


def test_one_text_needs_no_list(small):
    text = {"sources": small["text"], "samples": 8}
    assert load_recipe("default", {"text": text}).text.sources == (small["text"],)


def test_tables_of_a_scan_are_short_on_the_screen_and_take_the_number_of_a_layer(small, tmp_path):
    outcome = compress("default", tmp_path / "a", **options(small))
    table = outcome.scan["angular/last"]
    assert list(table) == [table[Span(layer, layer + 1)] for layer in range(6)] and table[-1] == table[5]
    for wrong in (6, -7, Span(0, 7)):
        with pytest.raises(IndexError, match="6 layers"):
            _ = table[wrong]
    said = repr(outcome.scan)
    assert len(said) < 2000 and "angular/last" in said and str(outcome.scan.provenance.text_said) in said
    assert len(repr(table)) < 1000 and "angular/last" in repr(table) and f"{table[0]:.4g}" in repr(table)
    with pytest.raises(
        ValueError, match=r"'angular' of which tokens\? angular/every, angular/last, angular/rest, angular/sink"
    ):
        _ = outcome.scan["angular"]


def test_what_is_refused_is_one_line_and_a_fault_keeps_its_frames(small, tmp_path):
    """IPython formats fifty lines of frames of an error that is not asked how it is to be shown."""
    for refused in (
        lambda: compress("defualt", tmp_path / "run", model=small["model"]),
        lambda: compress("default", tmp_path / "run", **{**options(small), "drop": "40"}),
        lambda: load_recipe("default", {"modle": "x"}),
        lambda: open_model(tmp_path / "nowhere"),
        lambda: compare_models("one"),
        lambda: heal(tmp_path / "nowhere", tmp_path / "run"),
        lambda: heal(small["model"], tmp_path / "run", teacher=small["model"], rnak=4),
        lambda: heal(small["model"], tmp_path / "run", teacher="none", teacher_cache=8),
        lambda: Scan.load(tmp_path),
    ):
        with pytest.raises(ValueError) as told:
            refused()
        (line,) = told.value._render_traceback_()
        assert line == f"ValueError: {told.value}" and told.value.__traceback__.tb_next is not None
    with pytest.raises(ValueError) as told:
        in_one_line(json.loads)("{")
    assert not hasattr(told.value, "_render_traceback_"), "an error of a library is a fault, and its frames are needed"


def test_an_interrupted_cell_says_how_the_run_goes_on(small, tmp_path):
    def stop(what, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as told:
        compress("default", tmp_path / "run", progress=stop, **options(small))
    (line,) = told.value._render_traceback_()
    assert "from its last finished stage" in line


def test_lines_stay_on_the_stream_they_began_on(capsys):
    lines = LogLines()
    with redirect_stdout(sys.stderr):  # as while a model is opened
        lines("scan", 0, 2)
    captured = capsys.readouterr()
    assert "scan" in captured.out and captured.err == ""
