"""Methods of healing: what is trained, that the start is the student, and what leaves the training unchanged."""

import pytest
import torch
from families import tiny_model
from heal_world import config, student_of, text, world

from shoal.engine.families import find_layers
from shoal.train.heal import merge
from shoal.train.heal.lora_targets import linear_maps
from shoal.train.heal.merge import MERGES, best_merge, measure, merge_pupil
from shoal.train.heal.table import TRAINABLE
from shoal.train.heal.train import Lesson, prepare, train

# `new` needs a plan that put layers in; tests/test_growing.py has it.
PLAIN = [name for name, one in TRAINABLE.items() if not one.is_quantised and name != "new"]
HEADS = {"partial": dict(head="keep")}


def logits(model, rows):
    with torch.no_grad():
        return model.eval()(input_ids=rows.ids_NT, use_cache=False).logits


def options(method):
    return HEADS.get(method, {})


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
@pytest.mark.parametrize("method", PLAIN)
def test_the_start_computes_what_the_student_computes(method, family):
    student, lesson = world(family)
    before = logits(student, lesson.selection)
    pupil = prepare(student, config(method=method, **options(method)), lesson)
    torch.testing.assert_close(logits(pupil.model, lesson.selection), before, rtol=0, atol=0)
    assert pupil.n_trainable > 0


@pytest.mark.parametrize("variant", ["rslora", "dora"])
def test_variants_of_lora_start_from_the_student(variant):
    student, lesson = world()
    before = logits(student, lesson.selection)
    pupil = prepare(student, config(variant=variant), lesson)
    # DoRA divides by a norm and multiplies by the same norm.
    torch.testing.assert_close(logits(pupil.model, lesson.selection), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("targets", ["all", "mlp", "attention"])
def test_lora_trains_rank_times_inputs_and_outputs(targets):
    student, lesson = world()
    d, ffn, kv = 32, 48, 16
    attention = (d + d) * 2 + (d + kv) * 2
    mlp = 3 * (d + ffn)
    per_rank = {"all": attention + mlp, "mlp": mlp, "attention": attention}[targets]
    pupil = prepare(student, config(targets=targets), lesson)
    assert pupil.n_trainable == 4 * 4 * per_rank  # There are four layers of rank 4.
    assert pupil.ranks == (4, 4, 4, 4)


def test_dora_trains_one_more_number_for_every_output():
    student, lesson = world()
    n_outputs = sum(one.n_out for one in linear_maps(student, "all"))
    plain = prepare(student_of(tiny_model("llama")), config(), lesson).n_trainable
    assert prepare(student, config(variant="dora"), lesson).n_trainable == plain + n_outputs


def test_norms_trains_exactly_the_vectors():
    student, lesson = world("starcoder2")
    n_vectors = sum(p.numel() for p in student.parameters() if p.ndim == 1)
    pupil = prepare(student, config(method="norms"), lesson)
    assert pupil.n_trainable == n_vectors
    assert {p.ndim for p in pupil.model.parameters() if p.requires_grad} == {1}


def test_full_trains_every_parameter_once():
    student, lesson = world("gpt2")
    n = sum(p.numel() for p in student.parameters())
    assert prepare(student, config(method="full"), lesson).n_trainable == n


def test_partial_trains_the_last_layers_the_final_norm_and_the_head():
    student, lesson = world()
    layers = find_layers(student)[1]
    end = [*layers[-2].parameters(), *layers[-1].parameters(), *student.model.norm.parameters(), *student.lm_head.parameters()]
    pupil = prepare(student, config(method="partial", layers=2), lesson)
    assert {id(p) for p in pupil.model.parameters() if p.requires_grad} == {id(p) for p in end}


def test_partial_refuses_a_tied_head_and_says_why():
    student, lesson = world("gpt2")
    with pytest.raises(ValueError, match="tied.*--head keep"):
        prepare(student, config(method="partial"), lesson)


@pytest.mark.parametrize("method", ["partial", "norms", "lora"])
def test_what_is_not_trained_keeps_its_bits(method, tmp_path):
    student, lesson = world()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    asked = config(method=method, layers=1)
    pupil = prepare(student, asked, lesson)
    trained = {name.replace("base_model.model.", "") for name, p in pupil.model.named_parameters() if p.requires_grad}
    done = train(pupil, asked, lesson, tmp_path)
    assert done.best_step > 0
    for name, value in pupil.model.state_dict().items():
        plain = name.replace("base_model.model.", "").replace(".base_layer", "")
        if plain in before and name.replace("base_model.model.", "") not in trained:
            assert torch.equal(value, before[plain]), name


@pytest.mark.parametrize("variant", ["plain", "rslora", "dora"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_merged_equals_unmerged(variant, family, tmp_path, monkeypatch):
    student, lesson = world(family)
    asked = config(variant=variant)
    pupil = prepare(student, asked, lesson)
    done = train(pupil, asked, lesson, tmp_path)
    apart = logits(pupil.model, lesson.selection)
    # The best validation is of the values that are merged: nothing has to be measured again.
    assert measure(pupil.model, lesson, batch_size=2) == pytest.approx({"nll": done.best.nll, "kl": done.best.kl}, rel=1e-5)
    seen = []
    monkeypatch.setattr(merge, "measure", lambda model, *rest, **more: seen.append(model) or measure(model, *rest, **more))
    merging, model = merge_pupil(pupil, done.best, asked, lesson, tmp_path)
    assert seen == [model] and (merging.nll, merging.kl) == (done.best.nll, done.best.kl)
    # W x + B (A x) and (W + B A) x are sums in another order.
    torch.testing.assert_close(logits(model, lesson.selection), apart, rtol=1e-4, atol=1e-4)
    assert merging.way == "original" and abs(merging.trials[0].lost) < 1e-4
    assert type(model) is type(student_of(tiny_model(family)))
    assert not any("lora" in name for name in model.state_dict())


def test_the_optimum_of_rank_r_is_the_truncated_svd():
    # With y = W x and W = W0 + D the least error that a rank-r addition leaves is the tail of D's singular values (Eckart and
    # Young).
    import peft

    torch.manual_seed(0)
    d, r = 12, 3
    wrong = torch.randn(d, d)
    tail = torch.linalg.svdvals(wrong)[r:].square().sum()
    base = torch.nn.Sequential(torch.nn.Linear(d, d, bias=False))
    target = base[0].weight.detach() + wrong
    model = peft.get_peft_model(base, peft.LoraConfig(r=r, lora_alpha=r, target_modules=["0"]))
    optimizer = torch.optim.LBFGS(
        [p for p in model.parameters() if p.requires_grad], max_iter=400, line_search_fn="strong_wolfe", tolerance_grad=1e-9
    )
    eye = torch.eye(d)

    def error():
        optimizer.zero_grad()
        value = (model(eye).T - target).square().sum()
        value.backward()
        return value

    for _ in range(3):
        optimizer.step(error)
    assert float(error()) == pytest.approx(float(tail), rel=1e-3)


def test_a_merge_is_one_of_the_ways_that_there_are():
    with pytest.raises(ValueError, match="apart"):
        best_merge("sideways", {}, {"nll": 1.0}, look=lambda model: {"nll": 1.0}, by="nll")
    with pytest.raises(ValueError, match="4-bit"):
        best_merge("dequantised", {"original": object}, {"nll": 1.0}, look=lambda model: {"nll": 1.0}, by="nll")
    record, model = best_merge("apart", {"original": object}, {"nll": 1.0}, look=lambda model: {"nll": 2.0}, by="nll")
    assert model is None and record.way == "apart" and not record.trials
    assert set(MERGES) == {"original", "dequantised", "apart"}


def test_auto_takes_the_way_that_loses_least():
    ways = {"original": lambda: 3.0, "dequantised": lambda: 2.0}
    record, model = best_merge("auto", ways, {"nll": 1.0}, look=lambda model: {"nll": model}, by="nll")
    assert (record.way, model, [one.lost for one in record.trials]) == ("dequantised", 2.0, [2.0, 1.0])


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(rank=33), "above the width"),
        (dict(method="partial", layers=9), "more than the 4 layers"),
        (dict(method="lora_"), "did you mean 'lora'"),
        (dict(ranks="near"), "near_cut"),
        (dict(objective="next_tokens"), "next_token"),
    ],
)
def test_bad_options_say_what_is_allowed(changes, said):
    student, lesson = world()
    with pytest.raises(ValueError, match=said):
        asked = config(**changes)
        lesson.loss(asked)
        prepare(student, asked, lesson)


def test_measure_is_the_mean_over_predicted_tokens():
    student, lesson = world()
    rows = text(6, padded=True)
    found = measure(student, Lesson(rows, rows), batch_size=4)
    total, n = 0.0, 0
    for i in range(len(rows)):
        ids = rows[i]["ids"][None]
        total += float(torch.nn.functional.cross_entropy(logits_of(student, ids)[0, :-1], ids[0, 1:], reduction="sum"))
        n += ids.shape[1] - 1
    assert found["nll"] == pytest.approx(total / n, rel=1e-5)


def logits_of(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False).logits
