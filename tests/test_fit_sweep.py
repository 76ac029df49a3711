"""Laws of refit and sweep on tiny models of every family: exact maps, honest errors, planted repairs, padding, undoing."""

import math

import pytest
import torch
from families import FAMILIES, VOCAB, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from shoal.edits.drop import Drop
from shoal.edits.insert import Insert
from shoal.edits.plan import Plan
from shoal.edits.student_of import student_of
from shoal.engine.families import contribution, output_map
from shoal.engine.spill import Spill
from shoal.engine.streamed import open_streamed
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.fit.boundary_states import Between, read_all
from shoal.fit.fit_config import FitConfig
from shoal.fit.fit_job import FitJob
from shoal.fit.fit_plan import fit_plan
from shoal.fit.held_out import LayerEnds, held_out, observe, plain, relative
from shoal.fit.sites.folded_map import find_output
from shoal.fit.sites.linear_map import find_map
from shoal.fit.sites.norm_gain import find_gain
from shoal.fit.sites.of_layer import Sites
from shoal.fit.sites.site import CannotRefit, on_output
from shoal.fit.sums import folds_of
from shoal.fit.sweep import SHARE, sweep_layers
from shoal.fit.targets import before_cuts, from_first_cut
from shoal.text.samples import Samples
from shoal.words.structure import Size
from shoal.words.types import Batch, Unit

POST_NORM = {"gemma2", "gemma3_text", "olmo2"}
EXPERTS = {"qwen3_moe", "mixtral", "gpt_oss"}  # The experts are those of layer 2; deepseek_v3 has experts from layer 2 on, too.
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


def test_silent_new_layers_change_no_fitted_value():
    """A sweep of a student with layers that add nothing gives the bits of the sweep without them."""
    view, cut_alone = view_of(), plan_without(3)
    new = tuple(Insert(after=after, init="identity", of=(after,)) for after in (1, 3, 4))
    plans = (cut_alone, cut_alone.model_copy(update={"edits": (*cut_alone.edits, *new)}))
    ours, theirs = (fit_plan(view, plan, samples(), repair="sweep", batch_size=8) for plan in plans)
    assert ours.values.keys() == theirs.values.keys() and len(ours.values)
    assert all(torch.equal(value, theirs.values[name]) for name, value in ours.values.items())


def boundary(view, batch, student, stop):
    reading = view.read(batch)
    return list(view.stream(reading, stop=stop, student=student))[-1][1].detach()


def relative_miss(view, batches, student, *, layer, target, share=1.0):
    """The record's error, from its definition: the held-out fold's squared relative miss per token."""
    miss, n = 0.0, 0
    for batch, folds_B in zip(batches, folds_of(batches), strict=True):
        held = folds_B == 0
        near, far = (boundary(view, batch, Student(), one)[held].double() for one in (layer + 1, target))
        goal = near + share * (far - near)
        ours = boundary(view, batch, student, layer + 1)[held].double()
        miss += float(((goal - ours).square().sum(-1) / goal.square().sum(-1)).sum())
        n += goal.shape[0] * goal.shape[1]
    return miss / n


# -- maps ----------------------------------------------------------------------------------------------------------------


FINDS = {"weight": find_map, "output": find_output, "gain": find_gain}


def has(family, kind, form):
    """Which places have a closed form in layer 2."""
    if form == "gain":
        return family in POST_NORM
    return family not in POST_NORM and not (form == "weight" and kind == "mlp" and family in EXPERTS_IN_2)


def arrives(view, place, change, *, values, h_BTD, reading):
    """What a change of values does to the stream right behind the sublayer: the other sublayer gives nothing."""
    other = "mlp" if place.kind == "attn" else "attn"
    with view.residency.layer(2) as layer, torch.no_grad(), on_output(layer.get_submodule(contribution(layer, other)), zeroed):
        before = view.run_layer(2, h_BTD, reading)
        after = view.run_layer(2, h_BTD, reading, student=Student(overrides={2: values}))
    return (after - before).double().flatten(0, 1)


def zeroed(args, output):
    return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)


@pytest.mark.in_turn(3)
@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("kind", ["attn", "mlp"])
@pytest.mark.parametrize("form", sorted(FINDS))
def test_a_place_is_found_where_its_change_arrives_and_refused_elsewhere(family, kind, form):
    """Every folding equals the unfolded map."""
    view = view_of(family)
    reading = view.read(Batch(samples(2).ids_NT))
    h_BTD = boundary(view, reading.batch, Student(), 2)
    if not has(family, kind, form):
        with pytest.raises(CannotRefit, match=f"layer 2 of this {family} model: "):
            FINDS[form](view, 2, kind, reading=reading, h_BTD=h_BTD)
        return
    found = FINDS[form](view, 2, kind, reading=reading, h_BTD=h_BTD)
    assert found.gain == (0.22 if family == "granite" else 1.0)
    seen = {}
    with view.tapped(2, [found.tap], seen), torch.no_grad():
        view.run_layer(2, h_BTD, reading, student=Student(removed=frozenset({Unit("mlp" if kind == "attn" else "attn", 2)})))
    inputs = found.inputs(seen[found.tap]).double()
    inputs_NF = inputs.reshape(-1, inputs.shape[-1])
    draw = torch.Generator().manual_seed(0)
    if form == "gain":
        change = 0.1 * torch.randn(view.hidden_size, generator=draw, dtype=torch.float64)
        expected = inputs_NF * change
    else:
        change = 0.1 * torch.randn(inputs_NF.shape[1] + 1, view.hidden_size, generator=draw, dtype=torch.float64)
        if not getattr(found, "has_bias", getattr(found, "bias", None)):
            change[-1] = 0.0
        expected = torch.nn.functional.pad(inputs_NF, (0, 1), value=1.0) @ change
    with view.residency.layer(2) as layer:
        values = found.changed(dict(layer.named_parameters()), change)
    arrived = arrives(view, found, change, values=values, h_BTD=h_BTD, reading=reading)
    torch.testing.assert_close(arrived, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.in_turn(2)
@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("kind", ["attn", "mlp"])
@torch.no_grad()
def test_a_map_is_found_in_bfloat16_where_the_layer_dwarfs_its_input(family, kind):
    """Places are tried on the embeddings, which trained layers exceed many times: the rounding of their sum is no norm."""
    model = tiny_model(family, n_layers=6)
    path = output_map(DecoderView(model).model.get_submodule(f"{DecoderView(model).layers_path}.2"), kind)
    if path is not None:
        model.get_submodule(f"{DecoderView(model).layers_path}.2.{path}").weight.mul_(200.0)
    view = DecoderView(model.to(torch.bfloat16))
    reading = view.read(Batch(samples(2).ids_NT))
    if not has(family, kind, "weight"):
        with pytest.raises(CannotRefit):
            find_map(view, 2, kind, reading=reading, h_BTD=reading.h_BTD)
        return
    found = find_map(view, 2, kind, reading=reading, h_BTD=reading.h_BTD)
    assert found.gain == pytest.approx(0.22 if family == "granite" else 1.0, rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stated", [0.125, 0.1768, 0.22])
def test_a_gain_is_that_of_the_config_in_every_precision(stated, dtype):
    """Up to the rounding of the stream, a thousandth; a gain of two decimals is met exactly."""
    fields = {**FAMILIES["granite"], "hidden_size": 64, "residual_multiplier": stated}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("granite", **fields, num_hidden_layers=2))
    view = DecoderView(model.to(dtype))
    reading = view.read(Batch(samples(2).ids_NT))
    for kind in ("attn", "mlp"):
        gain = find_map(view, 1, kind, reading=reading, h_BTD=reading.h_BTD).gain
        assert gain == (stated if stated == 0.22 else pytest.approx(stated, rel=2e-3))


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


NO_BIAS = {"llama", "granite", "mixtral"}


@pytest.mark.in_turn(2)
@pytest.mark.parametrize("repair", ["bias", "map", "refit", "sweep"])
@pytest.mark.parametrize(
    "family",
    [
        "llama",
        "gpt2",
        "phi",
        "gemma2",
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("bloom", "granite", "mixtral", "olmo2")),
    ],
)
def test_errors_are_those_of_the_student_and_never_rise(family, repair):
    if repair in ("map", "bias") and family in POST_NORM or repair == "bias" and family in NO_BIAS:
        with pytest.raises(CannotRefit, match=rf"nothing can be refitted: layer 1 of this {family} .* --repair none"):
            fit_plan(view_of(family), plan_without(2, 4), samples(12), repair=repair, batch_size=12)
        return
    view, plan, text = view_of(family), plan_without(2, 4), samples(60)
    fitted = fit_plan(view, plan, text, repair=repair, batch_size=16)
    batches = text.batches(16)
    done: dict[int, dict[str, torch.Tensor]] = {}
    for one in fitted.result.layers:
        assert one.error_after <= one.error_before
        goal = dict(layer=one.layer, target=one.target, share=one.share)
        assert one.share == (SHARE if repair == "sweep" and one.layer in (1, 3) else 1.0)
        expected = relative_miss(view, batches, Student(lacking(2, 4).removed, done), **goal)
        assert one.error_before == pytest.approx(expected, rel=1e-4)
        prefix = f"refit.{one.layer}."
        own = {name.removeprefix(prefix): value for name, value in fitted.values.items() if name.startswith(prefix)}
        assert bool(own) == bool(one.n_kept)
        done |= {one.layer: own} if own else {}
        expected = relative_miss(view, batches, Student(lacking(2, 4).removed, done), **goal)
        assert one.error_after == pytest.approx(expected, rel=1e-4)
    assert fitted.values, "random layers leave something to repair"


@torch.no_grad()
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_held_out_samples_alone_have_the_error_that_all_have(share):
    """Padded batches, one of them without a held-out sample, goals between two boundaries."""
    view, text = view_of(), samples(60, lengths=torch.arange(60) % (LENGTH - 3) + 4)
    batches = text.batches(4)
    readings, states = read_all(view, batches, Spill())
    goals = Between(states, [2 * one for one in states], share)
    folds = folds_of(batches)
    assert any(not (one == 0).any() for one in folds) and any((one == 0).any() for one in folds)

    def run(h_BTD, reading):
        return view.run_layer(0, h_BTD, reading), None

    ends = LayerEnds(readings, states, goals, folds)
    found = [observe(one, run, config=FitConfig(), no_sums=None) for one in (ends, held_out(view, ends))]
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-6)
    assert sum(len(one) for one in found[1][0]) == sum(int((one == 0).sum()) for one in folds)


@torch.no_grad()
@pytest.mark.parametrize("n_sinks", [0, 1, 3])
@pytest.mark.parametrize("sinks", ["exact", "counted"])
def test_sinks_are_a_share_of_their_own_of_the_held_out_error(n_sinks, sinks):
    """All sinks off by a quarter of their norm, all other tokens by a tenth: the parts add up, however few the sinks are."""
    view, batches = view_of(), samples(40).batches(8)
    readings, states = read_all(view, batches, Spill())
    is_sink_T = torch.arange(LENGTH) < n_sinks
    goals = [torch.where(is_sink_T[:, None], 1000.0, 1.0) * h / h.norm(dim=-1, keepdim=True) for h in states]
    goal_of = {id(h): goal for h, goal in zip(states, goals, strict=True)}

    def run(h_BTD, reading):
        return goal_of[id(h_BTD)] * torch.where(is_sink_T[:, None], 0.75, 0.9), None

    _, error, _ = observe(
        LayerEnds(readings, states, goals, folds_of(batches)), run, config=FitConfig(sinks=sinks), no_sums=None
    )
    parts = 0.01 + 0.0625 * (n_sinks > 0)
    share = n_sinks / LENGTH
    assert error == pytest.approx(parts if sinks == "exact" else share * 0.0625 + (1 - share) * 0.01, rel=1e-3)


def test_no_change_is_no_gain():
    """An infinite ridge leaves the values, so no rounding on other samples may count it as kept."""
    fitted = fit_plan(
        view_of(), plan_without(2, 4), samples(60), repair="sweep", config=FitConfig(ridge=math.inf), batch_size=16
    )
    assert not fitted.values and all(one.n_kept == 0 and one.error_after == one.error_before for one in fitted.result.layers)


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


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_layer_before_a_cut_changes_by_its_share(share):
    """With the student's input the teacher's own, what is missing is linear in the share, and so is its least squares."""
    view, batches = view_of(), samples(60).batches(20)
    job = FitJob(view, lacking(2, 3), batches, FitConfig(weights="plain", ridge=1e-3, keep="always"))
    whole, part = (sweep_layers(job, targets={1: 4, 4: 5}, sites=Sites(("mlp",)), share=s) for s in (1.0, share))
    name = "mlp.down_proj.weight"
    before = dict(view.model.model.layers[1].named_parameters())[name].detach()
    torch.testing.assert_close(part.values[1][name] - before, share * (whole.values[1][name] - before), rtol=1e-3, atol=1e-6)
    assert [one.share for one in part.layers] == [share, 1.0]


def test_the_last_layer_that_is_fitted_takes_all_that_is_left():
    view, batches = view_of(), samples(60).batches(20)
    last = [
        sweep_layers(FitJob(view, lacking(4, 5), batches), targets={3: 6}, sites=Sites(("mlp",)), share=s) for s in (0.5, 1.0)
    ]
    assert all(torch.equal(value, last[1].values[3][name]) for name, value in last[0].values[3].items())
    assert last[0].layers[0].share == 1.0


def test_known_states_of_the_teacher_change_no_bit():
    view, batches = view_of(), samples(60).batches(20)
    known = {at: [boundary(view, batch, Student(), at) for batch in batches] for at in range(7)}
    some = {at: known[at] for at in (2, 5)}
    ours, all_known, some_known = (
        sweep_layers(
            FitJob(view, lacking(2, 3), batches, known=one), targets={1: 4, 4: 5, 5: 6}, sites=Sites(("mlp",)), share=0.5
        )
        for one in (None, known, some)
    )
    for layer, own in ours.values.items():
        for name, value in own.items():
            assert torch.equal(value, all_known.values[layer][name]) and torch.equal(value, some_known.values[layer][name])


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
    one_by_one = sweep_layers(FitJob(view_of(), lacking(2), wide.batches(1)), targets={1: 3}, sites=Sites(("attn", "mlp")))
    together = sweep_layers(FitJob(view_of(), lacking(2), wide.batches(40)), targets={1: 3}, sites=Sites(("attn", "mlp")))
    assert together.layers[0].maps[0].n_tokens == one_by_one.layers[0].maps[0].n_tokens
    assert together.layers[0].error_after == pytest.approx(one_by_one.layers[0].error_after, rel=1e-3)
    for name, value in together.values[1].items():
        torch.testing.assert_close(value, one_by_one.values[1][name], rtol=1e-2, atol=1e-4)  # Sums are fp32 in another order.


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
    swept = sweep_layers(FitJob(view, lacking(2), text.batches(60)), targets={1: 3}, sites=Sites(("mlp",)))
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
