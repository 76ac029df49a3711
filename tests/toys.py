"""A toy entry of each of nine tables, for tests that add them: ``TABLE[NAMES[kind]] = entry``."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from test_fit_replacements import ShiftReplacement

from shoal.edits.base import BaseEdit, Fate, Index
from shoal.edits.drop import Drop
from shoal.edits.plan import Candidate
from shoal.edits.replace.table import REPLACEMENTS
from shoal.edits.table import EDITS
from shoal.engine.view import Tap
from shoal.export.exporter import Exported, Exporter
from shoal.export.table import EXPORTERS
from shoal.fit.repair import Repair, RepairSize
from shoal.fit.sites.of_layer import Sites
from shoal.fit.sweep import Sweep
from shoal.fit.table import REPAIRS
from shoal.fit.targets import before_cuts
from shoal.measure.metrics import METRICS, token_metric
from shoal.measure.observers import OBSERVERS, NamedObserver
from shoal.run.stage import Made, Stage
from shoal.run.stages.table import STAGES
from shoal.select.search.search_contract import first_that_may_go
from shoal.select.table import SELECTORS, running
from shoal.train.objectives import OBJECTIVES, Objective
from shoal.words.structure import without_sublayer
from shoal.words.types import SpanTable, Unit


def deepest_that_may_go(ledger, aim):
    """A search that runs one set: the last units of the list that may go together."""
    ledger.values([first_that_may_go(list(reversed(ledger.units)), aim)])


class Count:
    """An observer that scores every span by how many samples there were, and its length."""

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


class Mute(BaseEdit):
    """The attention of one layer falls silent."""

    about: ClassVar[str] = "the attention of one layer falls silent"
    edit: Literal["toy"] = "toy"
    layer: Index

    def touches(self):
        return frozenset({Unit("attn", self.layer)})

    def structure(self, before):
        return without_sublayer(before, "attn", (self.layer,))

    def lay_over(self, overlay, view, values: Mapping[str, torch.Tensor]):
        overlay.removed |= self.touches()

    def fate(self, layer):
        return Fate("kept", "mute") if layer == self.layer else None

    def __str__(self):
        return f"layer {self.layer}: mute"


def propose_mute(evidence, request):
    yield Candidate(edits=(Drop(indices=(3, 4)), Mute(layer=2)), proposed_by=("mute",))


def write_count(student, out, options):
    out.write_text(f"{student.plan.n_layers_after} layers\n")
    return Exported(out, "a count of layers", ("nobody serves it",))


def play(state, folder):
    (folder / "toy.txt").write_text("toy")
    return Made(state, ("toy.txt",))


TOYS = {
    "selector": (
        SELECTORS,
        running(deepest_that_may_go, "a toy selector", lambda n_units, n: 1),
    ),
    "metric": (METRICS, token_metric("toy", "a toy metric", "hidden", lambda t, s, n: (t - s).abs().amax(-1))),
    "observer": (
        OBSERVERS,
        NamedObserver("toy", "a toy observer", ("toy/rest",), lambda facts: Count(facts.n_layers), lambda facts: 12345),
    ),
    "edit": (EDITS, Mute),
    "repair": (
        REPAIRS,
        Repair(
            "toy",
            "a toy repair",
            lambda: Sweep(before_cuts, Sites(("mlp",))),
            lambda shape, n_kept: RepairSize(parameters=7, layers=1, sums=12345),
            conflict=lambda replacement, trained_on: "toys go with plain removal" if replacement is not None else "",
        ),
    ),
    "replacement": (REPLACEMENTS, ShiftReplacement),
    "objective": (
        OBJECTIVES,
        Objective("toy", "boundary", lambda student, teacher, mask: (student - teacher).abs().mean(), "a toy objective"),
    ),
    "exporter": (
        EXPORTERS,
        Exporter("toy", "a toy format", lambda student, options: None, write_count, lambda student, done: {"read": True}),
    ),
    "stage": (
        STAGES,
        Stage(
            "toy",
            "a toy stage",
            lambda state: "k",
            play,
            lambda state, folder: state,
            lambda sizes: sizes.need("toy", toys=123),
            lambda pace: {"playing": pace.layers(1000)},
        ),
    ),
}
NAMES = {kind: "shift" if kind == "replacement" else "toy" for kind in TOYS}
