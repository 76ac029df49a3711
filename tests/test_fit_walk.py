"""The walk: what a body sees is the student as it is by then; fits and pruners are a few lines of body."""

import pytest
import torch
from families import VOCAB, tiny_model

from shoal.engine.student import Step, Student
from shoal.engine.view import DecoderView, Tap
from shoal.engine.workers import Workers
from shoal.fit.sites.linear_map import LinearMap, find_map
from shoal.fit.sites.of_layer import probe_of
from shoal.fit.sums import no_sums
from shoal.fit.walk import Goal, walk
from shoal.text.samples import Samples
from shoal.words.types import Unit

LENGTH = 10
FAMILY_NAMES = ["llama", "gpt2", "falcon", "opt", "granite"]


def samples(n=24, *, padded=False):
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, LENGTH + 1, (n,), generator=draw) if padded else torch.full((n,), LENGTH)
    return Samples(torch.randint(3, VOCAB, (n, LENGTH), generator=draw), lengths, "training", "random ids", "hash", 0)


def states_of(view, batch, student, stop):
    reading = view.read(batch)
    h_BTD = reading.h_BTD
    for layer in range(stop):
        h_BTD = view.run_layer(layer, h_BTD, reading, student=student)
    return h_BTD


def lacking(*layers):
    return Student(removed=frozenset(Unit("layer", layer) for layer in layers))


def every_kept_layer(view, student):
    return {one: Goal(one + 1) for one in range(view.n_layers) if student.step(one) is not None}


def test_a_body_sees_the_student_as_it_was_set_and_the_teacher_as_it_is():
    view, batches = DecoderView(tiny_model("llama")), samples(padded=True).batches(7)
    student, seen = lacking(2, 3), []
    for here in walk(view, student, batches, goals={0: Goal(1), 1: Goal(4), 4: Goal(5), 5: Goal(6)}):
        ends = here.ends()
        with view.residency.layer(here.layer) as module:
            weight = module.mlp.down_proj.weight.detach()
        so_far = Student(student.removed, dict(seen))
        for batch, h_BTD, goal_BTD in zip(batches, here.inputs, ends.goals, strict=True):
            assert torch.equal(h_BTD, states_of(view, batch, so_far, here.layer))
            assert torch.equal(goal_BTD, states_of(view, batch, Student(), here.goal.boundary))
        values = {"mlp.down_proj.weight": (1.5 if here.layer != 4 else 1.0) * weight}
        here.set(values)
        seen.append((here.layer, values))
    assert [layer for layer, _ in seen] == [0, 1, 4, 5]


def test_a_worker_without_a_batch_walks_along():
    """Two processes and one batch: the second stops at the same layers, where the sums of all are made."""
    view, batches = DecoderView(tiny_model("llama")), samples().batches(24)
    walked = {}
    for rank in (0, 1):
        walked[rank] = stops = []
        for here in walk(view, lacking(2, 3), batches, goals={1: Goal(4, 0.5), 4: Goal(5)}, workers=Workers(rank, 2)):
            passed: list[int] = []
            ends = here.ends(passing=passed.append)
            assert len(list(ends.goals)) == len(ends.readings) == 1 - rank
            stops.append((here.layer, passed))
    assert walked[0] == walked[1] == [(1, [2, 3]), (4, [])]


def test_layers_between_two_goals_run_as_the_student_does():
    """Removed ones, refitted ones and those that are the teacher's; outputs that a body hands over are taken."""
    view, batches = DecoderView(tiny_model("llama")), samples().batches(10)
    with view.residency.layer(1) as module:
        student = Student(lacking(3).removed, {1: {"mlp.down_proj.weight": 2 * module.mlp.down_proj.weight.detach()}})
    found = {}
    for here in walk(view, student, batches, goals={2: Goal(4), 5: Goal(6)}):
        found[here.layer] = list(here.inputs)
        here.set(outputs=[torch.ones_like(h_BTD) for h_BTD in here.inputs])
    for batch, two, five in zip(batches, found[2], found[5], strict=True):
        reading = view.read(batch)
        assert torch.equal(two, states_of(view, batch, student, 2))
        assert torch.equal(five, view.run_layer(4, torch.ones_like(two), reading))


def test_what_is_put_in_runs_also_behind_places_that_are_left_out():
    """Behind a layer with a goal, behind one that is gone, behind one without a goal, and a range once more."""
    view, batches = DecoderView(tiny_model("llama")), samples().batches(10)
    new = {1: (Step(1),), 2: (Step(0),), 3: (Step(1), Step(3))}
    student = Student(lacking(2).removed, inserted=new)
    goals = {0: Goal(1), 1: Goal(3), 4: Goal(5), 5: Goal(6)}
    for here in walk(view, student, batches, goals=goals):
        for batch, h_BTD in zip(batches, here.inputs, strict=True):
            assert torch.equal(h_BTD, states_of(view, batch, student, here.layer))


def test_the_teacher_shows_the_layers_it_passes_and_a_goal_may_lie_on_the_way():
    view, batches = DecoderView(tiny_model("llama")), samples().batches(12)
    passed = []
    for here in walk(view, lacking(2, 3), batches, goals={1: Goal(4, share=0.25)}):
        ends = here.ends(passing=passed.append)
        for batch, goal_BTD in zip(batches, ends.goals, strict=True):
            near, far = (states_of(view, batch, Student(), at) for at in (2, 4))
            torch.testing.assert_close(goal_BTD, near + 0.25 * (far - near))
    assert passed == [2, 3]


def test_a_walk_without_a_teacher_runs_the_student_alone(monkeypatch):
    """One run per kept layer and batch but the last, whose outputs nobody reads; two samples are enough."""
    view, batches, student = DecoderView(tiny_model("llama")), samples(2).batches(1), lacking(2)
    ran, run_step = [], view.run_step

    def counted(step, h_BTD, reading):
        ran.append(step.layer)
        return run_step(step, h_BTD, reading)

    monkeypatch.setattr(view, "run_step", counted)
    stops = [here.layer for here in walk(view, student, batches, goals=every_kept_layer(view, student), teacher=False)]
    assert stops == [0, 1, 3, 4, 5]
    assert ran == [layer for layer in (0, 1, 3, 4) for _ in batches]


# -- pruners as bodies ---------------------------------------------------------------------------------------------------


def inputs_of(here, site: LinearMap):
    """Second moments of what a map reads, (F, F) fp64, over real tokens: the Hessian of its least-squares error."""
    sums = no_sums(site.n_inputs, 0)
    for reading, seen in here.seen([site.tap]):
        real_BT = torch.ones(reading.batch.ids_BT.shape) if reading.batch.mask_BT is None else reading.batch.mask_BT
        h_NF = seen[site.tap].reshape(*real_BT.shape, -1)[real_BT.bool()]
        nobody = torch.zeros(len(h_NF), dtype=torch.bool)
        sums.add_tokens(h_NF, h_NF[:, :0], weights_N=torch.ones(len(h_NF)), sinks_N=nobody)
    return sums.hh_EE[:-1, :-1]


def wanda(w_DF, hh_FF):
    """Half of each row's weights, those of least |w| times the norm of the input (arXiv 2306.11695)."""
    score_DF = w_DF.abs() * hh_FF.diagonal().sqrt()
    weakest = score_DF.argsort(dim=1, stable=True)[:, : w_DF.shape[1] // 2]
    return w_DF.scatter(1, weakest, 0.0)


def sparse_gpt(w_DF, hh_FF):
    """Half of each column's weights by w^2 / [H^-1]_cc, the error spread over the columns to the right (arXiv 2301.00774)."""
    w_DF = w_DF.clone()
    hh_FF = hh_FF + 1e-2 * hh_FF.diagonal().mean() * torch.eye(len(hh_FF), dtype=hh_FF.dtype)
    root_FF = torch.linalg.cholesky(torch.linalg.inv(hh_FF), upper=True)
    for column in range(w_DF.shape[1]):
        step = root_FF[column, column]
        weakest_D = (w_DF[:, column] / step).square().argsort(stable=True)[: len(w_DF) // 2]
        error_D = torch.zeros(len(w_DF), dtype=w_DF.dtype)
        error_D[weakest_D] = w_DF[weakest_D, column] / step
        w_DF[:, column:] -= error_D[:, None] * root_FF[column, column:]
        w_DF[weakest_D, column] = 0.0
    return w_DF


def prune(view, student, batches, *, keep):
    """Set the output maps of every kept layer by a function of (weight, second moments of the inputs)."""
    overrides, probe = {}, probe_of(view, batches)
    for here in walk(view, student, batches, goals=every_kept_layer(view, student), teacher=False):
        values = {}
        for kind in ("attn", "mlp"):
            site = find_map(view, here.layer, kind, reading=probe, h_BTD=probe.h_BTD)
            name = site.parameters[0]
            with view.residency.layer(here.layer) as module:
                stored = dict(module.named_parameters())[name].detach()
            turned = stored.mT if site.is_transposed else stored
            pruned = keep(turned.double(), inputs_of(here, site)).to(stored.dtype)
            values[name] = (pruned.mT if site.is_transposed else pruned).contiguous()
        here.set(values)
        overrides[here.layer] = values
    return Student(student.removed, overrides)


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("keep", [wanda, sparse_gpt])
def test_pruners_are_bodies(keep, family):
    """Half of the weights are exactly zero; later layers read what the pruned ones make; moments are those of a naive pass."""
    view, batches = DecoderView(tiny_model(family, n_layers=4)), samples(12, padded=True).batches(5)
    student = prune(view, lacking(1), batches, keep=keep)
    assert sorted(student.overrides) == [0, 2, 3]
    for values in student.overrides.values():
        assert all(float((value == 0).float().mean()) == pytest.approx(0.5, abs=0.02) for value in values.values())
    site = find_map(view, 3, "mlp", reading=view.read(batches[0]), h_BTD=view.read(batches[0]).h_BTD)
    naive = torch.zeros(site.n_inputs, site.n_inputs, dtype=torch.float64)
    before = Student(student.removed, {layer: own for layer, own in student.overrides.items() if layer < 3})
    for batch in batches:
        seen, real_BT = {}, batch.mask_BT.bool() if batch.mask_BT is not None else torch.ones(batch.ids_BT.shape).bool()
        with view.tapped(3, [site.tap], seen):
            view.run_layer(3, states_of(view, batch, before, 3), view.read(batch))
        h_NF = seen[site.tap].reshape(*real_BT.shape, -1)[real_BT].double()
        naive += h_NF.mT @ h_NF
    found = None
    for here in walk(view, before, batches, goals={3: Goal(4)}, teacher=False):
        found = inputs_of(here, site)
    torch.testing.assert_close(found, naive, rtol=1e-5, atol=1e-6)  # Products are in fp32.


def test_sparse_gpt_on_the_walks_moments_loses_less_than_cutting_the_same_share_by_size():
    """Of the least-squares error the moments stand for: the reason to want them."""
    view, batches = DecoderView(tiny_model("llama", n_layers=3)), samples(40).batches(20)
    for here in walk(view, Student(), batches, goals={1: Goal(2)}, teacher=False):
        site = find_map(view, 1, "mlp", reading=probe_of(view, batches), h_BTD=probe_of(view, batches).h_BTD)
        hh_FF = inputs_of(here, site)
        w_DF = dict(view.model.model.layers[1].named_parameters())[site.parameters[0]].detach().double()

    def error(pruned_DF):
        return float(((pruned_DF - w_DF) @ hh_FF * (pruned_DF - w_DF)).sum())

    by_size = w_DF.scatter(0, w_DF.abs().argsort(dim=0)[: len(w_DF) // 2], 0.0)
    assert error(sparse_gpt(w_DF, hh_FF)) < error(by_size)


def test_taps_are_of_the_layer_as_it_will_run():
    view, batches = DecoderView(tiny_model("llama")), samples(4).batches(4)
    tap = Tap("mlp_map_in", 1)
    for here in walk(view, Student(), batches, goals={1: Goal(2)}, teacher=False):
        with view.residency.layer(1) as module:
            doubled = {"mlp.up_proj.weight": 2 * module.mlp.up_proj.weight.detach()}
        plain = [seen[tap] for _, seen in here.seen([tap])]
        assert not plain[0].requires_grad, "a body that forgets no_grad keeps no graph"
        here.set(doubled)
        changed = [seen[tap] for _, seen in here.seen([tap])]
        torch.testing.assert_close(changed[0], 2 * plain[0])
