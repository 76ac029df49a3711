"""Divergences have closed forms, and the oracle equals measuring saved students one by one."""

import copy
import math

import pytest
import torch
from families import FAMILIES, VOCAB, tiny_model

from shoal.edits.replace.layer import LayerReplacement
from shoal.engine.student import TEACHER, Attached, Student
from shoal.engine.view import DecoderView
from shoal.evaluate.evaluation import closeness
from shoal.measure import divergence
from shoal.measure.counted import head_blocks
from shoal.measure.divergence import forward_kl, jensen_shannon, predicts, reverse_kl, token_nll, top1_agreement
from shoal.measure.one_pass import compare_tokens
from shoal.measure.oracle import Oracle, Quality, QualitySums, token_figures
from shoal.words.types import Batch, Span, Unit

GENERATOR = torch.Generator().manual_seed(0)
IDS_BT = torch.randint(3, VOCAB, (4, 11), generator=GENERATOR)
MASK_BT = torch.arange(11)[None] < torch.tensor([7, 11, 3, 1])[:, None]
BATCHES = [Batch(IDS_BT, index=0), Batch(IDS_BT.where(MASK_BT, 0), MASK_BT, index=1)]


def logits(*shape, scale=3.0, dtype=torch.float32):
    return (torch.randn(*shape, generator=GENERATOR) * scale).to(dtype)


def without(*layers):
    return Student(removed=frozenset(Unit("layer", layer) for layer in layers))


def naive_kl(p_logits, q_logits):
    p, q = p_logits.double().softmax(-1), q_logits.double().softmax(-1)
    return (p * (p.log() - q.log())).sum(-1)


# -- divergences -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0])
def test_kl_equals_the_definition_in_fp64(dtype, scale):
    p, q = logits(5, 7, 50, scale=scale, dtype=dtype), logits(5, 7, 50, scale=scale, dtype=dtype)
    # Arithmetic in fp32 errs by a few units in the last of 24 bits, summed over 50 entries.
    torch.testing.assert_close(forward_kl(p, q).double(), naive_kl(p, q), rtol=2e-5, atol=1e-9)
    torch.testing.assert_close(reverse_kl(p, q).double(), naive_kl(q, p), rtol=2e-5, atol=1e-9)


def test_two_tokens_closed_form():
    # The distributions are p = (3/4, 1/4) and q = (1/2, 1/2).
    p, q = torch.tensor([math.log(3.0), 0.0]), torch.zeros(2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert forward_kl(p, q).item() == pytest.approx(expected, rel=1e-6)
    assert reverse_kl(p, q).item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2), rel=1e-6)
    m = (0.625, 0.375)
    js = (
        0.75 * math.log(0.75 / m[0]) + 0.25 * math.log(0.25 / m[1]) + 0.5 * math.log(0.5 / m[0]) + 0.5 * math.log(0.5 / m[1])
    ) / 2
    assert jensen_shannon(p, q).item() == pytest.approx(js, rel=1e-6)


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_equal_logits_give_exactly_zero(scale):
    p = logits(3, 40, scale=scale)
    for measure in (forward_kl, reverse_kl, jensen_shannon):
        assert torch.equal(measure(p, p.clone()), torch.zeros(3)), measure.__name__
    assert top1_agreement(p, p).all()


def test_masked_vocabulary_entries_count_for_nothing():
    p, q = logits(3, 40), logits(3, 40)
    dead = torch.full((3, 5), -torch.inf)
    torch.testing.assert_close(forward_kl(torch.cat([p, dead], 1), torch.cat([q, dead], 1)), forward_kl(p, q))


def test_confident_logits_stay_finite_and_right():
    p, q = torch.tensor([[1000.0, 0.0, -1000.0]]), torch.tensor([[0.0, 1000.0, -1000.0]])
    assert forward_kl(p, q).item() == pytest.approx(1000.0)
    assert jensen_shannon(p, q).item() == pytest.approx(math.log(2))


def test_small_divergences_keep_their_digits():
    """KL(p || p + e) is var_p(e) / 2 to second order; at 1e-5 the plain fp32 sum of p d is pure rounding error."""
    p = logits(64, 500, dtype=torch.float64)
    e = logits(64, 500, dtype=torch.float64) * 1e-5
    p32 = p.float()
    q32 = (p32.double() + e).float()
    exact = naive_kl(p32, q32)
    # Differences of log-probabilities of size 10 carry 1e-6 of rounding each, averaged over the vocabulary.
    torch.testing.assert_close(forward_kl(p32, q32).double().mean(), exact.mean(), rtol=0.1, atol=0)


def test_jensen_shannon_is_symmetric_and_bounded():
    p, q = logits(20, 30, scale=20.0), logits(20, 30, scale=20.0)
    torch.testing.assert_close(jensen_shannon(p, q), jensen_shannon(q, p))
    assert (jensen_shannon(p, q) <= math.log(2) + 1e-6).all()


def test_adding_a_constant_to_logits_changes_nothing():
    p, q = logits(6, 30), logits(6, 30)
    torch.testing.assert_close(forward_kl(p + 5, q - 3), forward_kl(p, q), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("elements", [1, 7, 30, 31, 64, 10**6])
def test_chunks_do_not_change_a_bit(elements, monkeypatch):
    p, q, ids = logits(3, 5, 30), logits(3, 5, 30), torch.randint(0, 30, (3, 5), generator=GENERATOR)
    whole = forward_kl(p, q), jensen_shannon(p, q), token_nll(q, ids)
    monkeypatch.setattr(divergence, "CHUNK_ELEMENTS", {"cpu": elements})
    for before, after in zip(whole, (forward_kl(p, q), jensen_shannon(p, q), token_nll(q, ids)), strict=True):
        assert torch.equal(before, after)


def test_nll_is_minus_the_log_probability_of_the_target():
    q, ids = logits(3, 5, 30), torch.randint(0, 30, (3, 5), generator=GENERATOR)
    expected = -q.double().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    torch.testing.assert_close(token_nll(q, ids).double(), expected, rtol=1e-5, atol=1e-6)


def test_measured_positions_are_real_tokens_followed_by_real_tokens():
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 1]]).bool()
    expected = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 0]]).bool()
    assert torch.equal(predicts(torch.zeros(3, 4), mask), expected)
    assert predicts(torch.zeros(2, 4), None).all()


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="vocabulary"):
        forward_kl(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="targets"):
        token_nll(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))


# -- the oracle ------------------------------------------------------------------------------------------------------------


def naive_quality(view, student, batches):
    """Sample by sample, unpadded, in fp64."""
    kl, agree, nll, per_sample = [], [], [], []
    for batch in batches:
        for row, ids in enumerate(batch.ids_BT):
            ids = ids if batch.mask_BT is None else ids[batch.mask_BT[row]]
            p, q = (view.logits(Batch(ids[None]), student=one)[0, :-1] for one in (TEACHER, student))
            values = naive_kl(p, q)
            kl += values.tolist()
            agree += (p.argmax(-1) == q.argmax(-1)).tolist()
            nll += (-q.double().log_softmax(-1).gather(-1, ids[1:, None])[:, 0]).tolist()
            if len(values):
                per_sample.append(values)
    mean = sum(kl) / len(kl)
    residual = torch.stack([(values - mean).sum() for values in per_sample])
    s = len(per_sample)
    stderr = math.sqrt(s / (s - 1) * residual.square().sum().item()) / len(kl)
    return mean, stderr, sum(agree) / len(agree), sum(nll) / len(nll), len(kl), s


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3_moe"])
def test_oracle_equals_a_naive_measurement_of_unpadded_samples(family):
    view = DecoderView(tiny_model(family))
    students = [without(2), without(1, 4), Student(removed=frozenset({Unit("mlp", 3)}))]
    for student, quality in zip(students, Oracle(view, BATCHES).measure(students), strict=True):
        kl, stderr, agreement, nll, n_tokens, n_samples = naive_quality(view, student, BATCHES)
        # Logits in fp32 of a padded and of an unpadded batch differ by rounding.
        assert quality.kl == pytest.approx(kl, rel=1e-4) and kl > 1e-4
        assert quality.kl_stderr == pytest.approx(stderr, rel=1e-3)
        assert quality.agreement == agreement
        assert quality.nll == pytest.approx(nll, rel=1e-5)
        assert quality.perplexity == pytest.approx(math.exp(nll), rel=1e-4)
        assert (quality.n_tokens, quality.n_samples) == (n_tokens, n_samples) == (40 + 18, 7)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_teacher_against_itself_loses_exactly_nothing(family):
    view = DecoderView(tiny_model(family, n_layers=2))
    itself = Oracle(view, BATCHES).measure([TEACHER])[0]
    assert (itself.kl, itself.kl_stderr, itself.agreement) == (0.0, 0.0, 1.0)
    assert closeness(view, view, BATCHES)[0] == itself


def test_students_are_measured_alike_alone_and_together():
    view = DecoderView(tiny_model("llama"))
    students = [without(i) for i in range(6)]
    together = Oracle(view, BATCHES).measure(students)
    assert together == [Oracle(view, BATCHES).measure([one])[0] for one in students]
    assert len({one.kl for one in together}) == 6


def test_common_prefixes_run_once(monkeypatch):
    view = DecoderView(tiny_model("llama"))
    ran = []
    run_step = DecoderView.run_step

    def counted(self, step, h_BTD, reading):
        ran.append(step.layer)
        return run_step(self, step, h_BTD, reading)

    monkeypatch.setattr(DecoderView, "run_step", counted)
    Oracle(view, BATCHES[:1]).measure([without(4), without(5), without(4, 5)])
    # Layers 0..3 run once for all, 4 for {teacher, -5}, and 5 for the teacher and for -4.
    assert sorted(ran) == [0, 1, 2, 3, 4, 5, 5]


def test_removals_are_remembered_and_counted():
    oracle = Oracle(DecoderView(tiny_model("llama")), BATCHES)
    first = oracle.measure([without(2), without(3), without(2)])
    assert (oracle.n_evaluations, oracle.n_passes) == (2, 1)
    assert first[0] is first[2]
    assert oracle.value({Unit("layer", 3)}) is first[1]
    assert (oracle.n_evaluations, oracle.n_passes) == (2, 1)
    oracle.value({Unit("layer", 4)})
    assert (oracle.n_evaluations, oracle.n_passes) == (3, 2)
    assert oracle.measure([]) == []


def test_changed_values_are_never_remembered():
    """A refit of the same layer may hold other values at the next call."""
    view = DecoderView(tiny_model("llama"))
    oracle = Oracle(view, BATCHES)
    name = "mlp.down_proj.weight"
    weight = view.model.get_submodule(view.layers_path)[2].get_parameter(name).detach()
    same, half, gone = (Student(overrides={2: {name: weight * factor}}) for factor in (1.0, 0.5, 0.0))
    kept, less, none = oracle.measure([same, half, gone])
    assert kept.kl == 0.0 < less.kl < none.kl
    assert none.kl == pytest.approx(oracle.value({Unit("mlp", 2)}).kl, rel=1e-5)
    assert oracle.measure([half])[0] == less and oracle.n_passes == 3


def test_a_module_in_training_is_measured_anew():
    """Its values change between calls; the student that lacks the same units without it is another one."""
    view = DecoderView(tiny_model("llama"))
    oracle, module = Oracle(view, BATCHES), LayerReplacement().build(view, Span(2, 4))
    student = Student(attached=(Attached(Span(2, 4), module, 2),))
    start = oracle.measure([student])[0]
    assert start.kl == pytest.approx(oracle.value({Unit("layer", 3)}).kl, rel=1e-6) and start.kl > 0
    with torch.no_grad():
        module.layer.mlp.down_proj.weight.zero_()
    assert oracle.measure([student])[0].kl != start.kl
    assert oracle.measure([TEACHER])[0].kl == 0.0


def test_a_model_of_its_own_is_measured_like_the_overlay():
    teacher = tiny_model("llama")
    cut = copy.deepcopy(teacher)
    with torch.no_grad():
        cut.model.layers[3].self_attn.o_proj.weight.zero_()
        cut.model.layers[3].mlp.down_proj.weight.zero_()
    view = DecoderView(teacher)
    overlay = Oracle(view, BATCHES).measure([without(3)])[0]
    assert closeness(view, DecoderView(cut), BATCHES)[0] == overlay


def figures(p_BTV, q_BTV, batch):
    """Of logits that are there as a whole."""
    where_BT = predicts(batch.ids_BT, batch.mask_BT)
    block = slice(0, int(where_BT.sum())), [one[:, :-1][where_BT] for one in (p_BTV, q_BTV)]
    return token_figures([block], batch)[0]


def test_padding_may_hold_anything():
    sums, clean = QualitySums(), QualitySums()
    p, q = logits(4, 11, VOCAB), logits(4, 11, VOCAB)
    spoilt = [one.masked_fill(~MASK_BT[..., None], torch.nan) for one in (p, q)]
    sums.add(figures(*spoilt, BATCHES[1]))
    clean.add(figures(p, q, BATCHES[1]))
    assert sums.result() == clean.result()


def test_standard_error_of_equal_lengths_is_the_textbook_one():
    sums, p, q = QualitySums(), logits(4, 11, VOCAB), logits(4, 11, VOCAB)
    sums.add(figures(p, q, BATCHES[0]))
    per_sample = forward_kl(p, q)[:, :-1].double().mean(1)
    assert sums.result().kl_stderr == pytest.approx(per_sample.std().item() / 2)


def test_one_sample_has_no_standard_error_and_no_text_is_an_error():
    oracle = Oracle(DecoderView(tiny_model("llama")), [Batch(IDS_BT[:1])])
    quality = oracle.value({Unit("layer", 1)})
    assert math.isnan(quality.kl_stderr) and quality.kl > 0
    assert math.isnan(Quality.from_json(quality.to_json()).kl_stderr)
    with pytest.raises(ValueError, match="2 tokens"):
        Oracle(DecoderView(tiny_model("llama")), [Batch(IDS_BT[:, :1])]).value({Unit("layer", 1)})


# -- all figures in one pass -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("apart", [1e-4, 0.1, 3.0])
def test_one_pass_equals_the_figures_one_by_one(dtype, apart):
    p = (4 * logits(60, 701)).to(dtype)
    students = [(p.float() + apart * logits(60, 701)).to(dtype) for _ in range(2)]
    ids = torch.randint(701, (60,))
    for q, found in zip(students, compare_tokens(p, students, ids, with_overlap=True), strict=True):
        # 1e-6 nats is the promise; relative beyond 1 nat, where it is the rounding of fp32 itself
        torch.testing.assert_close(found.kl_N, forward_kl(p, q), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.nll_N, token_nll(q, ids), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.overlap_N, divergence.overlap(p, q), rtol=0, atol=1e-6)
        assert torch.equal(found.agreement_N, top1_agreement(p, q))


def test_one_pass_of_equal_logits_is_exact():
    p = logits(60, 701)
    for found in compare_tokens(p, [p, p.clone()], torch.zeros(60, dtype=torch.long), with_overlap=True):
        assert not found.kl_N.any() and found.agreement_N.all() and (found.overlap_N == 1).all()


def test_one_pass_knows_tokens_that_cannot_come(monkeypatch):
    monkeypatch.setattr(divergence, "CHUNK_ELEMENTS", {"cpu": 3 * 50})  # Blocks have three tokens.
    p, q = logits(8, 50), logits(8, 50)
    ids = torch.zeros(8, dtype=torch.long)
    p[2:5, 7:20] = -math.inf
    q[3, 7:20] = -math.inf  # Both give the token no probability.
    q[6, 30] = -math.inf  # The student alone gives it none, so the divergence is infinite.
    q[7, 0] = -math.inf  # This is the very token that comes.
    (found,) = compare_tokens(p, [q], ids)
    torch.testing.assert_close(found.kl_N, forward_kl(p, q), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.nll_N, token_nll(q, ids), rtol=1e-6, atol=1e-6)
    assert found.kl_N[6].isinf() and found.nll_N[7].isinf() and found.kl_N[:6].isfinite().all()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_head_of_single_tokens_is_that_of_the_whole_batch(family):
    view = DecoderView(tiny_model(family, n_layers=2))
    where_BT = predicts(IDS_BT, MASK_BT)
    ((end_BTD, whole_BTV),) = [(h, view.head(h, r)) for h, r in _ends(view)]
    for block, (logits_nV,) in head_blocks([view], [end_BTD], where_BT):
        torch.testing.assert_close(logits_nV, whole_BTV[:, :-1][where_BT][block], rtol=1e-5, atol=1e-5)


def _ends(view):
    reading = view.read(Batch(IDS_BT, MASK_BT))
    *_, (_, h_BTD) = view.stream(reading)
    return [(h_BTD.detach(), reading)]


def test_shapes_that_differ_are_refused_in_one_pass():
    with pytest.raises(ValueError, match="differ in shape"):
        compare_tokens(torch.zeros(2, 3), [torch.zeros(2, 4)], torch.zeros(2, dtype=torch.long))
