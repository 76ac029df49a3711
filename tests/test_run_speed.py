"""Speed in a run: at most its share of the time, nothing where it is left out, and said where it does not fit."""

import json

import pytest

import shoal.run.measuring as measuring
from shoal import compress, load_recipe
from shoal.evaluate.evaluation import Evaluation

LENGTH = 16


@pytest.fixture
def options(small):
    few = f"--samples 8 --length {LENGTH} --drop 2 --guard 1 --repair none --heal none"
    return ("--text", small["text"], *few.split())


def test_no_speed_measures_none_and_the_rest_as_before(shoal, small, tmp_path, options):
    code, _, err = shoal("compress", small["model"], "--out", tmp_path / "a", *options, "--no-speed")
    assert code == 0 and "measure speed" not in err, err
    without = Evaluation.load(tmp_path / "a" / "evaluation.json")
    assert without.speed is None and without.generations
    code, _, err = shoal("compress", small["model"], "--out", tmp_path / "b", *options)
    assert code == 0, err
    found = Evaluation.load(tmp_path / "b" / "evaluation.json")
    assert found.speed is not None and found.model_copy(update={"speed": None}) == without
    # The same folder asked for speed afterwards measures it: the evaluation that stands has none.
    code, _, err = shoal("compress", small["model"], "--out", tmp_path / "a", *options, "--overwrite")
    assert code == 0 and Evaluation.load(tmp_path / "a" / "evaluation.json").speed is not None, err


def test_no_speed_of_eval(shoal, small):
    text = ("--text", small["text"], "--samples", 4, "--length", LENGTH, "--no-speed", "--json")
    code, out, _ = shoal("eval", small["model"], "--teacher", small["model"], *text)
    assert code == 0 and json.loads(out)["speed"] is None
    code, _, err = shoal("eval", small["model"], *text)
    assert code == 2 and "one model alone is not timed" in err


def test_a_machine_too_slow_for_its_share_leaves_it_out_and_says_so(small, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(measuring, "LEAST_SPEED_SECONDS", 0.0)
    text = {"sources": [small["text"]], "samples": 8, "length": LENGTH, "evaluation": 4}
    recipe = load_recipe(
        "default", {"model": small["model"], "drop": "2", "guard": 1, "repair": "none", "heal": None, "text": text}
    )
    monkeypatch.setattr("shoal.run.measuring.rounds_within", lambda seconds, *args, **workload: 0)
    outcome = compress(recipe, tmp_path / "run", progress=lambda what, done, total: said.append(what))
    assert outcome.evaluation.speed is None
    assert any(what.endswith("speed is left out: it takes more than 10% of the run") for what in said)


def test_the_share_is_of_the_time_so_far(small, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("shoal.run.measuring.rounds_within", lambda seconds, *args, **workload: seen.append(seconds) or 1)
    monkeypatch.setattr(measuring, "LEAST_SPEED_SECONDS", 0.0)
    monkeypatch.setattr(measuring.time, "monotonic", lambda: 1e9)
    text = {"sources": [small["text"]], "samples": 8, "length": LENGTH, "evaluation": 4}
    recipe = load_recipe("default", {"model": small["model"], "text": text})
    inputs = measuring.open_inputs(recipe)
    object.__setattr__(inputs, "opened_at", 1e9 - 900.0)
    measuring._timed(inputs, inputs.view, 4)
    assert seen == [pytest.approx(100.0)], "a tenth of 900 + 100 seconds"
