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
from shoal.evaluate.landscape.connectivity import MOST_LAYERS, N_DRAWS, WeightLine, at, barriers, blend
from shoal.evaluate.landscape.random_point import distance, random_point
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
    assert all(one.at_random == pytest.approx(one.halfway, abs=1e-7) for one in found if one.part == "layer")


def permuted(model, layer, order_F):
    """A model whose neurons of one layer stand in another order; it computes the same function."""
    mlp = model.model.layers[layer].mlp
    with torch.no_grad():
        for one in (mlp.gate_proj, mlp.up_proj):
            one.weight.copy_(one.weight[order_F].clone())
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, order_F].clone())
    return model


def sharp(seed=0):
    """A tiny model whose weights are large enough for it to have opinions."""
    model = tiny_model("llama", n_layers=3, seed=seed)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 2:
                value.mul_(10)
    return model


def written_by(model, n=12, length=LENGTH):
    """What a model says itself: of such text its own loss is low, and any other function's is higher."""
    ids = torch.randint(3, VOCAB, (n, 2), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        while ids.shape[1] < length:
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    return Samples(ids, torch.full((n,), length), "evaluation", "ids", "hash", 0).batches(3)


def test_a_permuted_copy_lies_behind_a_barrier_until_it_is_put_back_in_order():
    """The two compute one function, and half way between them is another: the barrier is of weights, not of functions."""
    view, text = DecoderView(sharp()), written_by(sharp())
    order = torch.randperm(view.model.config.intermediate_size, generator=torch.Generator().manual_seed(0))
    copy = permuted(sharp(), 1, order)
    found = {(one.part, one.n): one for one in barriers(WeightLine(view, DecoderView(copy)), Oracle(view, text))}
    one = found["layer", 1]
    assert one.swapped == pytest.approx(found["layer", 0].swapped, abs=1e-4), "the copy is the same function"
    assert one.of_models > 0.01 and one.of_ends == pytest.approx(one.of_models, abs=1e-4)
    for part in (("first", 2), ("last", 2), ("first", 3), ("all", 3)):
        assert found[part].of_models == pytest.approx(one.of_models, abs=1e-4), "no other layer differs"
    for layer in (0, 2):
        assert abs(found["layer", layer].of_models) < 1e-4
    back = permuted(copy, 1, order.argsort())
    assert all(abs(one.of_models) < 1e-7 for one in barriers(WeightLine(view, DecoderView(back)), Oracle(view, text)))


def test_a_random_point_lies_as_far_away_as_the_other_model_and_nowhere_else():
    """Its length is exact, its direction the seed's; beside a model itself there is no other point."""
    ours, theirs = (dict(DecoderView(tiny_model("llama", n_layers=1, seed=seed)).model.named_parameters()) for seed in (0, 1))
    far = distance(ours, theirs)
    points = [random_point(ours, theirs, seed=seed) for seed in (0, 0, 1)]
    for one in points:
        assert distance(ours, one) == pytest.approx(far, rel=1e-5)
    same, again, other = points
    assert all(torch.equal(value, again[name]) for name, value in same.items())
    step = {seed: torch.cat([(one[name] - ours[name]).flatten() for name in ours]) for seed, one in enumerate((same, other))}
    assert abs(float(torch.cosine_similarity(step[0], step[1], dim=0))) < 0.1, "of thousands of dimensions"
    assert all(torch.equal(value, ours[name]) for name, value in random_point(ours, ours, seed=0).items())


def test_the_random_control_is_the_loss_at_such_points():
    ours, theirs = pair()
    text = batches()
    line = WeightLine(ours, theirs)
    found = {(one.part, one.n): one for one in barriers(line, Oracle(ours, text), seed=3)}
    assert {part for (part, _), one in found.items() if one.at_random is not None} == {"layer"}
    losses = []
    for draw in range(N_DRAWS):
        seed = (3 * MOST_LAYERS + 1) * N_DRAWS + draw
        values = random_point(*line.layers[1], seed=seed)
        losses.append(Oracle(ours, text).measure([Student(overrides={1: values})])[0].nll)
    assert found["layer", 1].at_random == pytest.approx(np.mean(losses), abs=1e-6)
    assert found["layer", 1].random_spread == pytest.approx(np.std(losses, ddof=1), abs=1e-6)


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
    monkeypatch.setattr("shoal.evaluate.landscape.removal_path.removal_paths", None)  # The stage is read back, not run.
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
