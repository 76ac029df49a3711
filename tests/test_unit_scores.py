"""Scores of units: a unit that does nothing scores exactly 0 by all that look at what it does, and by weights it does not."""

import numpy as np
import pytest
import torch
from families import VOCAB, tiny_model

from shoal.engine.open import open_model
from shoal.engine.streamed import open_streamed
from shoal.engine.student import TEACHER, Student
from shoal.engine.view import DecoderView
from shoal.measure import counted, metrics, unit_scores
from shoal.measure.leave_one_out import leave_one_out
from shoal.measure.metrics import METRICS, token_metric
from shoal.measure.set_function import CountedSets
from shoal.measure.task_metric import TASK
from shoal.measure.taylor import taylor_scores
from shoal.measure.unit_scores import OF_VALUES, UNIT_SCORES, UnitScore, unit_score_named, unit_score_names
from shoal.measure.update_norm import update_norms
from shoal.measure.weight_magnitude import weight_magnitudes
from shoal.words.types import Batch, Unit, UnitTable, model_units

GENERATOR = torch.Generator().manual_seed(0)
IDS_BT = torch.randint(3, VOCAB, (4, 11), generator=GENERATOR)
MASK_BT = torch.arange(11)[None] < torch.tensor([7, 11, 6, 1])[:, None]
BATCHES = [Batch(IDS_BT, index=0), Batch(IDS_BT.where(MASK_BT, 0), MASK_BT, index=1)]
LAYERS = model_units(5)
PLANTED = 3
"""A layer whose output maps are zero and whose other weights are the largest of all."""


def planted_model(name="llama"):
    model = tiny_model(name, n_layers=5)
    layer = model.model.layers[PLANTED]
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        for one in (layer.self_attn.q_proj, layer.mlp.up_proj):
            one.weight.mul_(10)
    return model


@pytest.fixture(scope="module")
def view():
    return DecoderView(planted_model())


SEEING = [
    name
    for name in unit_score_names()
    if name != "magnitude" and not name.startswith(("windowed", "shapley")) and not name.endswith("task")
]
"""Scores that look at what a unit does and ask for few sets."""

LAYERS_ALONE = ("shapley_js",)
"""Of which sublayers ask for a thousand sets."""

# -- planted truths --------------------------------------------------------------------------------------------------------

SCORED = [
    pytest.param(name, choice, marks=pytest.mark.slow if choice == "sublayers" and name in LAYERS_ALONE else ())
    for name in (*SEEING, "windowed_kl", "windowed_lost_cka", "shapley_js")
    for choice in ("layers", "sublayers")
]


@pytest.mark.parametrize(("name", "choice"), SCORED)
def test_a_unit_that_does_nothing_scores_zero_and_goes_first(view, name, choice):
    units = model_units(5, choice)
    for table in unit_score_named(name).score(view, BATCHES, units):
        planted = [unit for unit in units if unit.index == PLANTED]
        assert all(abs(table[unit]) <= 1e-12 for unit in planted), table.criterion
        if (table.values > -1e-12).all():  # Where a score can be below 0, a unit that does harm goes before it.
            assert set(table.ranked()[: len(planted)]) == set(planted)
        assert table.units == units and table.criterion in unit_score_named(name).tables


def test_magnitude_does_not_see_that_a_unit_does_nothing(view):
    for table in weight_magnitudes(view, LAYERS):
        assert table.ranked()[-1] == Unit("layer", PLANTED)


# -- definitions -----------------------------------------------------------------------------------------------------------


def test_weights_count_by_matrix(view):
    l1, l2 = weight_magnitudes(view, model_units(5, "mlp"))
    mlp = view.model.model.layers[1].mlp
    matrices = [one.weight.detach().double() for one in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)]
    assert l1[Unit("mlp", 1)] == pytest.approx(sum(one.abs().sum().item() for one in matrices))
    assert l2[Unit("mlp", 1)] == pytest.approx(sum(one.norm().item() for one in matrices), rel=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_moe"])
def test_taylor_is_the_gradient_of_the_models_own_loss(family):
    """Against one backward pass of the whole model; padded samples count by their real tokens."""
    model = tiny_model(family, n_layers=4)
    units = (*model_units(4), *model_units(4, "sublayers"))
    each, together = taylor_scores(DecoderView(model), BATCHES, units)
    total, n_tokens = 0.0, 0
    for batch in BATCHES:
        for row, ids_T in enumerate(batch.ids_BT):
            ids_T = ids_T if batch.mask_BT is None else ids_T[batch.mask_BT[row]]
            if len(ids_T) > 1:
                logits = model(input_ids=ids_T[None]).logits[0, :-1]
                total = total + torch.nn.functional.cross_entropy(logits, ids_T[1:], reduction="sum")
                n_tokens += len(ids_T) - 1
    (total / n_tokens).backward()
    for unit in units:
        path = {"layer": "", "attn": "self_attn.", "mlp": "mlp."}[unit.kind]
        named = [p for name, p in model.model.layers[unit.index].named_parameters() if name.startswith(path)]
        products = [(p * p.grad).double() for p in named if p.grad is not None]
        assert each[unit] == pytest.approx(sum(one.abs().sum().item() for one in products), rel=2e-3)
        assert together[unit] == pytest.approx(abs(sum(one.sum().item() for one in products)), rel=2e-2, abs=1e-5)
        assert each[unit] >= together[unit] > 0


def test_taylor_holds_the_logits_of_a_few_tokens(view, monkeypatch):
    whole, seen, head = taylor_scores(view, BATCHES, LAYERS), [], DecoderView.head_with_grad

    def watched(self, h_BTD, reading):
        logits = head(self, h_BTD, reading)
        seen.append(logits.numel() // VOCAB)
        return logits

    monkeypatch.setattr(DecoderView, "head_with_grad", watched)
    monkeypatch.setattr(counted, "TOKENS_PER_HEAD", 3)
    for ours, theirs in zip(taylor_scores(view, BATCHES, LAYERS), whole, strict=True):
        assert ours.values == pytest.approx(theirs.values, rel=1e-4, abs=1e-7)  # Products of other shapes round differently.
    assert max(seen) == 3 and sum(seen) == 4 * 10 + 6 + 10 + 5


def test_repeated_text_does_not_change_taylor_scores_in_float16():
    """Slopes that were divided by the number of tokens fell below what float16 can hold."""
    view = DecoderView(tiny_model("llama", n_layers=2).half())
    few, many = (taylor_scores(view, [Batch(IDS_BT, index=i) for i in range(n)], model_units(2)) for n in (1, 16))
    for ours, theirs in zip(few, many, strict=True):
        assert ours.values == pytest.approx(theirs.values, rel=1e-5)  # What remains is fp32 rounding of sums of 16 terms.


def test_gradients_beyond_float16_are_an_error():
    model = tiny_model("llama", n_layers=2)
    with torch.no_grad():
        model.lm_head.weight *= 1e5
    assert np.isfinite(taylor_scores(DecoderView(model), BATCHES, model_units(2))[0].values).all()
    with pytest.raises(ValueError, match="not finite in float16.*--dtype bfloat16 or float32"):
        taylor_scores(DecoderView(model.half()), BATCHES, model_units(2))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "falcon"])
def test_updates_are_what_units_add_to_the_stream(family):
    view = DecoderView(tiny_model(family, n_layers=3))
    units = (*model_units(3), *model_units(3, "sublayers"))
    norm, relative = update_norms(view, BATCHES, units)
    found = {unit: [] for unit in units}
    for batch in BATCHES:
        for row, ids_T in enumerate(batch.ids_BT):
            ids_T = ids_T if batch.mask_BT is None else ids_T[batch.mask_BT[row]]
            if len(ids_T) < 2:
                continue
            reading = view.read(Batch(ids_T[None]))
            states = [h.double() for _, h in view.stream(reading)]
            for unit in units:
                with torch.no_grad():
                    h = states[unit.index].float()
                    middle = view.run_layer(unit.index, h, reading, student=Student(frozenset({Unit("mlp", unit.index)})))
                    after = view.run_layer(unit.index, h, reading, student=TEACHER)
                delta = {"layer": after - h, "attn": middle - h, "mlp": after - middle}[unit.kind].double()[0, 1:]
                length = delta.norm(dim=-1)
                found[unit].append((length.mean(), (length / h.double()[0, 1:].norm(dim=-1)).mean()))
    for unit in units:
        values = torch.tensor(found[unit])
        assert norm[unit] == pytest.approx(values[:, 0].mean().item(), rel=1e-4)
        assert relative[unit] == pytest.approx(values[:, 1].mean().item(), rel=1e-4)
        place = units.index(unit)
        expected = values[:, 0].std().item() / len(values) ** 0.5
        # Where all samples move alike, their spread is of the size of fp32 rounding.
        assert norm.stderr[place] == pytest.approx(expected, rel=1e-3, abs=1e-6 * norm[unit])


def test_the_error_of_an_update_is_that_of_the_samples_that_count_at_its_layer():
    """Token 5 is a sink until layer 1 makes every token as long, so a sample of it does not count at layer 0 alone."""
    model = tiny_model("llama", n_layers=4)
    with torch.no_grad():
        model.model.embed_tokens.weight[5] *= 100
        model.model.layers[1].mlp.down_proj.weight *= 1e4
    view = DecoderView(model)
    text = [Batch(IDS_BT.where(IDS_BT != 5, 6)), Batch(torch.tensor([[6, 5]]), index=1)]
    units = model_units(4)
    together = update_norms(view, text, units)
    for i, unit in enumerate(units):
        for all_units, alone in zip(together, update_norms(view, text, [unit]), strict=True):
            assert (all_units.values[i], all_units.stderr[i]) == (alone.values[0], alone.stderr[0])
            assert alone.n_samples == (5 if i else 4)


def test_leave_one_out_is_growth_and_asks_for_each_unit_once():
    v = CountedSets(lambda sets: [5.0 + sum(unit.index for unit in one) ** 2 for one in sets], LAYERS)
    assert leave_one_out(v).values.tolist() == [0.0, 1.0, 4.0, 9.0, 16.0]
    assert v.n_evaluations == 5 + 1


def test_layers_read_from_disk_give_the_same_bits(tmp_path):
    planted_model().save_pretrained(tmp_path)
    opened, streamed = open_streamed(tmp_path)
    views = DecoderView(open_model(tmp_path).model), DecoderView(opened.model, residency=streamed)
    units = (*LAYERS, *model_units(5, "sublayers"))
    for name in UNIT_SCORES:
        ours, theirs = (unit_score_named(name).score(view, BATCHES, units) for view in views)
        assert all(np.array_equal(a.values, b.values) for a, b in zip(ours, theirs, strict=True)), name


# -- what cannot be scored -------------------------------------------------------------------------------------------------


def test_text_without_two_tokens_is_an_error(view):
    short = [Batch(IDS_BT[:, :1])]
    for score in (taylor_scores, update_norms):
        with pytest.raises(ValueError, match="shorter than 2 tokens"):
            score(view, short, LAYERS)


def test_sublayers_that_are_no_modules_are_refused_by_name():
    view = DecoderView(tiny_model("opt", n_layers=2))
    with pytest.raises(ValueError, match="layer 0 has no mlp sublayer as one module; score whole layers"):
        weight_magnitudes(view, model_units(2, "mlp"))


# -- tables ----------------------------------------------------------------------------------------------------------------


def test_a_score_and_a_metric_are_a_line_each(view, monkeypatch):
    def first(view, batches, units):
        return (UnitTable("toy", tuple(units), np.arange(len(units)), np.zeros(len(units)), "", True, 0),)

    monkeypatch.setitem(unit_scores.UNIT_SCORES, "toy", UnitScore("toy", "counts", "weights", ("toy",), first))
    assert unit_score_named("toy").score(view, BATCHES, LAYERS)[0].ranked()[0] == LAYERS[-1]
    monkeypatch.setitem(metrics.METRICS, "odd", token_metric("odd", "toy", "logits", lambda t, s, n: (t - s).abs().amax(-1)))
    assert "left_out_odd" in unit_score_names()
    assert unit_score_named("left_out_odd").score(view, BATCHES, LAYERS)[0][Unit("layer", 0)] > 0
    with pytest.raises(ValueError, match="did you mean 'left_out_kl'"):
        unit_score_named("left_out_k1")


def test_entries_say_what_they_are():
    assert {f"{word}_{name}" for word in OF_VALUES for name in (*METRICS, TASK)} | set(UNIT_SCORES) == set(unit_score_names())
    for name in unit_score_names():
        entry = unit_score_named(name)
        assert entry.name == name and entry.about and entry.tables


def test_a_table_ranks_ties_deeper_first_and_unknown_values_last():
    table = UnitTable("toy", LAYERS, np.array([1.0, np.nan, 1.0, 0.5, 2.0]), np.zeros(5), "", False, 1)
    assert [unit.index for unit in table.ranked()] == [3, 2, 0, 4, 1]
    assert table.cost(LAYERS[4]) == 2.0
    with pytest.raises(ValueError, match="no unit attn.0"):
        table[Unit("attn", 0)]
    with pytest.raises(ValueError, match="each unit needs one of both"):
        UnitTable("toy", LAYERS, np.zeros(4), np.zeros(5), "", False, 1)
