"""Repaired plans: the student they make, what is undone, what each family refits, and what is refused."""

import dataclasses
import math

import pytest
import torch
from test_fit_sweep import POST_NORM, plan_without, samples, view_of

from shoal.checkpoint.in_memory import cut
from shoal.edits.plan import Plan
from shoal.edits.refit import Refit
from shoal.edits.replace.replace_edit import Replace
from shoal.edits.student_of import student_of
from shoal.fit.fit_plan import fit_plan, without_refits
from shoal.fit.sites.neurons import Neurons
from shoal.fit.sites.of_layer import Sites
from shoal.fit.sites.site import CannotRefit
from shoal.fit.sweep import MAPS, Sweep
from shoal.fit.targets import from_first_cut
from shoal.words.structure import Size
from shoal.words.types import Batch


def test_a_repaired_plan_is_its_student_and_a_stock_checkpoint():
    view, batch = view_of(), Batch(samples(4, seed=1).ids_NT)
    fitted = fit_plan(view, plan_without(2, 3), samples(), repair="sweep", batch_size=20)
    assert {edit.layer for edit in fitted.plan.edits if isinstance(edit, Refit)} <= {1, 4, 5}
    student = student_of(view, fitted.plan, fitted.values)
    stock = cut(view, student)
    with torch.no_grad():
        assert torch.equal(stock(input_ids=batch.ids_BT).logits, view.logits(batch, student=student))
    assert without_refits(fitted.plan) == plan_without(2, 3)
    again = fit_plan(view, fitted.plan, samples(), repair="sweep", batch_size=20)
    assert again.plan == fitted.plan and all(torch.equal(again.values[name], value) for name, value in fitted.values.items())


def test_a_repair_that_is_worse_on_selection_is_undone():
    for kls, kept in (((1.0, 0.5), True), ((0.5, 1.0), False), ((1.0, 1.0), False)):
        fitted = fit_plan(
            view_of(), plan_without(2), samples(), repair="refit", batch_size=20, quality=lambda students, kls=kls: kls
        )
        assert fitted.result.kept == kept == bool(fitted.values)
        assert (fitted.plan == plan_without(2)) == (not kept)
        assert (fitted.result.kl_before, fitted.result.kl_after) == kls


@pytest.mark.parametrize("family", sorted(POST_NORM))
def test_post_norm_families_refit_the_gain_of_the_norm_and_say_so(family):
    fitted = fit_plan(view_of(family), plan_without(2), samples(), repair="refit", batch_size=20)
    (one,) = fitted.result.layers
    assert {fit.form for fit in one.maps} == {"gain"} and all(
        name.endswith("norm.weight") for name in fitted.plan.edits[-1].parameters
    )
    assert "normed before it enters the stream; the gain of that norm is refitted" in fitted.result.skipped[0]


def test_experts_take_a_map_of_their_sum_while_attention_is_refitted():
    fitted = fit_plan(view_of("mixtral"), plan_without(2), samples(), repair="refit", batch_size=20)
    (one,) = fitted.result.layers
    assert [(fit.form, fit.parameters) for fit in one.maps[:2]] == [
        ("output", ("mlp.experts.down_proj",)),
        ("weight", ("self_attn.o_proj.weight",)),
    ]
    assert "one linear map; a map of its output is folded" in fitted.result.skipped[0]


def unrefittable(view, monkeypatch):
    """As a checkpoint of packed integers would be."""

    def refuse(*args, **kwargs):
        raise CannotRefit("layer 1 of this llama model: 'x' is quantised")

    monkeypatch.setattr("shoal.fit.sweep.WHOLE_SWEEP", Sweep(from_first_cut, Sites(MAPS, (refuse,))))
    return view


def test_where_nothing_has_a_closed_form_a_named_repair_is_refused_and_auto_leaves_the_plain_cut(monkeypatch):
    view = unrefittable(view_of(), monkeypatch)
    with pytest.raises(CannotRefit, match=r"nothing can be refitted: layer 1 .* quantised; use --repair none"):
        fit_plan(view, plan_without(2), samples(), repair="sweep", batch_size=20, progress=lambda *_: pytest.fail())
    fitted = fit_plan(view, plan_without(2), samples(), repair="auto", batch_size=20)
    assert fitted.plan == plan_without(2) and not fitted.values and not fitted.result.kept
    assert str(fitted.result).endswith("'x' is quantised; the plain cut stands")


def test_auto_is_the_sweep_where_there_is_one():
    auto, sweep = (fit_plan(view_of(), plan_without(2), samples(), repair=name, batch_size=20) for name in ("auto", "sweep"))
    assert auto.plan == sweep.plan and all(torch.equal(auto.values[name], value) for name, value in sweep.values.items())
    assert str(auto.result).startswith("'auto', here 'sweep', of layers")


def test_plans_that_cannot_be_repaired_are_refused():
    view, size = view_of(), Size(layers=6, parameters=1)

    def refused(plan, reason, repair="sweep"):
        with pytest.raises(ValueError, match=reason):
            fit_plan(view, plan, samples(12), repair=repair, batch_size=12)

    refused(plan_without(), "removes nothing")
    refused(plan_without(0), "layer 0", repair="refit")
    refused(plan_without(2), "did you mean 'sweep'", repair="sweeep")
    base = dict(source="x", source_hash="x", teacher="x", n_layers=6, before=size, after=size)
    refused(Plan(**base, edits=(Replace(start=1, stop=3, replacement="layer"),)), "--replace none")


@torch.no_grad()
def test_a_solve_that_ruins_the_layer_is_taken_back_before_the_next(monkeypatch):
    """What follows it is then as if it had found nothing, bit for bit."""
    view, plan, text = view_of(), plan_without(2, 4), samples(60)
    real = Neurons.solve

    def fitted_with(factor):
        def solve(site, folds, *, ridge):
            found = real(site, folds, ridge=ridge)
            return dataclasses.replace(found, change_ED=factor * torch.ones_like(found.change_ED), ridge=math.inf)

        monkeypatch.setattr(Neurons, "solve", solve)
        return fit_plan(view, plan, text, repair="refit", batch_size=16)

    ruined, nothing = fitted_with(1e3), fitted_with(0.0)
    first = next(one for one in ruined.result.layers if one.n_kept)
    assert any(fit.held_out_error > first.error_before for fit in first.maps), "the law is about a solve that ruins"
    assert ruined.values and ruined.values.keys() == nothing.values.keys()
    assert all(torch.equal(ruined.values[name], value) for name, value in nothing.values.items())
    assert [fit.taken_back for fit in first.maps].count(True) == 1 and first.maps[0].taken_back
    assert first.standing == first.maps[1 : first.n_kept]
