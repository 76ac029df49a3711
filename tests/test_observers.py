"""An observer of the scan is one line of one table: recipe, refusals, command, planner, scan and documents find it there."""

import numpy as np
import pytest
import torch

from shoal.engine.view import Tap
from shoal.measure import observers
from shoal.measure.observers import OBSERVERS, NamedObserver, ScanFacts, observers_said
from shoal.measure.scan import Scan
from shoal.recipes.recipe import Recipe
from shoal.recipes.recipe_file import load_recipe
from shoal.run.memory_plan.needs import needs_of
from shoal.words.types import Span, SpanTable


class Toy:
    """Scores every span by how many samples there were, and its length."""

    def __init__(self, n_layers):
        self.n_layers, self.n = n_layers, torch.zeros((), dtype=torch.int64)

    def taps(self, view):
        return [Tap("boundary", 0)]

    def update(self, batch, values):
        self.n += len(values[Tap("boundary", 0)])

    def state(self):
        return {"n": self.n}

    def load_state(self, state):
        self.n = state["n"]

    def tables(self):
        ends = np.arange(self.n_layers + 1.0)
        values = np.where(ends[None] > ends[:, None], int(self.n) + ends[None] - ends[:, None], np.nan)
        return [SpanTable("toy", "rest", values, np.zeros_like(values), "samples", False, int(self.n))]


@pytest.fixture
def toy(monkeypatch):
    entry = NamedObserver("toy", "counts samples", ("toy/rest",), lambda facts: Toy(facts.n_layers), lambda facts: 12345)
    monkeypatch.setitem(observers.OBSERVERS, "toy", entry)


def test_a_toy_observer_is_found_wherever_observers_are_named(toy, small, shoal, tmp_path):
    recipe = load_recipe("default", {"model": small["model"], "observers": ["toy"], "by": "toy/rest"})
    scan = next(stage for stage in needs_of(recipe).stages if stage.stage == "scan")
    assert scan.parts["toy"] == 12345
    assert "toy: counts samples" in observers_said()
    options = ["--text", small["text"], "--samples", 8, "--length", 16]
    code, _, err = shoal("scan", small["model"], "--out", "run", "--observe", "toy", "--by", "toy/rest", *options)
    assert code == 0, err
    table = Scan.load(tmp_path / "run")["toy/rest"]
    assert table[Span(1, 3)] == table.n_samples + 2


def test_what_is_not_in_the_table_is_refused_by_name(small):
    with pytest.raises(ValueError, match="no observer 'kca'; did you mean 'cka'"):
        Recipe(observers=("kca",))
    with pytest.raises(ValueError, match="'cka/rest' is no score; did you mean"):
        load_recipe("default", {"by": "cka/rest"})


def test_rounds_cannot_go_by_what_only_the_scan_observes(toy, small):
    with pytest.raises(ValueError, match="another score than toy/rest"):
        load_recipe("default", {"observers": ["toy"], "by": "toy/rest", "rounds": 2, "select": "lowest"})


@pytest.mark.parametrize("name", OBSERVERS)
def test_an_entry_builds_what_it_says(name):
    entry = OBSERVERS[name]
    facts = ScanFacts(n_layers=3, hidden_size=16, length=20, seed=0)
    assert entry.name == name and entry.about and entry.n_bytes(facts) > 0
    assert tuple(table.name for table in entry.build(facts).tables()) == entry.tables
