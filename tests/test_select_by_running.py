"""Layers chosen by running the model: from the command to the checkpoint, killed midway, and with wishes that cannot be met."""

import json

import pytest
import torch
from families import VOCAB, tiny_model

from shoal.engine.view import DecoderView
from shoal.measure.removals import RemovalLosses, removal_function
from shoal.measure.value_file import ValueFile
from shoal.run.searching import SEARCH_FILE, VALUES_FOLDER
from shoal.select.request import Evidence, Request
from shoal.select.search.search_record import SearchRecord
from shoal.select.table import SELECTORS
from shoal.words.types import Batch, Unit, model_units

RUNNING = [name for name, one in SELECTORS.items() if "values" in one.reads]
PLAIN = [name for name in RUNNING if not SELECTORS[name].refits]
ALL_UNITS = [name for name in PLAIN if name != "greedy-front"]
"""Those that may take any unit first; the search that leaves the front alone has laws of its own."""
BATCHES = [Batch(torch.randint(3, VOCAB, (3, 12), generator=torch.Generator().manual_seed(0)))]


def options(small, *more):
    return ("--text", small["text"], "--samples", 8, "--length", 16, "--drop", 2, "--repair", "none", *more)


@pytest.mark.parametrize("name", ALL_UNITS)
def test_two_layers_that_do_nothing_are_found_in_a_model(name):
    model = tiny_model("llama")
    with torch.no_grad():
        for layer in (2, 4):
            model.model.layers[layer].self_attn.o_proj.weight.zero_()
            model.model.layers[layer].mlp.down_proj.weight.zero_()
    request = Request(n_layers=6, n=2, selector=name, protected=frozenset())
    v = removal_function(DecoderView(model), BATCHES, model_units(6))
    best = next(SELECTORS[name].propose(Evidence(value=v), request))
    assert best.layers == (2, 4) and best.scores[name] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", [name for name in PLAIN if name != "policy-gradient"])
def test_both_sublayers_of_a_layer_that_does_nothing_are_found_and_go_as_the_layer(name):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[3].self_attn.o_proj.weight.zero_()
        model.model.layers[3].mlp.down_proj.weight.zero_()
    request = Request(n_layers=6, n=2, selector=name, protected=frozenset({0, 5}), units="sublayers")
    v = removal_function(DecoderView(model), BATCHES, request.free_units)
    best = next(SELECTORS[name].propose(Evidence(value=v), request))
    assert best.units == {Unit("layer", 3)} and best.scores[name] == pytest.approx(0.0, abs=1e-12)


def test_selectors_that_run_the_model_say_how_often():
    """So do those that merge, which run what they propose."""
    counted = [name for name, one in SELECTORS.items() if one.n_evaluations is not None]
    assert counted == [name for name, one in SELECTORS.items() if one.reads & {"values", "weights"}] and set(RUNNING) < set(
        counted
    )


@pytest.mark.parametrize("name", ALL_UNITS)
def test_candidates_come_by_rising_loss_and_none_is_refused(name):
    units = model_units(6)
    v = removal_function(DecoderView(tiny_model("llama")), BATCHES, units[1:])
    seen = Evidence(value=v, refuse=lambda structure: "no" if len(structure) == 4 and structure[1].like == 1 else None)
    found = list(SELECTORS[name].propose(seen, Request(n_layers=6, n=2, selector=name, protected=frozenset({0}))))
    losses = [one.scores[name] for one in found]
    assert found and losses == sorted(losses) and all(1 in one.layers and 0 not in one.layers for one in found)
    assert losses == v.values([one.units for one in found])


def test_without_a_model_it_says_what_is_missing():
    with pytest.raises(ValueError, match="--select greedy runs the model on text; it needs both"):
        next(SELECTORS["greedy"].propose(Evidence(), Request(n_layers=6, n=2, selector="greedy")))


def test_compress_by_greedy_search_and_again_from_its_files(small, shoal, tmp_path):
    asked = options(small, "--select", "greedy", "--metric", "js", "--guard", 1)
    code, out, err = shoal("compress", small["model"], "--out", "run", "--json", *asked)
    assert code == 0, err
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert "greedy" in plan["method"] and "; 7 sets run by js on 128 tokens" in plan["method"]
    assert f"search:     run/{SEARCH_FILE}" in err and not (tmp_path / "run" / "scan.json").exists()
    found = SearchRecord.load(tmp_path / "run" / SEARCH_FILE)
    assert (found.selector, found.metric, found.n_units, found.n) == ("greedy", "js", 4, 2)
    assert found.n_evaluations == SELECTORS["greedy"].n_evaluations(4, 2) == 7
    assert found.curve[-1][1] == min(loss for _, loss in found.curve)
    code, _, err = shoal("compress", small["model"], "--out", "run", *asked)
    assert code == 0, err
    code, _, err = shoal("compress", small["model"], "--out", "run", *asked[:-4], "--metric", "ce", "--guard", 1)
    assert code == 2 and "--overwrite" in err


@pytest.mark.parametrize(
    "more, sets",
    [
        (("--select", "greedy"), [4, 3, 3]),
        pytest.param(("--select", "greedy", "--units", "sublayers", "--drop", "2"), [8, 7, 7], marks=pytest.mark.slow),
        (("--select", "greedy-refit"), [4, 3, 3]),
    ],
)
def test_a_search_that_was_killed_goes_on_where_it_was(small, shoal, tmp_path, monkeypatch, more, sets):
    """The second batch of sets is never measured; the next run measures it alone, and ends with the same bytes."""
    asked = options(small, *more, "--guard", 1)
    code, _, err = shoal("plan", small["model"], "--out", "whole", *asked)
    assert code == 0, err
    calls, call = [], RemovalLosses.__call__

    def killed(self, sets):
        calls.append(len(sets))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return call(self, sets)

    monkeypatch.setattr(RemovalLosses, "__call__", killed)
    code, _, _ = shoal("plan", small["model"], "--out", "run", *asked)
    assert code == 130 and not (tmp_path / "run" / "plan.json").exists()
    assert shoal("plan", small["model"], "--out", "run", *asked)[0] == 0
    assert calls == sets
    for name in ("plan.json", SEARCH_FILE):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    ours, theirs = (sorted((tmp_path / run / VALUES_FOLDER).iterdir()) for run in ("run", "whole"))
    assert [one.name for one in ours] == [one.name for one in theirs]
    assert [one.read_bytes() for one in ours] == [one.read_bytes() for one in theirs]


def test_searched_candidates_enter_the_tournament(small, shoal, tmp_path):
    code, _, err = shoal("plan", small["model"], "--out", "run", *options(small, "--select", "greedy", "--guard", 3))
    assert code == 0, err
    candidates = json.loads((tmp_path / "run" / "plan.json").read_text())["candidates"]
    assert len(candidates) == 3 and any("greedy" in one["proposed_by"] for one in candidates)


def test_wishes_that_cannot_be_met_are_one_line_each(small, shoal, tmp_path):
    for more, said in (
        (["--select", "greedy", "--metric", "kk"], "unknown metric 'kk'; did you mean 'kl'"),
        (["--select", "greedy", "--rounds", 2], "--select greedy reads none; leave out --rounds"),
        (
            ["--select", "greedy", "--guard", 1, "--evaluations", 3],
            "3 evaluations end before a set of 2 units is measured; allow at least 5",
        ),
        (
            ["--metric", "js"],
            "--select greedy, greedy-front, beam, greedy-refit, surrogate, one-shot, evolution, policy-gradient",
        ),
        (["--select", "gredy"], "unknown selector 'gredy'; did you mean 'greedy'"),
    ):
        code, _, err = shoal("plan", small["model"], "--out", tmp_path / "run", "--overwrite", *options(small, *more))
        assert code == 2 and said in " ".join(err.split()), err


def test_values_of_other_texts_are_never_taken(tmp_path):
    view, units = DecoderView(tiny_model("llama")), model_units(6)
    off = frozenset({Unit("layer", 2)})
    other = [Batch(BATCHES[0].ids_BT.flip(0)), Batch(BATCHES[0].ids_BT)]
    one, two = (removal_function(view, text, units, folder=tmp_path, about={"m": 1}) for text in (BATCHES, other))
    assert one.values([off]) and two.values([off]) and two.n_measured == 1
    assert len(list(tmp_path.iterdir())) == 2 and ValueFile(tmp_path, {"m": 2}).load() == {}
