"""States between the layers of a fit: where they wait changes no bit, and what is let go gives its place back."""

import pytest
import torch
from families import VOCAB, tiny_model

from shoal.edits.drop import Drop
from shoal.edits.plan import Plan
from shoal.engine.spill import Spill
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.fit.boundary_states import Between, SpilledStates, emptied, free
from shoal.fit.fit_config import FitConfig
from shoal.fit.fit_plan import fit_plan
from shoal.fit.walk import Goal, walk
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


@pytest.mark.parametrize("teacher", [True, False])
def test_the_file_holds_no_more_states_than_the_walk_stands_on(teacher):
    """Those before and behind a layer, of the student and of the teacher where they differ, and the goal's near end."""
    view, batches = view_with(0), SAMPLES.batches(5)
    one = sum(view.read(batch).h_BTD.nbytes for batch in batches)
    goals = {layer: Goal(layer + 1) for layer in (0, 4)} | {1: Goal(4, 0.5), 5: Goal(6)}
    sizes = {}
    for here in walk(view, Student(removed=PLAN.removed_units), batches, goals=goals, teacher=teacher):
        assert here.inputs.spill.bytes_on_disk >= one
        if teacher:
            assert len(here.ends().goals) == len(batches)
        sizes[here.layer] = here.inputs.spill.bytes_on_disk // one
        here.set({name: 0.5 * value for name, value in _maps_of(view, here.layer).items()})
    # The teacher takes two while it moves beside the student's one; at the goal between two boundaries both ends are there.
    assert list(sizes.values()) == ([2, 4, 4, 4] if teacher else [1, 2, 2, 2])


def _maps_of(view, layer):
    with view.residency.layer(layer) as module:
        return {"mlp.down_proj.weight": module.mlp.down_proj.weight.detach()}


def test_states_on_the_way_are_made_in_fp32_at_least():
    near, far = ([torch.full((1, 2), value, dtype=torch.bfloat16) for value in values] for values in ((0.0, 1.0), (3.0, 1.0)))
    between = Between(near, far, 1 / 3)
    assert len(between) == 2 and between[0].dtype == torch.float32
    assert [float(one[0, 0]) for one in between] == pytest.approx([1.0, 1.0]) == [float(one[0, 0]) for one in between[:]]


def test_states_that_are_freed_give_their_place_back():
    spill = Spill(limit=10**6)
    states = SpilledStates(spill)
    for value in range(3):
        states.append(torch.full((4,), float(value)))
    assert len(states) == 3 and [float(one[0]) for one in states] == [0.0, 1.0, 2.0] and len(states[1:]) == 2
    assert emptied(states).spill is spill and emptied([torch.zeros(1)]).spill is not spill
    mine = [torch.zeros(1)]
    for one in (states, states, mine):
        free(one)
    assert not len(states) and len(mine) == 1
    written = SpilledStates(Spill(limit=0))
    for _ in range(5):
        written.append(torch.ones(4))
        free(written)
    assert written.spill.bytes_on_disk == 16, "every state took the place of the one before"
