"""Laws of tokens and anatomy on planted states: who is a sink, what stays out, closed forms of mean and standard error."""

import math

import numpy as np
import pytest
import torch
from families import tiny_model
from text_world import BOS, word_tokenizer
from world import write_text

from shoal.engine.tensors import exact_bmm
from shoal.engine.view import Tap
from shoal.measure import gram as gram_file
from shoal.measure.criteria import TOKENS
from shoal.measure.gram import GramObserver, mean_and_stderr
from shoal.measure.scan import Scan
from shoal.measure.sinks import massive_tokens, sink_tokens
from shoal.words.types import Batch, Span

E, D = 4, 16


def planted(n_tokens=30, seed=0):
    """(E, 1, T, D) states of unit norm."""
    states = torch.randn(E, 1, n_tokens, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return states / states.norm(dim=-1, keepdim=True)


def observe(*many):
    gram = GramObserver(E - 1)
    for index, states in enumerate(many):
        batch = Batch(torch.zeros(states.shape[1:3], dtype=torch.long), None, index)
        gram.update(batch, {Tap("boundary", place): states[place] for place in range(E)})
    return gram


def table(gram, name):
    return next(one for one in gram.tables() if one.name == name)


def test_a_token_massive_at_any_boundary_is_a_sink_everywhere():
    states = planted()
    states[2, 0, 7] *= 21.0
    states[1, 0, 9] *= 19.0
    norms = states[:, 0].norm(dim=-1)
    assert sink_tokens(massive_tokens(norms)).nonzero().flatten().tolist() == [0, 7]
    gram = observe(states)
    assert gram.anatomy().n_sinks == 2 and gram.anatomy().n_massive == (0, 0, 1, 0)
    assert gram.anatomy().norm_rest == pytest.approx([1.0, 1.0 + 18 / 28, 1.0, 1.0])
    assert gram.anatomy().norm_sink == pytest.approx([1.0, 1.0, 11.0, 1.0])


def test_the_sink_owns_every_but_not_rest():
    calm, spoiled = planted(), planted()
    spoiled[2:, 0, 0] *= 1000.0
    assert table(observe(spoiled), "euclidean/rest")[Span(1, 2)] == table(observe(calm), "euclidean/rest")[Span(1, 2)]
    assert table(observe(spoiled), "euclidean/every")[Span(1, 2)] > 20 * table(observe(calm), "euclidean/every")[Span(1, 2)]


def test_every_is_the_token_weighted_mean_of_rest_and_sink():
    states = planted(n_tokens=10)
    states[1, 0, 4] *= 30.0
    gram = observe(states)
    values = {policy: table(gram, f"cosine/{policy}")[Span(0, 2)] for policy in TOKENS}
    assert values["every"] == pytest.approx((8 * values["rest"] + 2 * values["sink"]) / 10, rel=1e-12)


def test_an_update_that_is_undone_keeps_the_norms_of_a_massive_token():
    states = planted()
    states[1:3, 0, 0] = states[0, 0, 0] + 1e4 * states[1, 0, 0]
    states[3] = states[0]
    gram = observe(states)
    assert gram.anatomy().norm_sink[3] == pytest.approx(1.0, rel=1e-12)
    assert table(gram, "angular/sink")[Span(0, 3)] == pytest.approx(0.0, abs=1e-3)
    assert np.isfinite(table(gram, "angular/sink").values[np.triu_indices(E, 1)]).all()


def test_tokens_without_a_direction_count_nowhere():
    states = planted()
    spoiled = states.clone()
    spoiled[1, 0, 5] = 0.0
    kept = torch.tensor([index for index in range(30) if index != 5])
    ours, theirs = observe(spoiled), observe(states[:, :, kept])
    assert ours.anatomy().n_zero == 1 and ours.anatomy().n_tokens == 29
    for name in ("cosine/rest", "angular/every", "dot/last"):
        np.testing.assert_allclose(table(ours, name).values, table(theirs, name).values, rtol=1e-9)


def test_mean_and_standard_error_are_over_samples():
    many = [planted(seed=seed, n_tokens=5 + seed) for seed in range(6)]
    per_sample = [table(observe(states), "angular/rest")[Span(0, 3)] for states in many]
    together = table(observe(*many), "angular/rest")
    assert together[Span(0, 3)] == pytest.approx(np.mean(per_sample), rel=1e-12)
    assert together.stderr[0, 3] == pytest.approx(np.std(per_sample, ddof=1) / math.sqrt(6), rel=1e-9)


def test_standard_error_closed_form():
    values = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64)
    mean, stderr = mean_and_stderr(values.sum(), values.square().sum(), torch.tensor(4))
    assert mean == 4.0 and stderr == pytest.approx(math.sqrt((9 + 4 + 0 + 25) / 3 / 4))


@pytest.mark.parametrize("exact", [0.005, 0.01, 0.02, 1e-4])
def test_small_angles_of_bf16_states_survive(exact):
    """specs: all maths in bf16 reads 0.0047/0.0053/0.0122 here, with two or three distinct values."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(200, 1024, generator=generator, dtype=torch.float64)
    other = torch.randn(200, 1024, generator=generator, dtype=torch.float64)
    other -= (other * first).sum(-1, keepdim=True) / first.square().sum(-1, keepdim=True) * first
    other *= first.norm(dim=-1, keepdim=True) / other.norm(dim=-1, keepdim=True)
    second = math.cos(exact * math.pi) * first + math.sin(exact * math.pi) * other
    dtype = torch.bfloat16 if exact > 1e-3 else torch.float32  # Below this the rounding of bf16 states is itself larger.
    states = torch.stack([first, 1.25 * second])[:, None].to(dtype)
    gram = GramObserver(1)
    gram.update(Batch(torch.zeros(1, 200, dtype=torch.long)), {Tap("boundary", place): states[place] for place in (0, 1)})
    a, b = states[:, 0].double()
    u, v = a / a.norm(dim=-1, keepdim=True), b / b.norm(dim=-1, keepdim=True)
    chord = 2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1)) / math.pi
    # fp32 products lose 1e-7 of the squared growth 0.25², next to a squared chord of 1e-7 for the smallest angle
    assert table_of(gram)[Span(0, 1)] == pytest.approx(float(chord.mean()), rel=2e-5 if exact > 1e-3 else 2e-2)
    assert float(chord.mean()) == pytest.approx(exact, rel=0.05)


def table_of(gram):
    return next(one for one in gram.tables() if one.name == "angular/every")


def test_a_sample_longer_than_a_chunk_is_measured_whole(monkeypatch):
    states = planted(n_tokens=40)
    states[1, 0, 33] *= 30.0
    whole = observe(states)
    monkeypatch.setattr(gram_file, "CHUNK_BYTES", {"cpu": 1})  # Chunks have the least size, 16 tokens.
    pieces = observe(states)
    for one, other in zip(whole.tables(), pieces.tables(), strict=True):
        np.testing.assert_allclose(other.values, one.values, rtol=1e-12, err_msg=one.name)


def test_samples_of_any_order_of_lengths_are_summed_alike():
    """The buffer is as long as the longest sample so far, whatever the order."""
    short, long = planted(n_tokens=8), planted(n_tokens=40)
    assert [len(observe(*some)._deltas) for some in ((short,), (short, long), (long, short))] == [8, 40, 40]
    for one, other in zip(observe(short, long).tables(), observe(long, short).tables(), strict=True):
        np.testing.assert_allclose(other.values, one.values, rtol=1e-12, err_msg=one.name)


@pytest.mark.parametrize("asked", ["by backend", "at once"])
def test_products_are_in_full_fp32_whatever_the_process_has_set(asked, monkeypatch):
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    start, seen, bmm = [one.fp32_precision for one in backends], [], torch.bmm

    def spied(a, b):
        seen.append([one.fp32_precision for one in backends])
        return bmm(a, b)

    monkeypatch.setattr(torch, "bmm", spied)
    try:
        if asked == "at once":
            torch.set_float32_matmul_precision("medium")
        else:
            backends[0].fp32_precision = "tf32"
        before = [one.fp32_precision for one in backends]
        exact_bmm(torch.ones(1, 2, 2), torch.ones(1, 2, 2))
        assert seen == [["ieee", "ieee"]]
        assert [one.fp32_precision for one in backends] == before != seen[0]
    finally:
        torch.set_float32_matmul_precision("highest")
        for one, precision in zip(backends, start, strict=True):
            one.fp32_precision = precision


def test_a_start_token_that_embeds_as_zero_stops_nothing(shoal, tmp_path):
    """Where padding and start share a row of the embedding, training leaves it at zero: such tokens count nowhere."""
    model = tiny_model("llama", n_layers=4)
    with torch.no_grad():
        model.get_input_embeddings().weight[BOS] = 0.0
    model.save_pretrained(tmp_path / "m")
    word_tokenizer(40).save_pretrained(tmp_path / "m")
    text = ("--text", write_text(tmp_path / "t.jsonl"), "--length", 16, "--samples", 8)
    code, out, err = shoal("scan", "m", "--out", "run", *text, "--json")
    assert code == 0, err
    found = Scan.load(tmp_path / "run").anatomy
    assert found.n_sinks == 0 and found.n_zero == found.n_samples and all(math.isnan(one) for one in found.norm_sink)
    assert shoal("report", "run")[0] == 0
