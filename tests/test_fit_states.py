"""States between the layers of a fit: where they wait changes no bit, and what is let go gives its place back."""

import gc

import pytest
import torch
from families import VOCAB, tiny_model

from shoal.edits.drop import Drop
from shoal.edits.plan import Plan
from shoal.engine.spill import Spill
from shoal.engine.student import TEACHER
from shoal.engine.view import DecoderView
from shoal.fit.boundary_states import Between, SpilledStates, advance, emptied, read_all
from shoal.fit.fit_plan import fit_plan
from shoal.fit.repairs import FitConfig
from shoal.text.samples import Samples
from shoal.words.structure import Size

SAMPLES = Samples(
    torch.randint(3, VOCAB, (24, 12), generator=torch.Generator().manual_seed(0)),
    torch.full((24,), 12), "training", "random ids", "hash", 0,
)  # fmt: skip
SIZE = Size(layers=6, parameters=1)
PLAN = Plan(source="x", source_hash="x", teacher="x", n_layers=6, edits=(Drop(indices=(2, 3)),), before=SIZE, after=SIZE)


def view_with(limit):
    view = DecoderView(tiny_model("llama", n_layers=6))
    view.residency.state_bytes = limit
    return view


def _fitted(repair, limit):
    return fit_plan(view_with(limit), PLAN, SAMPLES, repair=repair, batch_size=5, config=FitConfig(keep="always"))


@pytest.mark.parametrize("repair", ["sweep", "refit", "map", "magnitude"])
def test_states_in_a_file_give_the_bits_of_states_in_memory(repair):
    ours, theirs = (_fitted(repair, limit) for limit in (0, None))
    assert ours.values.keys() == theirs.values.keys() and ours.values
    assert all(torch.equal(value, theirs.values[name]) for name, value in ours.values.items())
    assert [one.error_after for one in ours.result.layers] == [one.error_after for one in theirs.result.layers]


def test_the_file_does_not_grow_with_the_layers():
    """The teacher's and the student's states, those before and behind a layer: never more at a time."""
    view = view_with(0)
    readings, states = read_all(view, SAMPLES.batches(5))
    spill, one = states.spill, sum(value.numel() * value.element_size() for value in states)
    assert spill.bytes_on_disk == one
    for layer in range(6):
        states = advance(view, layer, TEACHER.step(layer), readings, states)
        gc.collect()
        assert spill.bytes_on_disk == 2 * one, layer


def test_states_on_the_way_are_made_in_fp32_at_least():
    near, far = ([torch.full((1, 2), value, dtype=torch.bfloat16) for value in values] for values in ((0.0, 1.0), (3.0, 1.0)))
    between = Between(near, far, 1 / 3)
    assert len(between) == 2 and between[0].dtype == torch.float32
    assert [float(one[0, 0]) for one in between] == pytest.approx([1.0, 1.0]) == [float(one[0, 0]) for one in between[:]]


def test_a_sequence_that_is_let_go_frees_its_place():
    spill = Spill(limit=10**6)
    kept = SpilledStates(spill)
    for value in range(3):
        kept.append(torch.full((4,), float(value)))
    assert len(kept) == 3 and [float(one[0]) for one in kept] == [0.0, 1.0, 2.0] and len(kept[1:]) == 2
    assert emptied(kept).spill is spill and emptied([torch.zeros(1)]).spill is not spill
    del kept
    gc.collect()
    assert not spill._kept
