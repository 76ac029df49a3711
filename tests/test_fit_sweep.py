"""Laws of refit and sweep on tiny models of every family: exact maps, honest errors, planted repairs, padding, undoing."""

import pytest
import torch
from families import FAMILIES, VOCAB, tiny_model

from shoal.decoder import DecoderView, Student
from shoal.decoder.streamed import open_streamed
from shoal.fit.maps import CannotRefit, changed, find_map
from shoal.fit.refit import REPAIRS, before_cuts, fit_plan, from_first_cut, without_refits
from shoal.fit.sums import folds_of
from shoal.fit.sweep import plain, relative, sweep_layers
from shoal.plan import Drop, Plan, Refit, Replace, Size
from shoal.replace import student_of
from shoal.surgery.cut import cut
from shoal.text.samples import Samples
from shoal.types import Batch, Unit

POST_NORM = {"gemma2", "gemma3_text", "olmo2"}
EXPERTS = {"qwen3_moe", "mixtral", "gpt_oss"}  # in layer 2; deepseek_v3 has experts from layer 2 on, too
EXPERTS_IN_2 = EXPERTS | {"deepseek_v3"}
LENGTH = 12


def samples(n=40, *, length=LENGTH, lengths=None, seed=0):
    ids_NT = torch.randint(3, VOCAB, (n, length), generator=torch.Generator().manual_seed(seed))
    lengths_N = torch.full((n,), length) if lengths is None else lengths
    return Samples(ids_NT, lengths_N, "training", "random ids", "hash", seed)


def view_of(family="llama", *, n_layers=6, **options):
    return DecoderView(tiny_model(family, n_layers=n_layers, **options))


def plan_without(*layers, n_layers=6):
    size = Size(layers=n_layers, parameters=1)
    edits = (Drop(indices=layers),) if layers else ()
    return Plan(source="x", source_hash="x", teacher="x", n_layers=n_layers, edits=edits, before=size, after=size)


def lacking(*layers):
    return Student(removed=frozenset(Unit("layer", layer) for layer in layers))


def boundary(view, batch, student, stop):
    reading = view.read(batch)
    return list(view.stream(reading, stop=stop, student=student))[-1][1].detach()


def relative_miss(view, batches, student, *, layer, target):
    """The record's error, from its definition: the held-out fold's squared relative miss per token."""
    miss, n = 0.0, 0
    for batch, folds_B in zip(batches, folds_of(batches), strict=True):
        held = folds_B == 0
        goal = boundary(view, batch, Student(), target)[held].double()
        ours = boundary(view, batch, student, layer + 1)[held].double()
        miss += float(((goal - ours).square().sum(-1) / goal.square().sum(-1)).sum())
        n += goal.shape[0] * goal.shape[1]
    return miss / n


# -- maps ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("kind", ["attn", "mlp"])
def test_a_map_is_found_where_its_change_arrives_and_refused_elsewhere(family, kind):
    view = view_of(family)
    reading = view.read(Batch(samples(2).ids_NT))
    h_BTD = boundary(view, reading.batch, Student(), 2)
    if family in POST_NORM or (kind == "mlp" and family in EXPERTS_IN_2):
        with pytest.raises(CannotRefit, match="normed" if family in POST_NORM else "one linear map"):
            find_map(view, 2, kind, reading=reading, h_BTD=h_BTD)
        return
    found = find_map(view, 2, kind, reading=reading, h_BTD=h_BTD)
    assert found.gain == (0.22 if family == "granite" else 1.0)
    if kind == "attn":
        return
    draw = torch.Generator().manual_seed(0)
    change_ED = 0.1 * torch.randn(found.n_inputs + 1, found.n_outputs, generator=draw, dtype=torch.float64)
    if not found.has_bias:
        change_ED[-1] = 0.0
    seen = {}
    with view.residency.layer(2) as layer, torch.no_grad():
        values = changed(found, dict(layer.named_parameters()), change_ED)
        with view.tapped(2, [found.tap], seen):
            before = view.run_layer(2, h_BTD, reading)
        after = view.run_layer(2, h_BTD, reading, student=Student(overrides={2: values}))
    h_NE = torch.nn.functional.pad(seen[found.tap].reshape(-1, found.n_inputs), (0, 1), value=1.0).double()
    arrived = (after - before).double().reshape(-1, found.n_outputs)
    torch.testing.assert_close(arrived, h_NE @ change_ED, rtol=1e-3, atol=1e-4)


# -- which layers --------------------------------------------------------------------------------------------------------


def test_the_layers_of_each_repair():
    assert before_cuts(plan_without(2, 3, 5)) == {1: 4, 4: 6}
    assert from_first_cut(plan_without(2, 3)) == {1: 4, 4: 5, 5: 6}
    assert from_first_cut(plan_without(1, 3, 5)) == {0: 2, 2: 4, 4: 6}
    assert from_first_cut(plan_without(0, 1)) == {2: 3, 3: 4, 4: 5, 5: 6}
    assert from_first_cut(plan_without(4, 5)) == {3: 6}
    with pytest.raises(ValueError, match="layer 0"):
        before_cuts(plan_without(0, 1))


# -- sweeping ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repair", sorted(REPAIRS))
@pytest.mark.parametrize("family", ["llama", "gpt2", "granite", "phi", "bloom"])
def test_errors_are_those_of_the_student_and_never_rise(family, repair):
    view, plan, text = view_of(family), plan_without(2, 4), samples(60)
    fitted = fit_plan(view, plan, text, repair=repair, batch_size=16)
    batches = text.batches(16)
    done: dict[int, dict[str, torch.Tensor]] = {}
    for one in fitted.result.layers:
        assert one.error_after <= one.error_before
        expected = relative_miss(view, batches, Student(lacking(2, 4).removed, done), layer=one.layer, target=one.target)
        assert one.error_before == pytest.approx(expected, rel=1e-4)
        prefix = f"refit.{one.layer}."
        own = {name.removeprefix(prefix): value for name, value in fitted.values.items() if name.startswith(prefix)}
        assert bool(own) == bool(one.n_kept)
        done |= {one.layer: own} if own else {}
        expected = relative_miss(view, batches, Student(lacking(2, 4).removed, done), layer=one.layer, target=one.target)
        assert one.error_after == pytest.approx(expected, rel=1e-4)
    assert fitted.values, "random layers leave something to repair"


def test_a_planted_constant_layer_is_repaired_exactly():
    """The removed layer adds a constant; the bias of the layer before it can hold it."""
    model = tiny_model("starcoder2")
    with torch.no_grad():
        layer = model.model.layers[3]
        for place in (layer.self_attn.o_proj, layer.mlp.c_proj):
            place.weight.zero_()
            place.bias.normal_(0.0, 1.0)
    view, text = DecoderView(model), samples(60)
    batch = Batch(samples(4, seed=1).ids_NT)
    teacher = view.logits(batch)
    fitted = fit_plan(view, plan_without(3), text, repair="refit", batch_size=20)
    plain_gap = (view.logits(batch, student=lacking(3)) - teacher).abs().max()
    gap = (view.logits(batch, student=student_of(view, fitted.plan, fitted.values)) - teacher).abs().max()
    assert gap < 1e-2 * plain_gap
    assert fitted.result.layers[0].maps[0].r2_folds > 0.99


def test_an_idle_layer_asks_for_no_repair():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[3].self_attn.o_proj.weight.zero_()
        model.model.layers[3].mlp.down_proj.weight.zero_()
    fitted = fit_plan(DecoderView(model), plan_without(3), samples(), repair="sweep", batch_size=20)
    assert not fitted.values and fitted.plan == plan_without(3)
    assert all(one.error_before == one.error_after == 0.0 and not one.n_kept for one in fitted.result.layers)


def test_padding_changes_nothing():
    lengths_N = torch.randint(4, LENGTH, (40,), generator=torch.Generator().manual_seed(3))
    text = samples(lengths=lengths_N)
    ids_NT = torch.where(torch.arange(LENGTH) < lengths_N[:, None], text.ids_NT, 0)
    wide = Samples(torch.nn.functional.pad(ids_NT, (0, 5), value=7), lengths_N, "training", "", "", 0)
    one_by_one = sweep_layers(view_of(), lacking(2), wide.batches(1), targets={1: 3}, maps=("attn", "mlp"))
    together = sweep_layers(view_of(), lacking(2), wide.batches(40), targets={1: 3}, maps=("attn", "mlp"))
    assert together.layers[0].maps[0].n_tokens == one_by_one.layers[0].maps[0].n_tokens
    assert together.layers[0].error_after == pytest.approx(one_by_one.layers[0].error_after, rel=1e-3)
    for name, value in together.values[1].items():
        torch.testing.assert_close(value, one_by_one.values[1][name], rtol=1e-2, atol=1e-4)  # fp32 sums in another order


def test_layers_read_from_disk_give_the_same_bits(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    opened, streamed = open_streamed(tmp_path, n_resident=1)
    ours, theirs = (
        fit_plan(view, plan_without(2, 3), samples(), repair="sweep", batch_size=20)
        for view in (DecoderView(opened.model, residency=streamed), DecoderView(model))
    )
    assert ours.plan == theirs.plan and all(torch.equal(ours.values[name], value) for name, value in theirs.values.items())


def test_massive_tokens_are_sinks_apart_and_arrive_at_their_target():
    """Token 1, massive in the embedding, starts every sample: the mean of what is missed there must vanish."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[1] *= 500.0
    view, text = DecoderView(model), samples(60)
    text.ids_NT[:, 0] = 1
    swept = sweep_layers(view, lacking(2), text.batches(60), targets={1: 3}, maps=("mlp",))
    (fit,) = swept.layers[0].maps
    n_fitted = sum(int((folds > 0).sum()) for folds in folds_of(text.batches(60)))
    assert fit.n_sinks == n_fitted and fit.n_tokens == n_fitted * (LENGTH - 1)
    (batch,) = text.batches(60)
    goal = boundary(view, batch, Student(), 3)[:, 0]
    before, after = (
        (boundary(view, batch, Student(lacking(2).removed, values), 2)[:, 0] - goal).norm(dim=-1).mean()
        for values in ({}, swept.values)
    )
    assert after < 1e-3 * before


def test_relative_weights_let_no_long_token_rule():
    goal_ND = torch.tensor([[3.0, 4.0], [0.0, 0.5]])
    assert relative(goal_ND).tolist() == pytest.approx([1 / 25, 4.0])
    assert plain(goal_ND).tolist() == [1.0, 1.0]


# -- plans ---------------------------------------------------------------------------------------------------------------


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
def test_families_without_an_exact_refit_are_refused_by_name(family):
    with pytest.raises(ValueError, match=rf"nothing can be refitted: layer 1 of this {family} .* --repair none"):
        fit_plan(
            view_of(family),
            plan_without(2),
            samples(12),
            repair="sweep",
            batch_size=12,
            progress=lambda done, total: pytest.fail(),
        )


def test_experts_are_left_and_said_so_while_attention_is_refitted():
    fitted = fit_plan(view_of("mixtral"), plan_without(2), samples(), repair="refit", batch_size=20)
    (one,) = fitted.result.layers
    assert [fit.parameters[0] for fit in one.maps] == ["self_attn.o_proj.weight"]
    assert "layer 1" in fitted.result.skipped[0] and "one linear map" in fitted.result.skipped[0]


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
    refused(Plan(**base, edits=(Drop(kind="attn", indices=(2,)),)), "whole layers")
