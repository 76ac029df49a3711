"""Neurons of removed layers in the MLP of the layer before a cut: found where planted, folded exactly, left where coupled."""

import pytest
import torch
from families import FAMILIES, VOCAB, tiny_model

from shoal.decoder import DecoderView, Student
from shoal.decoder.families import contribution
from shoal.fit.config import FitConfig
from shoal.fit.neurons import Gathering, diagonal_of_inverse, moved, neurons_of, part_of, ranking_batches
from shoal.fit.place import CannotRefit
from shoal.fit.states import read_all
from shoal.fit.sums import no_sums
from shoal.fit.sweep import probe_of, sweep_layers
from shoal.text.samples import Samples
from shoal.types import Batch, Unit
from shoal.workers import ALONE

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


def planted(family):
    """Layer 2 does nothing; layer 3 has an MLP alone, half of its neurons idle, and norms of its own."""
    model = tiny_model(family)
    view = DecoderView(model)
    for index in (2, 3):
        with view.residency.layer(index) as layer:
            silence(layer, "attn")
            if index == 2:
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


def gathering(view, layer, batches):
    readings, states = read_all(view, batches)
    for at in range(layer):
        states = [view.run_layer(at, h, reading).detach() for h, reading in zip(states, readings, strict=True)]
    probe = probe_of(view, batches)
    return Gathering(view, layer, probe=probe, readings=readings, inputs=states, config=FitConfig(), workers=ALONE)


@pytest.mark.parametrize("family", IN_PLACE_OF)
def test_the_neurons_of_a_removed_mlp_are_found_and_do_its_work(family):
    view, batches = planted(family), samples().batches(20)
    lacks = Student(removed=frozenset({Unit("layer", 3)}))
    swept = sweep_layers(view, lacks, batches, targets={2: 4}, kinds=("mlp",), gathers=True, config=FitConfig(ridge=1e-9))
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
    from shoal.fit import neurons

    return neurons._normed(norm, x)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_layer_takes_neurons_only_where_that_lowers_its_error(family):
    """In every family: what is gathered is not worse than nothing, and where nothing can be the sweep is the one without."""
    view, batches = DecoderView(tiny_model(family)), samples(24).batches(12)
    lacks = Student(removed=frozenset({Unit("layer", 3), Unit("layer", 4)}))
    try:
        with_, without = (
            sweep_layers(view, lacks, batches, targets={2: 5}, kinds=("mlp",), gathers=gathers) for gathers in (True, False)
        )
    except CannotRefit:
        return
    (ours,), (theirs,) = with_.layers, without.layers
    assert ours.error_after <= ours.error_before == theirs.error_before
    if ours.maps[0].form != "neurons":
        assert all(torch.equal(value, without.values[2][name]) for name, value in with_.values.get(2, {}).items())


def test_neurons_that_read_each_other_are_left():
    """A norm inside the MLP (BitNet): a neuron's answer depends on the others."""
    view = DecoderView(tiny_model("bitnet"))
    with pytest.raises(CannotRefit, match="layer 2 of this bitnet model.*read"):
        gathering(view, 2, samples(8).batches(8))


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
    monkeypatch.setattr("shoal.fit.neurons.RANKING_TOKENS", 10 * LENGTH + 1)
    assert ranking_batches(batches) == 2
    monkeypatch.setattr("shoal.fit.neurons.RANKING_TOKENS", 10**9)
    assert ranking_batches(batches) == len(batches)
