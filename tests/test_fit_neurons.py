"""Neurons of removed layers in the MLP of the layer before a cut: found where planted, folded exactly, left where coupled."""

import pytest
import torch
from families import FAMILIES, VOCAB, tiny_config, tiny_model
from transformers import AutoModelForCausalLM

from shoal.engine.families import contribution
from shoal.engine.spill import Spill
from shoal.engine.streamed import open_streamed
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.engine.workers import ALONE
from shoal.fit.boundary_states import read_all
from shoal.fit.fit_config import FitConfig
from shoal.fit.fit_job import FitJob
from shoal.fit.sites.neuron_pool import NeuronPool, Ranking, ranking_batches
from shoal.fit.sites.neurons import diagonal_of_inverse, moved, neurons_of, part_of, saliency
from shoal.fit.sites.of_layer import Sites, probe_of
from shoal.fit.sites.site import CannotRefit
from shoal.fit.sums import no_sums
from shoal.fit.sweep import sweep_layers
from shoal.text.samples import Samples
from shoal.words.types import Batch, Unit

LENGTH = 12
IN_PLACE_OF = ["llama", "qwen3", "gpt2", "gptj", "phi", "phi3", "starcoder2", "gpt_neox", "granite", "cohere2"]
"""Gated, plain and fused MLPs; norms with and without a bias; parallel sublayers; scaled residuals; transposed weights."""


def samples(n=60, seed=0):
    ids_NT = torch.randint(3, VOCAB, (n, LENGTH), generator=torch.Generator().manual_seed(seed))
    return Samples(ids_NT, torch.full((n,), LENGTH), "training", "random ids", "hash", seed)


def silence(layer, kind, *, rows=None):
    """The sublayer writes nothing; with ``rows``, those neurons of an MLP."""
    end = layer.get_submodule(contribution(layer, kind))
    with torch.no_grad():
        if rows is None:
            end.weight.zero_()
        elif type(end).__name__ == "Conv1D":
            end.weight[rows] = 0.0
        else:
            end.weight[:, rows] = 0.0
        if rows is None and getattr(end, "bias", None) is not None:
            end.bias.zero_()


def planted(family, idle=2):
    """Of layers 2 and 3 one does nothing; the other has an MLP alone, half of its neurons idle, and norms of its own."""
    model = tiny_model(family)
    view = DecoderView(model)
    for index in (2, 3):
        with view.residency.layer(index) as layer:
            silence(layer, "attn")
            if index == idle:
                silence(layer, "mlp")
            else:
                end = layer.get_submodule(contribution(layer, "mlp"))
                n = end.weight.shape[0 if type(end).__name__ == "Conv1D" else 1]
                silence(layer, "mlp", rows=slice(0, n, 2))
            draw = torch.Generator().manual_seed(index)
            with torch.no_grad():
                for name, value in layer.named_parameters():
                    if value.ndim == 1 and "norm" in name or name.startswith("ln_"):
                        value.add_(0.3 * torch.randn(value.shape, generator=draw))
    return view


class Normed(torch.nn.Module):
    """An activation over the root mean square of all neurons."""

    def forward(self, h):
        h = torch.nn.functional.silu(h)
        return h / h.float().square().mean(-1, keepdim=True).sqrt().to(h.dtype)


def gathering(view, layer, batches, *, removed=()):
    readings, states = read_all(view, batches, Spill())
    for at in range(layer):
        states = [view.run_layer(at, h, reading).detach() for h, reading in zip(states, readings, strict=True)]
    probe = probe_of(view, batches)
    ranking = Ranking(readings, states, [torch.ones(len(batch.ids_BT), dtype=torch.int64) for batch in batches])
    found = NeuronPool(view, layer, probe=probe, ranking=ranking, config=FitConfig(), workers=ALONE)
    for at in removed:
        found.visit(at)
    return found


@pytest.mark.parametrize("family", IN_PLACE_OF)
def test_the_neurons_of_a_removed_mlp_are_found_and_do_its_work(family):
    view, batches = planted(family), samples().batches(20)
    lacks = Student(removed=frozenset({Unit("layer", 3)}))
    swept = sweep_layers(
        FitJob(view, lacks, batches, config=FitConfig(ridge=1e-9)), targets={2: 4}, sites=Sites(("mlp",), gathers=True)
    )
    (one,) = swept.layers
    assert one.maps[0].form == "neurons" and one.n_kept
    assert one.error_after < 1e-5 * one.error_before
    batch = Batch(samples(4, seed=1).ids_NT)
    teacher, plain = view.logits(batch), view.logits(batch, student=lacks)
    ours = view.logits(batch, student=Student(removed=lacks.removed, overrides=swept.values))
    assert (ours - teacher).abs().max() < 1e-2 * (plain - teacher).abs().max()
    shapes = {name: value.shape for name, value in view._stub_layers[2].named_parameters()}
    assert all(value.shape == shapes[name] for name, value in swept.values[2].items()), "the layer keeps its shapes"


@pytest.mark.parametrize("family", IN_PLACE_OF)
def test_the_layer_behind_a_lost_mlp_takes_its_neurons(family):
    """The layer that lost its MLP stays and nothing before it could take them."""
    view, batches = planted(family, idle=3), samples().batches(20)
    lacks = Student(removed=frozenset({Unit("mlp", 2)}))
    job = FitJob(view, lacks, batches, config=FitConfig(ridge=1e-9))
    swept = sweep_layers(job, targets={2: 3, 3: 4}, sites=Sites(("mlp",), gathers=True))
    assert [one.layer for one in swept.layers] == [2, 3] and list(swept.values) == [3]
    assert swept.layers[1].maps[0].form == "neurons" and swept.layers[1].error_after < 1e-5 * swept.layers[1].error_before
    batch = Batch(samples(4, seed=1).ids_NT)
    teacher, plain = view.logits(batch), view.logits(batch, student=lacks)
    ours = view.logits(batch, student=Student(removed=lacks.removed, overrides=swept.values))
    assert (ours - teacher).abs().max() < 1e-2 * (plain - teacher).abs().max()


@pytest.mark.parametrize("family", IN_PLACE_OF)
def test_folded_neurons_are_those_of_the_removed_layer(family):
    """Run on what the kept layer's MLP reads, they give what the removed layer's MLP gives on its own norm of that state."""
    view = planted(family)
    found = gathering(view, 2, samples().batches(20))
    x_1ND = torch.randn(1, 50, view.hidden_size, generator=torch.Generator().manual_seed(5))
    with view.residency.layer(2) as ours, view.residency.layer(3) as theirs:
        own_norm, their_norm = ours.get_submodule(found.norm), theirs.get_submodule(found.norm)
        rows = found._folded(dict(theirs.get_submodule(found.path).named_parameters()), _normed(their_norm, found.x_ND))
        values = {part.name: part.joined(rows[part.name]) for part in found.parts}
        with torch.no_grad():
            folded = neurons_of(found.mlp, found.inner, values, own_norm(x_1ND))
            expected = neurons_of(theirs.get_submodule(found.path), found.inner, {}, their_norm(x_1ND))
    torch.testing.assert_close(folded, expected, rtol=1e-3, atol=1e-4)


def _normed(norm, x):
    from shoal.fit.sites import neuron_pool as gathering

    return gathering._normed(norm, x)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_layer_takes_neurons_only_where_that_lowers_its_error(family):
    """In every family: what is gathered is not worse than nothing, and where nothing can be the sweep is the one without."""
    view, batches = DecoderView(tiny_model(family)), samples(24).batches(12)
    lacks = Student(removed=frozenset({Unit("layer", 3), Unit("layer", 4)}))
    try:
        with_, without = (
            sweep_layers(FitJob(view, lacks, batches), targets={2: 5}, sites=Sites(("mlp",), gathers=gathers))
            for gathers in (True, False)
        )
    except CannotRefit:
        return
    (ours,), (theirs,) = with_.layers, without.layers
    assert ours.error_after <= ours.error_before == theirs.error_before
    if ours.maps[0].form != "neurons":
        assert with_.values.keys() == without.values.keys()
        for name, value in without.values.get(2, {}).items():
            assert torch.equal(value, with_.values[2][name])


def test_neurons_that_read_each_other_are_left():
    """A norm inside the MLP (BitNet): a neuron's answer depends on the others."""
    view = DecoderView(tiny_model("bitnet"))
    with pytest.raises(
        CannotRefit, match="layer 2 of this bitnet model: 'ffn_sub_norm.weight' of its MLP has no rows of neurons"
    ):
        gathering(view, 2, samples(8).batches(8))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_norm_over_many_neurons_is_seen_in_every_precision(dtype):
    """Over thousands of neurons a mean square hardly feels a few; the weakest ones alone it lifts."""
    config = tiny_config("llama", n_layers=3)
    config.intermediate_size = 4096
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    gathering(DecoderView(model), 1, samples(8).batches(8))
    for layer in model.model.layers:
        layer.mlp.act_fn = Normed()
    with pytest.raises(CannotRefit, match="the neurons of its MLP read each other"):
        gathering(DecoderView(model), 1, samples(8).batches(8))


def test_a_parameter_that_is_no_map_and_no_bias_is_left_alone():
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.mlp.act_fn.register_parameter("weight", torch.nn.Parameter(torch.ones(48)))
    with pytest.raises(CannotRefit, match="'act_fn.weight' of its MLP has no rows of neurons"):
        gathering(DecoderView(model), 2, samples(8).batches(8))


@pytest.mark.parametrize("silent", ["gate_proj", "up_proj"])
def test_neurons_that_never_answer_change_nothing(silent):
    """Layer 2's and the removed layer 3's neurons are all zero: nothing to choose, and the rest of the sweep stands."""
    model = tiny_model("llama")
    with torch.no_grad():
        for index in (2, 3):
            getattr(model.model.layers[index].mlp, silent).weight.zero_()
    lacks = Student(removed=frozenset({Unit("layer", 3)}))
    ours, theirs = (
        sweep_layers(
            FitJob(DecoderView(model), lacks, samples().batches(20)), targets={2: 4}, sites=Sites(("attn",), gathers=gathers)
        )
        for gathers in (True, False)
    )
    assert all(torch.equal(value, theirs.values[2][name]) for name, value in ours.values[2].items())
    swept = sweep_layers(
        FitJob(DecoderView(model), lacks, samples().batches(20)), targets={2: 4}, sites=Sites(("mlp", "attn"), gathers=True)
    )
    assert swept.layers[0].error_after < swept.layers[0].error_before


@pytest.mark.parametrize("n_held_out", [1, 3])
def test_a_batch_of_held_out_samples_alone_chooses_nothing(n_held_out):
    """41 samples in batches of four end in one sample, which a fold may hold out; it ended in a traceback."""
    view, batches = planted("llama"), samples(41).batches(4)
    readings, states = read_all(view, batches, Spill())
    states = [view.run_layer(1, view.run_layer(0, h, one), one) for h, one in zip(states, readings, strict=True)]
    folds = [torch.ones(len(batch.ids_BT), dtype=torch.int64) for batch in batches]
    probe, found = probe_of(view, batches), []
    for without in (False, True):
        held = [torch.zeros_like(fold) if i >= len(folds) - n_held_out else fold for i, fold in enumerate(folds)]
        n = len(folds) - (n_held_out if without else 0)
        ranking = Ranking(readings[:n], states[:n], held[:n])
        pool = NeuronPool(view, 2, probe=probe, ranking=ranking, config=FitConfig(), workers=ALONE)
        pool.visit(3)
        found.append(pool)
    assert len(found[0].score) and torch.equal(found[0].score, found[1].score)


def test_where_no_neurons_can_be_chosen_the_map_is_solved_as_without_them(monkeypatch):
    from shoal.fit.sites import neurons

    def singular(*args, **options):
        raise ValueError

    monkeypatch.setattr(neurons, "saliency", singular)
    view, lacks, batches = (
        DecoderView(tiny_model("llama")),
        Student(removed=frozenset({Unit("layer", 3)})),
        samples().batches(20),
    )
    ours, theirs = (
        sweep_layers(FitJob(view, lacks, batches), targets={2: 4}, sites=Sites(("mlp",), gathers=gathers))
        for gathers in (True, False)
    )
    assert [one.form for one in ours.layers[0].maps] == ["neurons", "weight"] and theirs.layers[0].n_kept == 1
    assert ours.layers[0].error_after == theirs.layers[0].error_after < ours.layers[0].error_before
    assert all(torch.equal(value, theirs.values[2][name]) for name, value in ours.values[2].items())


def test_a_map_that_was_solved_with_its_neurons_is_not_solved_again_at_once():
    view, lacks, batches = (
        DecoderView(tiny_model("llama")),
        Student(removed=frozenset({Unit("layer", 3)})),
        samples().batches(20),
    )
    (one,) = sweep_layers(
        FitJob(view, lacks, batches), targets={2: 4}, sites=Sites(("mlp", "attn", "mlp"), gathers=True)
    ).layers
    assert [place.form for place in one.maps] == ["neurons", "weight", "weight"]
    assert [place.parameters[-1] for place in one.maps] == [
        "mlp.down_proj.weight",
        "self_attn.o_proj.weight",
        "mlp.down_proj.weight",
    ]


def test_the_map_on_the_kept_neurons_is_the_ridge_solution_with_what_the_others_wrote_missing():
    """Normal equations of the change on what stays, where the change on what goes is minus what it wrote."""
    view = DecoderView(tiny_model("llama"))
    batches = samples().batches(20)
    place = gathering(view, 2, batches, removed=(3, 4)).site()
    draw = torch.Generator().manual_seed(0)
    n, ridge = place.n_pool, 1e-3
    h, noise = (torch.randn(500, width, generator=draw, dtype=torch.float64) for width in (n, 32))
    written, others = place._written(torch.device("cpu")), torch.randn(n, 32, generator=draw, dtype=torch.float64)
    own, wanted = torch.arange(n) < place.map.n_inputs, torch.arange(n) % 2 == 0
    others = torch.where(own[:, None], -written * ~wanted[:, None], others * wanted[:, None])
    r = h @ others + 1e-3 * noise  # Every second own neuron should write nothing, and every second other one something new.
    sums = place.no_sums(torch.device("cpu"))
    sums.add_tokens(h, r, weights_N=torch.ones(500, dtype=torch.float64), sinks_N=torch.zeros(500, dtype=torch.bool))
    change = place.solve([sums], ridge=ridge).change_ED[:-1]
    goes = ((written + change) == 0).all(1)
    assert torch.equal(~goes, wanted) and int(wanted.sum()) == place.map.n_inputs
    kept = (~goes).nonzero()[:, 0]
    assert torch.equal(change[goes], -written[goes])
    unit = ridge * h[:, kept].square().sum(0).mean()
    gradient = h[:, kept].mT @ (h @ change - r) + unit * change[kept]
    assert gradient.norm() < 1e-8 * (h[:, kept].mT @ r).norm()


def test_saliency_is_what_leaving_one_out_costs():
    draw = torch.Generator().manual_seed(0)
    h, r = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((60, 6), (60, 3)))
    h[:, 1] = h[:, 0] + 0.1 * h[:, 1]  # The two are alike: each can stand for the other.
    sums = no_sums(6, 3)
    sums.add_tokens(h, r, weights_N=torch.ones(60, dtype=torch.float64), sinks_N=torch.zeros(60, dtype=torch.bool))
    unit = 0.01 * h.square().sum(0).mean()

    def objective(columns):
        own = h[:, columns]
        m = torch.linalg.solve(own.mT @ own + unit * torch.eye(len(columns), dtype=torch.float64), own.mT @ r)
        return (r - own @ m).square().sum() + unit * m.square().sum()

    every = list(range(6))
    expected = [objective([j for j in every if j != i]) - objective(every) for i in every]
    torch.testing.assert_close(saliency(sums, ridge=0.01), torch.stack(expected))


@pytest.mark.in_turn(2)
@pytest.mark.parametrize(
    "family", ["gpt2", "llama", *(pytest.param(one, marks=pytest.mark.slow) for one in ("gpt_neox", "phi", "starcoder2"))]
)
@pytest.mark.parametrize("removed", [(2, 5), (2, 4)])
def test_candidates_of_layers_on_disk_are_those_of_layers_in_memory(family, removed, tmp_path):
    """Every layer's memory is another one's in turn; the file has the type that runs, so nothing is copied on the way."""
    model = tiny_model(family, n_layers=8)
    model.save_pretrained(tmp_path)
    opened, streamed = open_streamed(tmp_path, n_resident=1)
    lacks = Student(removed=frozenset(Unit("layer", layer) for layer in removed))
    kept = [layer for layer in range(8) if layer not in removed]
    targets = {layer: end for layer, end in zip(kept, [*kept[1:], 8], strict=True) if layer >= removed[0] - 1}
    ours, theirs = (
        sweep_layers(
            FitJob(view, lacks, samples().batches(20)),
            targets=targets,
            sites=Sites(("mlp", "attn", "mlp"), gathers=True),
            share=2 / 3,
        )
        for view in (DecoderView(opened.model, residency=streamed), DecoderView(model))
    )
    assert any(one.maps and one.maps[0].form == "neurons" for one in theirs.layers)
    assert ours.values.keys() == theirs.values.keys()
    for layer, own in theirs.values.items():
        assert all(torch.equal(ours.values[layer][name], value) for name, value in own.items())


def test_what_keeps_its_own_neurons_says_why():
    lacks = Student(removed=frozenset({Unit("layer", 3)}))
    swept = sweep_layers(
        FitJob(DecoderView(tiny_model("bitnet")), lacks, samples().batches(20)),
        targets={2: 4},
        sites=Sites(("mlp",), gathers=True),
    )
    assert len(swept.skipped) == 1 and swept.skipped[0].endswith("it keeps its own neurons")


def test_moved_and_partial_sums_are_sums_of_moved_and_partial_tokens():
    draw = torch.Generator().manual_seed(0)
    h, r, by = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((30, 7), (30, 3), (7, 3)))
    weights, sinks = torch.rand(30, generator=draw, dtype=torch.float64), torch.arange(30) % 10 == 0
    kept = torch.tensor([0, 3, 6])
    sums, expected_moved, expected_part = no_sums(7, 3), no_sums(7, 3), no_sums(3, 3)
    sums.add_tokens(h, r, weights_N=weights, sinks_N=sinks)
    expected_moved.add_tokens(h, r + h @ by, weights_N=weights, sinks_N=sinks)
    expected_part.add_tokens(h[:, kept], r, weights_N=weights, sinks_N=sinks)
    for ours, theirs in ((moved(sums, by), expected_moved), (part_of(sums, kept), expected_part)):
        for name in ("hh_EE", "hr_ED", "rr", "sink_E", "sink_r_D", "n_tokens"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))


@pytest.mark.parametrize("width", [3, 8, 100])
def test_the_diagonal_of_an_inverse_needs_no_inverse(width):
    a_PP = torch.randn(8, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a_PP = a_PP @ a_PP.mT
    found = diagonal_of_inverse(torch.linalg.cholesky(a_PP), width=width)
    torch.testing.assert_close(found, torch.linalg.inv(a_PP).diagonal())


def test_ranking_takes_the_first_batches_that_hold_its_tokens(monkeypatch):
    batches = samples(40).batches(10)
    monkeypatch.setattr("shoal.fit.sites.neuron_pool.RANKING_TOKENS", 10 * LENGTH + 1)
    assert ranking_batches(batches) == 2
    monkeypatch.setattr("shoal.fit.sites.neuron_pool.RANKING_TOKENS", 10**9)
    assert ranking_batches(batches) == len(batches)
