"""Laws of the figures by position: equal to loops over tokens, exact for a teacher against itself, blind to padding."""

import math

import pytest
import torch
from families import FAMILIES, tiny_model
from test_evaluate_compare import BATCHES, FROM, shown

from shoal.engine.student import TEACHER, Student
from shoal.engine.view import DecoderView
from shoal.evaluate.evaluation import closeness, compare
from shoal.evaluate.positions import PositionSums
from shoal.measure.divergence import overlap, predicts
from shoal.measure.oracle import token_figures
from shoal.show.figure_tables import positions
from shoal.words.types import Batch, Unit

CUT = Student(frozenset({Unit("layer", 1)}))


def drawn(*shape, seed=0):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_overlap_is_the_sum_of_the_smaller_probabilities():
    p, q = drawn(5, 7, 11), drawn(5, 7, 11, seed=1)
    naive = torch.minimum(p.double().softmax(-1), q.double().softmax(-1)).sum(-1)
    torch.testing.assert_close(overlap(p, q).double(), naive, rtol=0, atol=1e-6)  # Sums are fp32 of 11 terms up to 1.
    assert torch.equal(overlap(p, p), torch.ones(5, 7)) and torch.equal(overlap(p, q), overlap(q, p))
    even, sure = torch.zeros(1, 4), torch.tensor([[1e4, 0.0, 0.0, 0.0]])
    assert overlap(even, sure).item() == pytest.approx(1 / 4)
    assert overlap(sure, sure.roll(1, -1)).item() == 0.0


def test_overlap_is_the_rate_at_which_drafted_tokens_are_accepted():
    """Speculative sampling by its rule: draw from q, keep with probability min(1, p / q)."""
    p, q = (drawn(12, seed=seed).softmax(-1) for seed in (2, 3))
    generator = torch.Generator().manual_seed(4)
    tokens = torch.multinomial(q, 200_000, replacement=True, generator=generator)
    kept = torch.rand(200_000, generator=generator) < (p / q)[tokens]
    expected = overlap(p.log()[None], q.log()[None]).item()
    assert kept.double().mean().item() == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 200_000))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_teacher_against_itself_is_exact_at_every_position(family):
    view = DecoderView(tiny_model(family, n_layers=3))
    for other in (TEACHER, Student(), view):
        found = closeness(view, other, BATCHES).by_position
        for one in (found, *found.octaves):
            assert (one.kl, one.acceptance, one.agreement) == (0.0, 1.0, 1.0)


def test_equals_loops_over_tokens():
    view = DecoderView(tiny_model("llama", n_layers=3))
    per_position: dict[int, list[tuple[float, float, float]]] = {}
    for batch in BATCHES:
        p, q = (view.logits(batch, student=one).double().softmax(-1) for one in (TEACHER, CUT))
        lengths = [9, 9] if batch.mask_BT is None else batch.mask_BT.sum(1).tolist()
        for b, length in enumerate(lengths):
            for t in range(length - 1):
                a, c = p[b, t], q[b, t]
                figures = (float((a * (a / c).log()).sum()), float(torch.minimum(a, c).sum()), float(a.argmax() == c.argmax()))
                per_position.setdefault(t, []).append(figures)
    quality, found, _ = closeness(view, CUT, BATCHES)
    assert [(one.start, one.stop) for one in found.octaves] == [(0, 1), (1, 2), (2, 4), (4, 8)]
    for one in (*found.octaves, None):
        places = per_position if one is None else range(one.start, one.stop)
        rows = [row for t in places for row in per_position[t]]
        got = found if one is None else one
        assert got.n_tokens == len(rows)
        means = [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
        assert (got.kl, got.acceptance, got.agreement) == pytest.approx(means, abs=1e-5)  # Logits are fp32 of order 1.
    assert (found.kl, found.agreement, found.n_tokens) == pytest.approx((quality.kl, quality.agreement, quality.n_tokens))
    assert sum(one.n_tokens for one in found.octaves) == found.n_tokens


def figures(p_BTV, q_BTV, batch):
    """Of logits that are there as a whole."""
    where_BT = predicts(batch.ids_BT, batch.mask_BT)
    block = slice(0, int(where_BT.sum())), [one[:, :-1][where_BT] for one in (p_BTV, q_BTV)]
    return token_figures([block], batch, with_overlap=True)[0]


def test_sums_do_not_depend_on_how_samples_are_batched():
    ids_BT = BATCHES[0].ids_BT
    p, q = drawn(2, 9, 5), drawn(2, 9, 5, seed=1)
    whole, parts = PositionSums(), PositionSums()
    whole.add(figures(p, q, Batch(ids_BT % 5)))
    for b, length in ((0, 9), (1, 9)):
        one = Batch(ids_BT[b : b + 1, :length] % 5)
        parts.add(figures(p[b : b + 1], q[b : b + 1], one))
    a, b = whole.result(), parts.result()
    assert (a.kl, a.acceptance, a.agreement, a.octaves) == (b.kl, b.acceptance, b.agreement, b.octaves)


def test_padding_holds_anything():
    mask_BT = torch.tensor([[True] * 4 + [False] * 5, [True] * 9])
    batch = Batch(BATCHES[0].ids_BT % 5, mask_BT)
    p, q = drawn(2, 9, 5), drawn(2, 9, 5, seed=1)
    clean, dirty = PositionSums(), PositionSums()
    clean.add(figures(p, q, batch))
    q_nan = q.masked_fill(~mask_BT[..., None], math.nan)
    dirty.add(figures(p, q_nan, batch))
    assert clean.result() == dirty.result() and clean.result().n_tokens == 3 + 8
    with pytest.raises(ValueError, match="shorter than 2 tokens"):
        PositionSums().result()


def test_an_evaluation_holds_and_shows_them():
    view = DecoderView(tiny_model("llama", n_layers=3))
    found = compare(view, CUT, BATCHES, provenance=FROM)
    assert type(found).from_json(found.to_json()) == found and found.by_position is not None
    table = shown(positions(found.by_position))
    assert "4..7" in table and f"{100 * found.by_position.octaves[3].acceptance:.1f}" in table
