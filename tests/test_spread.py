"""A model on several cards, pretended ones: a tensor that meets one of another card is an error, and bits are the CPU's."""

from collections import Counter

import pytest
import torch
from families import tiny_model
from pretend_card import pretend_card
from test_unread_options import one_line
from world import write_model

from shoal import load_recipe
from shoal.engine.open import open_model
from shoal.engine.opening import Opening
from shoal.engine.spread import device_map, devices_of, placement
from shoal.engine.view import DecoderView
from shoal.run.measuring import evaluate_alone, evaluate_pair
from shoal.train.heal.config import HealConfig
from shoal.train.heal.losses import HealLoss, objective_of
from shoal.train.heal.streams import run_model
from shoal.train.heal.table import open_plainly
from shoal.train.heal.teachers import RunningTeacher
from shoal.train.heal.train import Lesson, open_pupil
from shoal.words.types import Batch

TWO = Opening(device="cuda:0,1", resident="all")


def test_devices_are_named_one_by_one():
    with pretend_card(n_cards=3):
        assert devices_of("cuda:0,1") == devices_of("cuda:0,cuda:1") == ("cuda:0", "cuda:1")
        assert devices_of("auto") == ("cuda:0", "cuda:1", "cuda:2") and devices_of("cuda:2") == ("cuda:2",)
        for wrong, said in {
            "cuda:0,3": "cards here: 3",
            "cuda:1,1": "twice",
            "cpu,cuda": "no list",
            "cuda:,1": "no list",
        }.items():
            with pytest.raises(ValueError, match=said):
                devices_of(wrong)
    assert devices_of("auto") == ("cpu",)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3_moe"])
def test_the_map_keeps_layers_whole_in_order_and_even(family):
    model = tiny_model(family, n_layers=8)
    with pretend_card(n_cards=2):
        found = device_map(model, ("cuda:0", "cuda:1"))
    of_layer = [place for name, place in found.items() if name.rpartition(".")[2].isdigit()]
    assert len(of_layer) == 8 and of_layer == sorted(of_layer) and 2 <= Counter(of_layer)["cuda:0"] <= 7
    with pretend_card(n_cards=2, free=100), pytest.raises(ValueError, match="do not fit on these cards"):
        device_map(model, ("cuda:0", "cuda:1"))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_layers_run_where_they_live_and_give_the_bits_of_one_device(family, tmp_path):
    source = write_model(tmp_path / "m", family=family, n_layers=8)
    ids = torch.arange(24).view(2, 12)
    expected = DecoderView(open_model(source).model).logits(Batch(ids))
    with pretend_card(n_cards=2):
        model = open_model(source, TWO).model
        assert set(placement(model).values()) == {"cuda:0", "cuda:1"}
        layers = DecoderView(model)._stub_layers
        homes = [{p.device.index for p in layer.parameters()} for layer in layers]
        assert {0} in homes and {1} in homes and all(len(one) == 1 for one in homes)
        assert torch.equal(DecoderView(model).logits(Batch(ids)).cpu(), expected)
        assert torch.equal(model(input_ids=ids, use_cache=False).logits.cpu(), expected)


def test_an_evaluation_equals_that_of_the_cpu(small, tmp_path):
    text = {"length": 16, "evaluation": 4, "sources": [small["text"]]}
    recipe = load_recipe("default", {"model": small["model"], "text": text, "speed": False})
    other = write_model(tmp_path / "other", seed=1)
    alone, pair = evaluate_alone(recipe), evaluate_pair(recipe, str(other))
    with pretend_card(n_cards=2):
        assert evaluate_alone(recipe, opening=TWO).model == alone.model
        found = evaluate_pair(recipe, str(other), opening=TWO)
    assert (found.quality, found.generations) == (pair.quality, pair.generations)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_gradients_of_a_healing_equal_those_of_the_cpu(method, tmp_path):
    """The trainer is transformers' own: it leaves a model with a device map where it is, and trains what it is given."""
    student, teacher = (write_model(tmp_path / str(seed), n_layers=4, seed=seed) for seed in (0, 1))
    config, ids = HealConfig(method=method, objective="forward_kl"), torch.arange(24).view(2, 12)
    loss = HealLoss(objective_of(config, has_teacher=True))

    def gradients(opening, device):
        torch.manual_seed(0)
        pupil = open_pupil(student, config, Lesson(None, None), opening)
        reference = RunningTeacher(open_plainly(teacher, opening))
        batch = {"input_ids": ids.to(device), "labels": ids.to(device)}
        loss(run_model(pupil.model, pupil.layers, batch), reference.training(batch, ()), batch).backward()
        return {name: p.grad.cpu() for name, p in pupil.model.named_parameters() if p.requires_grad}, pupil

    expected, _ = gradients(Opening(), "cpu")
    with pretend_card(n_cards=2):
        found, pupil = gradients(TWO, "cuda:0")
        assert {p.device.index for p in pupil.model.parameters() if p.requires_grad} == {0, 1}
    assert found.keys() == expected.keys() and any(one.any() for one in expected.values())
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("verb", ["scan", "compress", "plan", "apply"])
def test_verbs_that_put_values_in_take_one_card(small, shoal, tmp_path, verb):
    named = ("--layers", 2) if verb == "apply" else ()
    code, _, err = shoal(verb, small["model"], *named, "--device", "cuda:0,1", "--out", "out")
    one_line(code, err, "spreads a model over cards", "--resident")
    assert not list(tmp_path.iterdir())


def test_what_asks_for_one_device_is_refused(small, shoal, tmp_path):
    common = ("heal", small["model"], "--teacher", small["model"], "--text", small["text"], "--length", 16, "--out", "out")
    with pretend_card(n_cards=2):
        for option, said in {("--method", "qlora"): "qlora", ("--method", "full", "--processes", "shard"): "shard"}.items():
            code, _, err = shoal(*common, "--device", "auto", *option)
            one_line(code, err, said, "runs on one card")
            assert not list(tmp_path.iterdir())
    code, _, err = shoal(*common, "--device", "cuda:0,1")
    one_line(code, err, "cards here: 0")
