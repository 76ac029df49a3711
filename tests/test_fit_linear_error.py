"""Spans ranked by their error after the best affine map: planted affine layers, a naive reference, and what may not matter."""

import math
from dataclasses import replace

import pytest
import torch
from families import VOCAB, every_family, tiny_model

from shoal.edits.replace.layer import LayerReplacement
from shoal.engine.passes import run_pass
from shoal.engine.streamed import open_streamed
from shoal.engine.view import DecoderView
from shoal.fit.linear_error import LINEAR_ERROR, N_FOLDS, LinearErrorObserver, bytes_per_span, linear_errors
from shoal.fit.solve import RIDGES
from shoal.measure.scan import add_states
from shoal.select.budget import parse_budget
from shoal.select.model_size import NOTHING, model_size, put_back_of
from shoal.select.request import Evidence, LateTable, Request
from shoal.select.shortlist import shortlist
from shoal.words.records import stable_hash
from shoal.words.types import Batch, Span

L, T = 6, 40
SPANS = [Span(1, 3), Span(2, 4), Span(3, 5)]
IDS_BT = torch.randint(3, VOCAB, (24, T), generator=torch.Generator().manual_seed(0))
BATCHES = [Batch(IDS_BT[:12], None, 0), Batch(IDS_BT[12:], None, 1)]


def view_of(family="llama"):
    return DecoderView(tiny_model(family, n_layers=L))


def naive(view, span):
    """Every ridge by augmented least squares on stored states, in fp64; no sinks occur in these models."""
    folds = {fold: ([], []) for fold in range(N_FOLDS)}
    for ids_T in IDS_BT:
        states = dict(view.stream(view.read(Batch(ids_T[None]))))
        x, y = states[span.start][0].double(), states[span.stop][0].double()
        fold = int(stable_hash(ids_T.contiguous().numpy().tobytes()), 16) % N_FOLDS
        folds[fold][0].append(x), folds[fold][1].append(y)
    data = {}
    for fold, (xs, ys) in folds.items():
        x, y = torch.cat(xs), torch.cat(ys)
        root = 1 / y.norm(dim=-1, keepdim=True)
        data[fold] = torch.cat([x, torch.ones(len(x), 1)], dim=-1).double() * root, (y - x) * root
    n = sum(len(a) for a, _ in data.values())
    errors = []
    for ridge in RIDGES:
        total = 0.0
        for fold, (a, r) in data.items():
            others = [data[one] for one in data if one != fold]
            a_fit, r_fit = torch.cat([one[0] for one in others]), torch.cat([one[1] for one in others])
            if math.isinf(ridge):
                change = torch.zeros(a.shape[1], r.shape[1], dtype=torch.float64)
            else:
                gram = a_fit.mT @ a_fit
                lift = gram.diagonal().clone()
                lift[:], lift[-1] = ridge * gram.diagonal()[:-1].mean(), 0.0
                change = torch.linalg.solve(gram + torch.diag(lift), a_fit.mT @ r_fit)
            total += float((r - a @ change).detach().square().sum())
        errors.append(total / n)
    return min(errors)


def test_errors_equal_a_naive_reference():
    view = view_of()
    table = linear_errors(view, BATCHES, spans=SPANS)
    assert table.name == LINEAR_ERROR and not table.higher_is_more_redundant
    for span in SPANS:
        assert table[span] == pytest.approx(naive(view, span), rel=1e-4)  # Products of the sums are in fp32.
    assert math.isnan(table[Span(0, 1)]) and math.isnan(table[Span(1, 2)])


def test_an_identity_costs_nothing_and_a_large_linear_change_next_to_nothing():
    """Layer 2 swaps signs and scales of the stream (cosine far from 1) but linearly; it ranks before a small nonlinear one."""
    view = view_of()
    width = view.hidden_size
    rotation = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(1)))[0]

    class Turn(torch.nn.Module):
        def forward(self, h, *args, **kwargs):
            return h @ rotation.T * 1.5 + 0.1

    class Same(torch.nn.Module):
        def forward(self, h, *args, **kwargs):
            return h

    layers = view.model.model.layers
    layers[2], layers[4] = Turn(), Same()
    view = DecoderView(view.model)
    singles = [Span(layer, layer + 1) for layer in range(L)]
    table = linear_errors(view, BATCHES, spans=singles)
    assert table[Span(4, 5)] == 0.0
    assert table[Span(2, 3)] < 1e-6
    assert all(table[one] > 1e-3 for one in singles if one.start not in (2, 4))
    plain = sum(_relative_change(view, Batch(ids_T[None]), Span(2, 3)) for ids_T in IDS_BT) / len(IDS_BT)
    assert plain > 0.5, "the planted change is large, so a score without a map would rank it last"


def _relative_change(view, batch, span):
    states = dict(view.stream(view.read(batch)))
    x, y = states[span.start][0], states[span.stop][0]
    return float(((y - x).square().sum(-1) / y.square().sum(-1)).mean().detach())


def observed(view, batches):
    observer = LinearErrorObserver(SPANS, hidden_size=view.hidden_size)
    run_pass(view, batches, observers=[observer])
    return observer


def test_shards_add_up_and_a_loaded_state_continues_bit_for_bit():
    view = view_of()
    whole, left, right = observed(view, BATCHES), observed(view, BATCHES[:1]), observed(view, BATCHES[1:])
    for name, value in add_states([left.state(), right.state()]).items():
        torch.testing.assert_close(value, whole.state()[name], rtol=1e-12, atol=1e-12)
    left.load_state(left.state())
    run_pass(view, BATCHES[1:], observers=[left])
    assert all(torch.equal(value, whole.state()[name]) for name, value in left.state().items())
    with pytest.raises(ValueError, match="other spans"):
        left.load_state(LinearErrorObserver(SPANS[:1], hidden_size=view.hidden_size).state())


def test_padding_changes_nothing():
    view = view_of()
    wide_BT = torch.cat([IDS_BT, torch.full((24, 5), 7)], dim=1)
    mask_BT = torch.ones_like(wide_BT, dtype=torch.bool)
    mask_BT[:, T:] = False
    padded = linear_errors(view, [Batch(wide_BT, mask_BT, 0)], spans=SPANS)
    plain = linear_errors(view, BATCHES, spans=SPANS)
    for span in SPANS:
        assert padded[span] == pytest.approx(plain[span], rel=1e-4)  # States are fp32 under another mask.


@pytest.mark.parametrize("family", every_family())
def test_a_streamed_model_gives_the_same_bits(family, tmp_path):
    tiny_model(family, n_layers=L).save_pretrained(tmp_path)
    from shoal.engine.open import open_model

    opened, streamed = open_streamed(tmp_path)
    ours = linear_errors(DecoderView(opened.model, residency=streamed), BATCHES, spans=SPANS)
    theirs = linear_errors(DecoderView(open_model(tmp_path).model), BATCHES, spans=SPANS)
    assert [ours[span] for span in SPANS] == [theirs[span] for span in SPANS]


def test_the_bytes_are_those_of_the_sums():
    sums = LinearErrorObserver([Span(0, 1)], hidden_size=16).state().values()
    large = sum(value.numel() * value.element_size() for value in sums if value.ndim == 2)
    assert bytes_per_span(16) >= large > 0.9 * bytes_per_span(16)


def test_the_selector_takes_the_span_of_least_error():
    """By this score alone: the wanted length only, of exactly the layers that go, whatever is put back."""
    view = view_of()
    seen = []

    def measure(spans):
        seen.append(list(spans))
        return linear_errors(view, BATCHES, spans=spans)

    size = model_size(view)
    for put_back in (NOTHING, put_back_of(LayerReplacement(), 32)):
        request = Request(n_layers=L, by=LINEAR_ERROR, n_candidates=1, put_back=put_back)
        (chosen,) = shortlist(parse_budget("2"), size, request, Evidence(late=LateTable(LINEAR_ERROR, measure))).candidates
        allowed = [span for span in seen[-1]]
        assert {span.n for span in allowed} == {2} and (put_back == NOTHING) == (Span(0, 2) in allowed)
        table = linear_errors(view, BATCHES, spans=allowed)
        assert Span(chosen.layers[0], chosen.layers[-1] + 1) == min(allowed, key=lambda span: table[span])


def test_spans_are_measured_in_the_order_of_the_wanted_score():
    """A scorer that can hold few spans measures the most promising ones."""
    view = view_of()
    values = linear_errors(view, BATCHES, spans=[Span(start, start + 2) for start in range(L - 1)])
    known = replace(values, criterion="cosine", tokens="rest")
    asked = []

    def measure(spans):
        asked.extend(spans)
        return values

    request = Request(n_layers=L, by="cosine/rest", n_candidates=1)
    shortlist(
        parse_budget("2"), model_size(view), request, Evidence({"cosine/rest": known}, late=LateTable(LINEAR_ERROR, measure))
    )
    assert asked == sorted(asked, key=lambda span: (known[span], -span.start)) and len(asked) == L - 1
