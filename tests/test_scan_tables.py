"""Laws of the scan: it equals a naive reference, identity layers score exactly 0, padding and batching do not matter."""

import math

import numpy as np
import pytest
import torch
from families import VOCAB, every_family, tiny_model

from shoal.engine.passes import run_pass
from shoal.engine.student import Student
from shoal.engine.view import DecoderView, Tap
from shoal.fit.linear_error import LinearErrorObserver
from shoal.measure.cka import CkaObserver
from shoal.measure.criteria import CRITERIA, TOKENS
from shoal.measure.gram import N_PARTS, GramObserver, fold_of_text
from shoal.measure.scan import add_states, finish, scan
from shoal.show.plan_tables import best_span
from shoal.words.records import Provenance
from shoal.words.types import Batch, Span, Unit

N_LAYERS = 4
SOURCE = Provenance(
    model="m", model_hash="", data="d", data_hash="", n_samples=0, n_tokens=0, length=12, seed=0, dtype="float32"
)


def samples(n=5, shortest=4, longest=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.linspace(shortest, longest, n).long().tolist()
    return [torch.randint(3, VOCAB, (length,), generator=generator) for length in lengths]


def padded(texts, index=0):
    longest = max(len(text) for text in texts)
    ids, mask = torch.zeros(len(texts), longest, dtype=torch.long), torch.zeros(len(texts), longest, dtype=torch.bool)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, True
    return Batch(ids, mask, index)


def singles(texts):
    return [Batch(text[None], None, index) for index, text in enumerate(texts)]


def states_of(view, text):
    """(E, T, D) float64 boundaries of one unpadded sample."""
    reading = view.read(Batch(text[None]))
    return torch.stack([h[0].detach().double() for _, h in view.stream(reading)])


def sinks_of(states):
    norms = states.norm(dim=-1)
    sinks = (norms > 20 * norms.median(dim=1, keepdim=True).values).any(dim=0)
    sinks[0] = True
    return sinks


def tokens_of(policy, sinks):
    every = torch.ones_like(sinks)
    last = torch.arange(len(sinks)) == len(sinks) - 1
    return {"last": last, "rest": ~sinks, "every": every, "sink": sinks}[policy]


NAIVE = {
    "cosine": lambda a, b: torch.cosine_similarity(a, b, dim=-1),
    "angular": lambda a, b: torch.cosine_similarity(a, b, dim=-1).clamp(-1, 1).arccos() / math.pi,
    "block_influence": lambda a, b: 1 - torch.cosine_similarity(a, b, dim=-1),
    "relative_magnitude": lambda a, b: (b - a).norm(dim=-1) / b.norm(dim=-1),
    "euclidean": lambda a, b: (b - a).norm(dim=-1),
    "dot": lambda a, b: (a * b).sum(dim=-1),
}


def naive(samples_states, criterion, policy, span):
    """Mean over samples of the mean over a sample's tokens, and its standard error, the obvious way."""
    means = []
    for states in samples_states:
        chosen = tokens_of(policy, sinks_of(states))
        means.append(float(NAIVE[criterion](states[span.start], states[span.stop])[chosen].mean()))
    return np.mean(means), np.std(means, ddof=1) / math.sqrt(len(means))


ALL_SPANS = [Span(a, b) for a in range(N_LAYERS) for b in range(a + 1, N_LAYERS + 1)]


def test_the_reference_knows_every_criterion():
    assert set(NAIVE) == set(CRITERIA)


@pytest.mark.parametrize("family", every_family())
def test_every_table_equals_a_naive_reference(family):
    view = DecoderView(tiny_model(family, n_layers=N_LAYERS))
    texts = samples()
    result = scan(view, [padded(texts[:3], 0), padded(texts[3:], 1)], provenance=SOURCE)
    assert set(result.tables) == {f"{criterion}/{tokens}" for criterion in CRITERIA for tokens in TOKENS}
    spans = ALL_SPANS if family == "llama" else ALL_SPANS[::3]
    states = [states_of(view, text) for text in texts]
    for table in result.tables.values():
        scale = np.nanmax(np.abs(table.values))
        for span in spans:
            mean, stderr = naive(states, table.criterion, table.tokens, span)
            # Products and states are fp32, and padded and unpadded kernels of fp32 layers differ.
            assert table[span] == pytest.approx(mean, rel=2e-4, abs=2e-5 * scale), (table.name, span)
            assert table.stderr[span.start, span.stop] == pytest.approx(stderr, rel=2e-2, abs=2e-5 * scale), (table.name, span)
        assert table.n_samples == len(texts)
        assert np.isnan(table.values[np.tril_indices(N_LAYERS + 1)]).all()


def plant_identity(model, view, layers):
    for layer in layers:
        for kind in ("attn", "mlp"):
            path = f"{view.layers_path}.{layer}.{view.map_names(layer)[kind]}"
            out = model.get_submodule(path)
            for parameter in out.parameters():
                parameter.data.zero_()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gpt_neox", "phi", "opt", "granite", "starcoder2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_identity_layers_score_exactly_nothing_and_come_first(family, dtype):
    model = tiny_model(family, n_layers=6)
    view = DecoderView(model)
    plant_identity(model, view, (2, 3))
    view = DecoderView(model.to(dtype))
    result = scan(view, [padded(samples())], provenance=SOURCE)
    for name, table in result.tables.items():
        if table.criterion == "dot":
            continue
        nothing = 1.0 if table.criterion == "cosine" else 0.0
        for span in (Span(2, 3), Span(3, 4), Span(2, 4)):
            assert table[span] == nothing, name
            assert table.stderr[span.start, span.stop] == 0.0
        assert best_span(table, 2) == Span(2, 4)
        assert best_span(table, 1) in (Span(2, 3), Span(3, 4))
        # Around an identity nothing changes: the same states give the same bits.
        assert table[Span(0, 2)] == table[Span(0, 3)] == table[Span(0, 4)]


def test_a_removed_layer_of_an_observed_student_scores_nothing():
    view = DecoderView(tiny_model("llama", n_layers=N_LAYERS))
    student = Student(frozenset({Unit("layer", 1)}))
    result = scan(view, singles(samples()), provenance=SOURCE, observed=student)
    assert result["angular/last"][Span(1, 2)] == 0.0
    assert result["angular/last"][Span(2, 3)] > 0.0


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_padding_and_batch_size_do_not_matter(family):
    view = DecoderView(tiny_model(family, n_layers=N_LAYERS))
    texts = samples()
    alone = scan(view, singles(texts), provenance=SOURCE)
    together = scan(view, [padded(texts)], provenance=SOURCE)
    for name in alone.tables:
        # Kernels of another shape round differently.
        np.testing.assert_allclose(together[name].values, alone[name].values, rtol=3e-4, atol=2e-6, err_msg=name)
    assert together.anatomy.n_tokens == alone.anatomy.n_tokens == sum(len(text) for text in texts)
    assert together.provenance.n_samples == len(texts)


def test_what_stands_in_padding_changes_no_bit():
    gram_a, gram_b = GramObserver(2), GramObserver(2)
    states = torch.randn(3, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]]).bool()
    spoiled = torch.where(mask[None, :, :, None], states, torch.tensor(torch.nan))
    batch = Batch(torch.zeros(2, 6, dtype=torch.long), mask)
    for gram, values in ((gram_a, states), (gram_b, spoiled)):
        gram.update(batch, {Tap("boundary", index): values[index] for index in range(3)})
    assert all(torch.equal(gram_b.state()[name], total) for name, total in gram_a.state().items())


def test_left_padding_is_refused():
    mask = torch.tensor([[0, 1, 1]]).bool()
    values = {Tap("boundary", index): torch.ones(1, 3, 4) for index in range(2)}
    with pytest.raises(ValueError, match="padded on the right"):
        GramObserver(1).update(Batch(torch.zeros(1, 3, dtype=torch.long), mask), values)


def test_the_same_batches_give_the_same_bits():
    view = DecoderView(tiny_model("llama", n_layers=N_LAYERS))
    batches = [padded(samples())]
    first, second = (scan(view, batches, provenance=SOURCE) for _ in range(2))
    assert all(np.array_equal(second[name].values, table.values, equal_nan=True) for name, table in first.tables.items())


def test_shards_add_up_to_the_whole_and_a_loaded_state_continues_bit_for_bit():
    view = DecoderView(tiny_model("llama", n_layers=N_LAYERS))
    batches = singles(samples())
    whole, left, right, resumed = (GramObserver(N_LAYERS) for _ in range(4))
    run_pass(view, batches, observers=[whole])
    run_pass(view, batches[:2], observers=[left])
    run_pass(view, batches[2:], observers=[right])
    resumed.load_state(left.state())
    run_pass(view, batches[2:], observers=[resumed])
    joined = add_states([left.state(), right.state()])
    for name, total in whole.state().items():
        assert torch.equal(resumed.state()[name], total)
        torch.testing.assert_close(joined[name], total, rtol=1e-12, atol=1e-12)  # Sums are fp64 in another order.
    merged = GramObserver(N_LAYERS)
    merged.load_state(joined)
    table = finish(merged, provenance=SOURCE)["cosine/rest"]
    np.testing.assert_allclose(table.values, finish(whole, provenance=SOURCE)["cosine/rest"].values, rtol=1e-12)


OBSERVERS = {
    "gram": lambda view: GramObserver(N_LAYERS),
    "cka": lambda view: CkaObserver(N_LAYERS, length=40, n_tokens=8),
    "linear error": lambda view: LinearErrorObserver([Span(0, 2), Span(1, 3)], hidden_size=view.hidden_size),
}


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_samples_of_a_batch_one_by_one_add_the_same_bits(observer, dtype):
    view = DecoderView(tiny_model("llama", n_layers=N_LAYERS).to(dtype))
    whole, one_by_one = OBSERVERS[observer](view), OBSERVERS[observer](view)
    for batch in (padded(samples(shortest=9, longest=40)), padded(samples(n=3, shortest=20, longest=20, seed=1), index=1)):
        values = {Tap("boundary", index): h.detach() for index, h in view.stream(view.read(batch))}
        whole.update(batch, values)
        for row in range(len(batch.ids_BT)):
            one_by_one.update(batch.sample(row), {tap: h_BTD[row : row + 1].clone() for tap, h_BTD in values.items()})
    assert all(torch.equal(one_by_one.state()[name], total) for name, total in whole.state().items())
    assert any(total.any() for total in whole.state().values())


def test_sums_of_another_depth_are_refused():
    with pytest.raises(ValueError, match="scan again"):
        GramObserver(3).load_state(GramObserver(4).state())


def test_the_last_boundary_is_before_the_final_norm():
    model = tiny_model("llama", n_layers=N_LAYERS)
    view = DecoderView(model)
    texts = singles(samples())
    before = scan(view, texts, provenance=SOURCE)
    model.model.norm.weight.data.normal_(0.0, 3.0)
    after = scan(view, texts, provenance=SOURCE)
    assert all(np.array_equal(after[name].values, table.values, equal_nan=True) for name, table in before.tables.items())


def test_no_samples_is_an_error():
    with pytest.raises(ValueError, match="no samples"):
        scan(DecoderView(tiny_model("llama", n_layers=2)), [], provenance=SOURCE)


def test_one_sample_has_no_standard_error_and_one_token_no_rest():
    result = scan(DecoderView(tiny_model("llama", n_layers=2)), singles([torch.tensor([5])]), provenance=SOURCE)
    assert np.isnan(result["cosine/rest"].values).all() and result["cosine/rest"].n_samples == 0
    assert np.isfinite(result["cosine/last"].values[0, 1]) and np.isnan(result["cosine/last"].stderr[0, 1])
    assert result["cosine/last"][Span(0, 1)] == result["cosine/sink"][Span(0, 1)]


def test_every_part_is_the_scan_of_its_own_samples():
    """The parts are disjoint, cover the text, and do not depend on batching."""
    view = DecoderView(tiny_model("llama", n_layers=N_LAYERS))
    texts = samples(n=11)
    whole = scan(view, [padded(texts[:4]), padded(texts[4:], 1)], provenance=SOURCE)
    members = [[text for text in texts if fold_of_text(text) == part] for part in range(N_PARTS)]
    assert sorted(len(one) for one in members)[-2] > 0, "the texts of this test should fill at least two parts"
    for part, own in enumerate(members):
        for name, table in whole.tables.items():
            assert table.parts.shape == (N_PARTS, N_LAYERS + 1, N_LAYERS + 1)
            if not own:
                assert np.isnan(table.parts[part]).all()
                continue
            alone = scan(view, singles(own), provenance=SOURCE)[name]
            np.testing.assert_allclose(table.parts[part], alone.values, rtol=1e-5, atol=1e-6)  # States are fp32, padded or not.
