"""Every metric is 0 for the teacher itself, is what its definition says, and needs one line in one table."""

import math

import pytest
import torch
from families import VOCAB, tiny_model

from shoal.engine.student import TEACHER, Student
from shoal.engine.view import DecoderView
from shoal.measure import metrics
from shoal.measure.centred_alignment import LostAlignment
from shoal.measure.divergence import forward_kl
from shoal.measure.metrics import METRICS, token_metric
from shoal.measure.oracle import Oracle
from shoal.measure.removals import RemovalLosses, hash_of_tokens, removal_function
from shoal.measure.vector_distance import angle, distance, lost_cosine
from shoal.words.types import Batch, Unit, model_units

GENERATOR = torch.Generator().manual_seed(0)
IDS_BT = torch.randint(3, VOCAB, (4, 11), generator=GENERATOR)
MASK_BT = torch.arange(11)[None] < torch.tensor([7, 11, 3, 1])[:, None]
BATCHES = [Batch(IDS_BT, index=0), Batch(IDS_BT.where(MASK_BT, 0), MASK_BT, index=1)]
SETS = [frozenset({Unit("layer", 2)}), frozenset({Unit("layer", 1), Unit("mlp", 4)}), frozenset()]


@pytest.fixture(scope="module")
def view():
    return DecoderView(tiny_model("llama"))


def rows(n, x, *, scale=1.0):
    return torch.randn(n, x, generator=GENERATOR) * scale


def naive_mean(view, removed, function):
    """The mean over tokens, sample by sample, unpadded, in fp64; of what the metric compares."""
    found = []
    for batch in BATCHES:
        for row, ids_T in enumerate(batch.ids_BT):
            ids_T = ids_T if batch.mask_BT is None else ids_T[batch.mask_BT[row]]
            if len(ids_T) < 2:
                continue
            reading = view.read(Batch(ids_T[None]))
            ends = [list(view.stream(reading, student=one))[-1][1] for one in (TEACHER, Student(removed=removed))]
            logits = [view.head(h, reading)[0, :-1].double() for h in ends]
            states = [h[0, :-1].double() for h in ends]
            found += function(logits, states, ids_T[1:]).tolist()
    return sum(found) / len(found)


def naive_kl(p, q):
    return (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1)


def naive_js(p, q):
    m = ((p.softmax(-1) + q.softmax(-1)) / 2).log()
    return sum((one.softmax(-1) * (one.log_softmax(-1) - m)).sum(-1) / 2 for one in (p, q))


NAIVE = {
    "kl": lambda logits, states, ids: naive_kl(*logits),
    "reverse_kl": lambda logits, states, ids: naive_kl(*logits[::-1]),
    "js": lambda logits, states, ids: naive_js(*logits),
    "disagreement": lambda logits, states, ids: (logits[0].argmax(-1) != logits[1].argmax(-1)).double(),
    "angular_logits": lambda logits, states, ids: torch.cosine_similarity(*logits, dim=-1).arccos() / math.pi,
    "l2_logits": lambda logits, states, ids: (logits[0] - logits[1]).norm(dim=-1),
    "ce": lambda logits, states, ids: -logits[1].log_softmax(-1).gather(-1, ids[:, None])[:, 0],
    "hidden_cosine": lambda logits, states, ids: 1 - torch.cosine_similarity(*states, dim=-1),
}


@pytest.mark.parametrize("name", NAIVE)
def test_a_metric_equals_its_definition_on_unpadded_samples(view, name):
    for removed, value in zip(SETS[:2], RemovalLosses(view, BATCHES, name)(SETS[:2]), strict=True):
        # Logits in fp32 of a padded and of an unpadded batch differ by rounding.
        assert value == pytest.approx(naive_mean(view, removed, NAIVE[name]), rel=2e-4)


def test_every_mean_over_tokens_has_a_definition_above():
    assert set(NAIVE) == {name for name, one in METRICS.items() if not one.per_sample}


@pytest.mark.parametrize("name", [name for name, one in METRICS.items() if one.needs != "text"])
def test_a_student_that_lacks_nothing_loses_nothing(view, name):
    nothing, something = RemovalLosses(view, BATCHES, name)([frozenset(), SETS[0]])
    assert nothing == pytest.approx(0.0, abs=1e-12) and something > 1e-4


def test_values_are_the_figures_of_the_oracle(view):
    for name, figure in (("kl", "kl"), ("ce", "nll")):
        for one, value in zip(SETS, RemovalLosses(view, BATCHES, name)(SETS), strict=True):
            quality = Oracle(view, BATCHES).value(one)
            assert value == pytest.approx(getattr(quality, figure), rel=1e-6, abs=1e-12)
    disagreement = RemovalLosses(view, BATCHES, "disagreement")(SETS[:1])[0]
    assert disagreement == pytest.approx(1 - Oracle(view, BATCHES).value(SETS[0]).agreement)


@pytest.mark.parametrize("name", METRICS)
def test_sets_have_the_same_value_alone_and_together(view, name):
    together = RemovalLosses(view, BATCHES, name)(SETS)
    measure = RemovalLosses(view, BATCHES, name)
    assert together == [measure([one])[0] for one in SETS]


@pytest.mark.parametrize("name, n_heads", [("hidden_cosine", 0), ("lost_cka", 0), ("ce", 2), ("kl", 3), ("js", 3)])
def test_heads_run_only_where_the_metric_compares_logits(view, name, n_heads, monkeypatch):
    """Per sample: none for hidden states, the students' for text, the teacher's as well for logits."""
    heads, head = [], DecoderView.head
    monkeypatch.setattr(DecoderView, "head", lambda *args: heads.append(1) or head(*args))
    RemovalLosses(view, BATCHES, name)(SETS[:2])
    assert len(heads) == n_heads * 7  # There are eight samples, one of which has a single token.


def test_text_without_two_tokens_in_a_row_is_an_error(view):
    with pytest.raises(ValueError, match="shorter than 2 tokens"):
        RemovalLosses(view, [Batch(IDS_BT[:, :1])])(SETS[:1])


# -- the work --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_greedy_round_costs_at_most_half_of_a_pass_for_each_unit(family):
    """After the teacher was measured, round r runs for each unit the layers behind it: by formula, and below M / 2 passes."""
    view = DecoderView(tiny_model(family, n_layers=8))
    measure = RemovalLosses(view, BATCHES, "hidden_cosine")
    measure([frozenset()])
    units, removed = model_units(8), frozenset()
    for round_ in range(4):
        before = measure.n_layer_runs
        left = [unit for unit in units if unit not in removed]
        values = measure([removed | {unit} for unit in left])
        n_passes = (measure.n_layer_runs - before) / (8 * len(BATCHES))
        assert n_passes <= len(left) / 2
        if round_ == 0:
            assert n_passes == 8 * 7 / 2 / 8
        removed |= {left[values.index(min(values))]}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "falcon"])
def test_a_greedy_round_over_sublayers_costs_at_most_half_of_a_pass_for_each(family):
    """A sublayer that is left out does not run: its own layer costs half, and with L layers behind each it is M / 2 passes."""
    view = DecoderView(tiny_model(family, n_layers=5))
    measure = RemovalLosses(view, BATCHES, "hidden_cosine")
    measure([frozenset()])
    units, removed = model_units(5, "sublayers"), frozenset()
    for round_ in range(4):
        before = measure.n_layer_runs
        left = [unit for unit in units if unit not in removed]
        values = measure([removed | {unit} for unit in left])
        n_passes = (measure.n_layer_runs - before) / (5 * len(BATCHES))
        assert n_passes <= len(left) / 2
        if round_ == 0:
            assert n_passes == len(units) / 2
        removed |= {left[values.index(min(values))]}


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "falcon", "bloom", "mpt", "gptj", "opt", "qwen3_moe", "phi"])
def test_a_sublayer_that_does_not_run_gives_the_bits_of_one_that_gives_zero(family):
    """Against the map of zeros in the model itself, in all families whose sublayers end in one map."""
    view = DecoderView(tiny_model(family, n_layers=2))
    reading = view.read(Batch(IDS_BT[:, :7]))
    for kind in ("attn", "mlp"):
        path = view.map_names(1)[kind]
        if path is None:
            continue
        with torch.no_grad():
            ours = view.run_layer(1, reading.h_BTD, reading, student=Student(frozenset({Unit(kind, 1)})))
            part = view.model.get_submodule(view.layers_path)[1].get_submodule(path)
            kept = {name: one.clone() for name, one in part.named_parameters(recurse=False)}
            for one in part.parameters(recurse=False):
                one.zero_()
            theirs = view.run_layer(1, reading.h_BTD, reading)
            for name, one in part.named_parameters(recurse=False):
                one.copy_(kept[name])
        assert torch.equal(ours, theirs), kind


def test_without_memory_for_states_a_round_gives_the_same_values(view):
    sets = [frozenset({unit}) for unit in model_units(6)]
    none, plenty = (RemovalLosses(view, BATCHES, "kl", cache_bytes=limit) for limit in (0, None))
    for measure in (none, plenty):
        measure(sets)
    assert none(sets) == plenty(sets)
    assert plenty.n_layer_runs < none.n_layer_runs


def test_batches_without_numbers_are_told_apart(view):
    """Kept states belong to a batch by its index; batches made by hand may all have 0."""
    unnumbered = [Batch(batch.ids_BT, batch.mask_BT) for batch in BATCHES]
    measure = RemovalLosses(view, unnumbered)
    measure([frozenset()])
    assert measure(SETS) == RemovalLosses(view, BATCHES)(SETS)


def test_a_function_of_a_model_is_remembered_in_a_folder(view, tmp_path):
    units, about = model_units(6), {"model": "hash"}
    first = removal_function(view, BATCHES, units, folder=tmp_path, about=about)
    values = first.values(SETS[:1])
    again = removal_function(view, BATCHES, units, folder=tmp_path, about=about)
    assert again.values(SETS[:1]) == values and again.n_measured == 0
    other = removal_function(view, BATCHES, units, metric="js", folder=tmp_path, about=about)
    assert other.values(SETS[:1]) != values and other.n_measured == 1
    with pytest.raises(ValueError, match="pass about"):
        removal_function(view, BATCHES, units, folder=tmp_path)


def test_the_text_is_known_by_its_tokens_and_its_padding():
    hashes = {hash_of_tokens(one) for one in (BATCHES, BATCHES[:1], BATCHES[::-1], [BATCHES[0], Batch(BATCHES[1].ids_BT)])}
    assert len(hashes) == 4 and hash_of_tokens(BATCHES) in hashes


# -- vectors ---------------------------------------------------------------------------------------------------------------


def test_small_angles_keep_their_digits():
    a = rows(5, 300)
    side = rows(5, 300)
    side -= (side * a).sum(-1, keepdim=True) / a.square().sum(-1, keepdim=True) * a
    small = 1e-3 * a.norm(dim=-1, keepdim=True) * side / side.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(angle(a, a + small), torch.full((5,), math.atan(1e-3) / math.pi), rtol=1e-3, atol=0)
    torch.testing.assert_close(lost_cosine(a, a + small), torch.full((5,), 5e-7), rtol=2e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_opposite_and_zero_vectors(dtype):
    a = rows(3, 20).to(dtype)
    zero = torch.zeros_like(a)
    for measure, opposite in ((angle, 1.0), (lost_cosine, 2.0)):
        assert torch.equal(measure(a, a), torch.zeros(3)) and torch.equal(measure(zero, zero), torch.zeros(3))
        torch.testing.assert_close(measure(a, -a), torch.full((3,), opposite), rtol=1e-3, atol=0)
        assert measure(a, zero).isfinite().all()
    assert torch.equal(distance(a, a), torch.zeros(3))
    with pytest.raises(ValueError, match="shapes"):
        angle(a, a[:2])


def test_angles_do_not_see_length_and_distances_do():
    a, b = rows(4, 30), rows(4, 30)
    torch.testing.assert_close(angle(3 * a, b), angle(a, b), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(distance(3 * a, 3 * b), 3 * distance(a, b), rtol=1e-5, atol=1e-6)


# -- CKA -------------------------------------------------------------------------------------------------------------------


def lost_cka(pairs):
    sums = LostAlignment()
    return sums.result(torch.stack([sums.add(a, b, torch.zeros(len(a))) for a, b in pairs]).sum(0))


def test_cka_is_blind_to_rotations_scales_and_shifts_and_to_nothing_else():
    rotation, _ = torch.linalg.qr(rows(24, 24))
    states = [rows(40, 24) for _ in range(4)]
    same = lost_cka([(x, 3 * x @ rotation + 5) for x in states])
    other = lost_cka([(x, rows(40, 24)) for x in states])
    assert same == pytest.approx(0.0, abs=1e-5)
    assert other > 0.8
    head = rows(24, 60)
    turned = torch.cat([forward_kl(x @ head, x @ rotation @ head) for x in states])
    assert turned.mean() > 1, "an output head sees the rotation, so what CKA calls harmless may be the worst there is"


def test_cka_of_independent_states_is_near_none_with_fewer_tokens_than_dimensions():
    """The biased estimate would be near 1 - 0 = 1 alignment here: 10 tokens in 200 dimensions."""
    assert lost_cka([(rows(10, 200), rows(10, 200)) for _ in range(20)]) > 0.9


def test_cka_needs_four_tokens_of_a_sample():
    with pytest.raises(ValueError, match="longer text"):
        lost_cka([(rows(3, 8), rows(3, 8))])


# -- the table -------------------------------------------------------------------------------------------------------------


def test_a_metric_is_one_line_of_the_table(view, monkeypatch):
    toy = token_metric("toy", "largest logit that moved", "logits", lambda t, s, n: (t - s).abs().amax(-1))
    monkeypatch.setitem(metrics.METRICS, "toy", toy)
    assert METRICS.named("toy") is toy
    v = removal_function(view, BATCHES, model_units(6), metric="toy")
    assert v.values([frozenset()]) == [0.0] and v.values(SETS[:1])[0] > 0
    with pytest.raises(ValueError, match="unknown metric 'toi'; did you mean 'toy'"):
        METRICS.named("toi")


def test_entries_say_what_they_are():
    for name, one in METRICS.items():
        assert name == one.name and one.about and one.needs in ("logits", "hidden", "text")
