"""Candidates share the teacher's states in front of their cuts: equal bytes, and no layer there runs twice."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from families import VOCAB, tiny_model

from shoal.edits.drop import Drop
from shoal.edits.plan import Candidate, Plan
from shoal.engine.view import DecoderView
from shoal.fit.fit_plan import fit_plan
from shoal.fit.teacher_prefix import Reuse, TeacherPrefix
from shoal.run.candidate_repair import shared_boundary
from shoal.text.samples import Samples
from shoal.words.structure import Size
from shoal.words.types import Unit

N_LAYERS, LENGTH, BATCH = 8, 12, 20
CANDIDATES = ((3, 4), (4, 5), (5, 6))


def text():
    ids_NT = torch.randint(3, VOCAB, (60, LENGTH), generator=torch.Generator().manual_seed(0))
    return Samples(ids_NT, torch.full((60,), LENGTH), "training", "random ids", "hash", 0)


def fitted(view, layers, repair, prefix=None):
    size = Size(layers=N_LAYERS, parameters=1)
    edits = (Drop(indices=layers),)
    plan = Plan(source="x", source_hash="x", teacher="x", n_layers=N_LAYERS, edits=edits, before=size, after=size)
    return fit_plan(view, plan, text(), repair=repair, batch_size=BATCH, reuse=Reuse(prefix=prefix))


@pytest.mark.parametrize("repair", ["refit", "sweep", "magnitude"])
def test_every_byte_is_that_of_a_fit_on_its_own_and_the_layers_in_front_run_once(repair, monkeypatch):
    view = DecoderView(tiny_model("llama", n_layers=N_LAYERS))
    alone = [fitted(view, layers, repair) for layers in CANDIDATES]
    n_runs, run_step = Counter(), DecoderView.run_step

    def counted(self, step, *args, **kwargs):
        n_runs[step.layer] += 1
        return run_step(self, step, *args, **kwargs)

    monkeypatch.setattr(DecoderView, "run_step", counted)
    prefix = TeacherPrefix(view, text().batches(BATCH), 2)
    together = [fitted(view, layers, repair, prefix) for layers in CANDIDATES]
    assert n_runs[0] == n_runs[1] == len(text().batches(BATCH))
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.plan == theirs.plan and ours.values.keys() == theirs.values.keys()
        assert all(torch.equal(value, theirs.values[name]) for name, value in ours.values.items())


def test_states_behind_a_change_are_not_taken():
    """A cut in front of the shared boundary begins at layer 0, as without the states."""
    view = DecoderView(tiny_model("llama", n_layers=N_LAYERS))
    ours = fitted(view, (1,), "refit", TeacherPrefix(view, text().batches(BATCH), 4))
    theirs = fitted(view, (1,), "refit")
    assert all(torch.equal(value, theirs.values[name]) for name, value in ours.values.items())


def candidate(*edits, units=()):
    return Candidate(edits=edits, proposed_by=("a",)) if edits else SimpleNamespace(units=frozenset(units))


def test_what_is_shared_ends_before_the_layer_in_front_of_the_earliest_cut():
    dropped = [candidate(Drop(indices=layers)) for layers in ((5, 6), (3, 4), (4,))]
    assert shared_boundary(dropped) == 2
    assert shared_boundary([*dropped, candidate(Drop(indices=(0,)))]) == 0
    assert shared_boundary([candidate(units=[Unit("attn", 2), Unit("layer", 5)])]) == 2
