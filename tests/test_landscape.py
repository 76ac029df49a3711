"""Straight lines in weight space: quadratics of a linear net, exact ends, no barrier from a model to itself, read-outs."""

import json

import numpy as np
import pytest
import torch
from families import VOCAB, tiny_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from world import write_model, write_text

from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.evaluate.landscape.connectivity import WeightLine, at, barriers, blend
from shoal.evaluate.landscape.read_out import RIDGE, read_outs
from shoal.evaluate.landscape.removal_path import STEPS, removal_paths, turned_down
from shoal.fit.sites.of_layer import probe_of
from shoal.measure.oracle import Oracle
from shoal.text.samples import Samples
from shoal.words.types import Unit

LENGTH = 10


def batches(n=12, size=3):
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, LENGTH + 1, (n,), generator=draw)
    return Samples(torch.randint(3, VOCAB, (n, LENGTH), generator=draw), lengths, "evaluation", "ids", "hash", 0).batches(size)


def test_along_one_layer_of_a_deep_linear_net_the_loss_is_the_exact_quadratic():
    """|r0 + t d|^2 / n: convex along any layer, as the paper proves; so no layer alone has a barrier above its own ends."""
    torch.manual_seed(0)
    a, b = ([torch.randn(6, 6, dtype=torch.float64) for _ in range(4)] for _ in range(2))
    x, y = torch.randn(50, 6, dtype=torch.float64), torch.randn(50, 6, dtype=torch.float64)

    def out(maps):
        h = x
        for one in maps:
            h = h @ one.mT
        return h

    for layer in range(4):
        ends = [out([*a[:layer], w[layer], *a[layer + 1 :]]) for w in (a, b)]
        r0, d = ends[0] - y, ends[1] - ends[0]
        losses = []
        for t in np.linspace(0, 1, 9):
            moved = at({"w": a[layer]}, {"w": b[layer]}, float(t))["w"]
            loss = (out([*a[:layer], moved, *a[layer + 1 :]]) - y).square().mean()
            assert float(loss) == pytest.approx(float((r0 + t * d).square().mean()), rel=1e-10)
            losses.append(float(loss))
        assert min(np.diff(losses, 2)) > 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "gemma2", "mixtral"])
def test_at_the_end_of_its_path_a_layer_is_gone_and_at_the_start_whole(family):
    view = DecoderView(tiny_model(family, n_layers=3))
    probe = probe_of(view, batches())
    values, why_not = turned_down(view, 1, probe, (0.0, 0.999999, 1.0))
    assert not why_not
    batch = batches()[0]
    whole, _, none = (view.logits(batch, student=Student(overrides={1: one})) for one in values)
    real = batch.mask_BT.bool()
    assert torch.equal(whole[real], view.logits(batch)[real])
    gone = view.logits(batch, student=Student(removed=frozenset({Unit("layer", 1)})))
    torch.testing.assert_close(none[real], gone[real], rtol=1e-4, atol=1e-5)


def test_a_path_goes_from_the_model_to_its_cut():
    view = DecoderView(tiny_model("llama", n_layers=3))
    oracle = Oracle(view, batches())
    found, left = removal_paths(oracle, probe_of(view, batches()), layers=[0, 2])
    assert [one.layer for one in found] == [0, 2] and not left
    for one in found:
        gone = oracle.value(frozenset({Unit("layer", one.layer)}))
        assert [point.t for point in one.points] == list(STEPS)
        assert one.points[-1].loss == gone.nll and one.points[0].kl == 0.0
        assert one.cost == pytest.approx(gone.nll - oracle.value(frozenset()).nll)
        assert one.bump >= 0


def pair(family="llama"):
    """Two models of one shape and other weights; the second with another embedding and head as well."""
    return [DecoderView(tiny_model(family, n_layers=3, seed=seed)) for seed in (0, 1)]


def test_a_model_has_no_barrier_to_itself():
    ours = DecoderView(tiny_model("llama", n_layers=3))
    found = barriers(WeightLine(ours, DecoderView(tiny_model("llama", n_layers=3))), Oracle(ours, batches()))
    assert len(found) == 3 + 2 + 1 + 1
    assert all(abs(one.of_models) < 1e-7 and abs(one.of_ends) < 1e-7 for one in found)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_barriers_are_those_of_models_whose_weights_were_moved_by_hand(family):
    """Of one layer with both baselines, of the first two, and of everything, embedding and head with it."""
    ours, theirs = pair(family)
    text = batches()

    def loss(**moved):
        model = tiny_model(family, n_layers=3)
        a, b = dict(model.named_parameters()), dict(theirs.model.named_parameters())
        with torch.no_grad():
            for name, value in a.items():
                inside = (
                    name.removeprefix(f"{ours.layers_path}.").split(".")[0] if name.startswith(ours.layers_path) else "rest"
                )
                value.lerp_(b[name], moved.get(f"at_{inside}", 0.0))
        return Oracle(DecoderView(model), text).measure([Student()])[0].nll

    a, b = loss(), loss(at_0=1.0, at_1=1.0, at_2=1.0, at_rest=1.0)
    found = {(one.part, one.n): one for one in barriers(WeightLine(ours, theirs), Oracle(ours, text))}
    one = found["layer", 1]
    assert one.halfway == pytest.approx(loss(at_1=0.5), abs=1e-5)
    assert one.of_models == pytest.approx(loss(at_1=0.5) - (a + b) / 2, abs=1e-5)
    assert one.of_ends == pytest.approx(loss(at_1=0.5) - (a + loss(at_1=1.0)) / 2, abs=1e-5)
    assert found["first", 2].of_models == pytest.approx(loss(at_0=0.5, at_1=0.5) - (a + b) / 2, abs=1e-5)
    whole = loss(at_0=0.5, at_1=0.5, at_2=0.5, at_rest=0.5)
    assert found["all", 3].of_models == pytest.approx(whole - (a + b) / 2, abs=1e-5)
    points = blend(WeightLine(ours, theirs), Oracle(ours, text))
    assert [points[0].loss, points[2].loss, points[-1].loss] == pytest.approx([a, whole, b], abs=1e-5)
    assert Oracle(ours, text).measure([Student()])[0].nll == pytest.approx(a, abs=1e-6), "the model is as it was"


def test_two_shapes_have_no_line():
    ours = DecoderView(tiny_model("llama", n_layers=3))
    with pytest.raises(ValueError, match="3 and 2 layers"):
        WeightLine(ours, DecoderView(tiny_model("llama", n_layers=2)))
    with pytest.raises(ValueError, match="needs two checkpoints of one shape"):
        WeightLine(ours, DecoderView(tiny_model("gpt2", n_layers=3)))


def test_read_outs_are_the_ridge_solution_and_the_last_one_is_the_model():
    view, text = DecoderView(tiny_model("llama", n_layers=2)), batches(24)
    found = read_outs(view, text)
    assert [one.boundary for one in found] == [0, 1, 2]
    right = n = 0
    h, ends, weights = [], [], []
    for i, batch in enumerate(text):
        real = batch.mask_BT.bool()
        states = dict(view.stream(view.read(batch)))
        if i % 2 == 0:
            h.append(states[1][real].double().detach())
            ends.append(states[2][real].double().detach())
            weights.append(1 / ends[-1].float().square().sum(-1).double())
    h, ends, w = torch.cat(h), torch.cat(ends), torch.cat(weights)
    ones = torch.cat([h, torch.ones(len(h), 1).double()], 1)
    gram = ones.mT @ (ones * w[:, None])
    ridge = RIDGE * float(gram.diagonal()[:-1].mean()) * torch.diag(torch.tensor([1.0] * h.shape[1] + [0.0])).double()
    change = torch.linalg.solve(gram + ridge, ones.mT @ ((ends - h) * w[:, None]))
    for i, batch in enumerate(text):
        if i % 2:
            reading = view.read(batch)
            state = dict(view.stream(reading))[1].double()
            logits = view.head((state + state @ change[:-1] + change[-1]).float(), reading)
            both = batch.mask_BT[:, :-1].bool() & batch.mask_BT[:, 1:].bool()
            right += int((logits[:, :-1].argmax(-1) == batch.ids_BT[:, 1:])[both].sum())
            n += int(both.sum())
    assert (found[1].n_held_out, found[1].accuracy) == (n, pytest.approx(right / n, abs=1.01 / n))
    own = Oracle(view, [batch for i, batch in enumerate(text) if i % 2]).measure([Student()])[0]
    assert found[2].nll == pytest.approx(own.nll, abs=1e-5)


def test_the_verb_writes_figures_and_a_page_and_goes_on_where_it_was(shoal, tmp_path, monkeypatch):
    for name, seed in (("a", 0), ("b", 1)):
        write_model(tmp_path / name, n_layers=3, seed=seed)
    text = write_text(tmp_path / "text.jsonl")
    args = ("analyse", tmp_path / "a", tmp_path / "b", "--out", "look", "--text", text, "--length", 16, "--samples", 8)
    code, out, err = shoal(*args, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [one["layer"] for one in found["removal"]] == [0, 1, 2] and len(found["read_outs"]) == 4
    assert {one["part"] for one in found["barriers"]} == {"layer", "first", "last", "all"} and len(found["blend"]) == 5
    page = (tmp_path / "look" / "report.html").read_text()
    assert page.count("<svg") >= 6 and "linear read-out" in page and "linear read-out" in err
    monkeypatch.setattr("shoal.evaluate.landscape.removal_path.removal_paths", None)  # read back, not run
    code, again, err = shoal(*args, "--at", 0.25, "--json")
    assert code == 0 and json.loads(again) == found, err
    a, b, made = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b", "look/model"))
    assert (
        all(torch.equal(value, torch.lerp(a[name], b[name], 0.25)) for name, value in made.items()) and made.keys() == a.keys()
    )
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "look" / "model").config.num_hidden_layers == 3
    code, _, err = shoal("analyse", tmp_path / "a", "--at", 0.5, "--out", "other", "--text", text)
    assert code == 2 and "give A and B" in err


def test_two_models_of_other_shapes_are_one_clear_line(shoal, tmp_path):
    write_model(tmp_path / "a", n_layers=3)
    write_model(tmp_path / "b", n_layers=2)
    text = write_text(tmp_path / "text.jsonl")
    monkey = ("--text", text, "--length", 16, "--samples", 8)
    code, _, err = shoal("analyse", tmp_path / "a", tmp_path / "b", "--out", "look", *monkey)
    assert code == 2 and "3 and 2 layers" in err.strip().splitlines()[-1], err
