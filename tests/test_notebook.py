"""Shoal in a notebook: one call by name, a result that prints in a few lines, progress that is seen."""

import builtins

import pytest

from shoal import compress, load_recipe

TEXT = {"samples": 8, "length": 16, "selection": 8, "evaluation": 4}


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
    changed = compress(load_recipe("default", options(small)), tmp_path / "c", drop="1")
    assert changed.plan.after.layers == 5


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
