"""Strided perplexity equals a reference that scores one token at a time, whatever the batching, the family or the student."""

import math

import pytest
import torch
from families import VOCAB, every_family, tiny_model

from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.evaluate.perplexity import perplexities, perplexity, windows
from shoal.words.types import Unit

IDS_T = torch.randint(3, VOCAB, (29,), generator=torch.Generator().manual_seed(1))
SHAPES = [(8, 4, 29), (8, 8, 29), (8, 1, 12), (5, 3, 29), (40, 20, 29), (8, 8, 25), (7, 7, 15), (2, 1, 6), (2, 2, 5)]


def naive(model, ids, *, window, stride, start=()):
    """One forward per scored token: the token's context is what the definition says, computed on its own."""
    total, n, room, start_T = 0.0, 0, window - len(start), torch.tensor(start, dtype=torch.long)
    for target in range(len(ids)):
        k = 0 if target < room else math.ceil((target + 1 - room) / stride)
        spelled = torch.equal(ids[k * stride :][: len(start)], start_T)
        context_T = ids[k * stride : target] if spelled else torch.cat([start_T, ids[k * stride : target]])
        if not len(context_T):
            continue  # Without a start token the first token is not scored, and with stride == window that of every block.
        with torch.no_grad():
            logits = model(input_ids=context_T[None], use_cache=False).logits[0, -1]
        total -= logits.double().log_softmax(-1)[ids[target]].item()
        n += 1
    return total / n, n


@pytest.mark.parametrize(("window", "stride", "n"), SHAPES)
def test_every_token_but_the_first_is_scored_once_with_enough_context(window, stride, n):
    scored = [(target, target - w.start) for w in windows(n, window=window, stride=stride) for target in range(w.first, w.stop)]
    skipped = {0} if stride < window else set(range(0, n, window))
    assert [target for target, _ in scored] == [t for t in range(n) if t not in skipped]
    if stride < window:
        assert all(context >= min(target, window - stride) for target, context in scored)
    assert all(w.stop - w.start <= window for w in windows(n, window=window, stride=stride))


@pytest.mark.parametrize(("window", "stride", "n"), SHAPES)
def test_equals_the_token_by_token_reference(window, stride, n):
    model = tiny_model("llama", n_layers=3)
    nll, count = naive(model, IDS_T[:n], window=window, stride=stride)
    got = perplexity(DecoderView(model), IDS_T[:n], window=window, stride=stride, batch_size=3)
    assert got.n_tokens == count
    assert got.nll == pytest.approx(nll, rel=1e-5), "fp32 forwards of different lengths"
    assert got.value == math.exp(got.nll)


@pytest.mark.parametrize("start", [(1,), (1, 2)])
@pytest.mark.parametrize(("window", "stride", "n"), [(8, 4, 29), (8, 6, 29), (5, 3, 29), (40, 20, 29), (3, 1, 6)])
def test_with_start_tokens_every_window_begins_with_them_and_every_token_is_scored(window, stride, n, start):
    model = tiny_model("llama", n_layers=3)
    nll, count = naive(model, IDS_T[:n], window=window, stride=stride, start=start)
    got = perplexity(DecoderView(model), IDS_T[:n], window=window, stride=stride, start=start, batch_size=3)
    assert got.n_tokens == count == n and got.start == start
    assert got.nll == pytest.approx(nll, rel=1e-5)


@pytest.mark.parametrize("start", [(1,), (1, 2)])
@pytest.mark.parametrize("places", [(0,), (4, 8, 20), (0, 24, 27)])
def test_start_tokens_that_the_text_spells_are_not_doubled(places, start):
    model, ids_T = tiny_model("llama", n_layers=3), IDS_T.clone()
    for at in places:
        ids_T[at : at + len(start)] = torch.tensor(start)
    nll, count = naive(model, ids_T, window=8, stride=4, start=start)
    got = perplexity(DecoderView(model), ids_T, window=8, stride=4, start=start, batch_size=3)
    assert got.n_tokens == count and got.nll == pytest.approx(nll, rel=1e-5)


@pytest.mark.parametrize("family", every_family())
def test_equals_the_reference_on_every_family(family):
    model = tiny_model(family, n_layers=3)
    nll, _ = naive(model, IDS_T[:14], window=8, stride=4)
    got = perplexity(DecoderView(model), IDS_T[:14], window=8, stride=4)
    assert got.nll == pytest.approx(nll, rel=1e-4)


def test_batching_does_not_enter_the_definition():
    view = DecoderView(tiny_model("qwen3", n_layers=3))
    one, many = (perplexity(view, IDS_T, window=8, stride=4, batch_size=b) for b in (1, 5))
    assert one.nll == pytest.approx(many.nll, rel=1e-6) and one.n_tokens == many.n_tokens


def test_uniform_model_has_the_vocabulary_as_perplexity():
    model = tiny_model("llama", n_layers=2)
    torch.nn.init.zeros_(model.lm_head.weight)
    assert perplexity(DecoderView(model), IDS_T, window=8, stride=4).value == pytest.approx(VOCAB, rel=1e-6)


def test_students_of_one_pass_equal_students_alone():
    view = DecoderView(tiny_model("llama", n_layers=4))
    students = [Student(frozenset({Unit("layer", 2)})), Student(), Student(frozenset({Unit("attn", 1), Unit("mlp", 3)}))]
    together = perplexities(view, IDS_T, window=8, stride=4, students=students)
    assert together == [perplexity(view, IDS_T, window=8, stride=4, student=s) for s in students]
    assert len({one.nll for one in together}) == 3


def test_a_removed_layer_equals_the_model_without_it():
    model = tiny_model("llama", n_layers=4)
    student = perplexity(DecoderView(model), IDS_T, window=8, stride=4, student=Student(frozenset({Unit("layer", 1)})))
    del model.model.layers[1]
    model.config.num_hidden_layers = 3
    assert student == perplexity(DecoderView(model), IDS_T, window=8, stride=4)


@pytest.mark.parametrize(
    ("ids", "window", "stride", "message"),
    [
        (IDS_T, 8, 9, r"stride=9 needs 1\.\.8"),
        (IDS_T, 8, 0, r"stride=0 needs 1\.\.8"),
        (IDS_T, 1, 1, "window=1 needs at least 2"),
        (IDS_T[:1], 8, 4, "at least 2 tokens, got 1"),
        (IDS_T[None], 8, 4, r"one row of token ids, got the shape \(1, 29\)"),
    ],
)
def test_impossible_requests_are_refused(ids, window, stride, message):
    view = DecoderView(tiny_model("llama", n_layers=2))
    with pytest.raises(ValueError, match=message):
        perplexity(view, ids, window=window, stride=stride)


def test_start_tokens_leave_less_of_the_window():
    view = DecoderView(tiny_model("llama", n_layers=2))
    with pytest.raises(ValueError, match=r"stride=8 needs 1\.\.7 \(the window beside 1 start token\)"):
        perplexity(view, IDS_T, window=8, stride=8, start=(1,))
    with pytest.raises(ValueError, match="window=2 needs more than the 2 start tokens"):
        perplexity(view, IDS_T, window=2, stride=1, start=(1, 2))
