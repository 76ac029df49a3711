"""Zeros in healing: those of a thinned checkpoint stay, experts too, and they move by the gradient where that is asked for."""

import pytest
import torch
from families import tiny_model
from test_heal_parts import config, world
from torch import nn

from shoal.edits.drop import Drop
from shoal.edits.plan import Plan
from shoal.run.healing.heal_request import HealRequest
from shoal.run.healing.requested import grown_back
from shoal.train.heal.masks import zero_masks
from shoal.train.heal.moving_zeros import MoveZeros, moved
from shoal.train.heal.train import prepare, train
from shoal.words.structure import Size


def drawn(seed=0):
    draw = torch.Generator().manual_seed(seed)
    shapes = {"a": (6, 8), "b": (5, 4), "c": (2, 3, 7)}
    weights = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    masks = {name: torch.rand(shape, generator=draw) > 0.6 for name, shape in shapes.items()}
    weights = {name: value * masks[name] for name, value in weights.items()}
    return weights, {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}, masks


def n_on(masks):
    return {name: int(mask.sum()) for name, mask in masks.items()}


@pytest.mark.parametrize("growth", ["all", "map"])
def test_moving_is_a_sort_of_what_is_small_and_of_what_would_grow(growth):
    weights, gradients, masks = drawn()
    found = moved(weights, gradients, masks, 0.3, growth=growth)
    gone, grown = {}, {}
    for name, mask in masks.items():
        active = [i for i, on in enumerate(mask.flatten().tolist()) if on]
        gone[name] = sorted(active, key=lambda i: abs(float(weights[name].flatten()[i])))[: int(0.3 * len(active))]
    zeros = [
        (-abs(float(gradients[name].flatten()[i])), name, i)
        for name, mask in masks.items()
        for i, on in enumerate(mask.flatten().tolist())
        if not on
    ]
    if growth == "all":
        best = sorted(zeros)[: sum(map(len, gone.values()))]
    else:
        best = [one for name in masks for one in sorted(z for z in zeros if z[1] == name)[: len(gone[name])]]
    for name, mask in masks.items():
        grown[name] = [i for _, owner, i in best if owner == name]
        expected = mask.flatten().clone()
        expected[gone[name]] = False
        expected[grown[name]] = True
        assert torch.equal(found[name].flatten(), expected)
    assert sum(n_on(found).values()) == sum(n_on(masks).values()), "the number of zeros stays"
    assert (n_on(found) == n_on(masks)) == (growth == "map")


def test_a_map_without_a_gradient_loses_weights_to_the_others():
    weights, gradients, masks = drawn()
    gradients["a"] = torch.zeros_like(gradients["a"])
    before, after = n_on(masks), n_on(moved(weights, gradients, masks, 0.3))
    assert after["a"] < before["a"] and sum(after.values()) == sum(before.values())


@pytest.mark.parametrize("growth", ["all", "map"])
def test_where_few_zeros_are_left_no_more_weights_go_than_can_grow(growth):
    weights, gradients, masks = drawn()
    masks = {name: torch.ones_like(mask) for name, mask in masks.items()}
    masks["b"][0, 0] = False
    found = moved(weights, gradients, masks, 0.5, growth=growth)
    assert sum(n_on(found).values()) == sum(n_on(masks).values())


def planted(growth):
    """A sparse linear teacher of two maps with other densities than the start; the densities after training."""
    torch.manual_seed(0)
    teacher = {"dense": torch.randn(16, 16), "thin": torch.randn(16, 16) * (torch.rand(16, 16) > 0.95)}
    student = nn.ModuleDict({name: nn.Linear(16, 16, bias=False) for name in teacher})
    masks = {f"{name}.weight": torch.rand(16, 16) > 0.5 for name in teacher}
    optimizer = torch.optim.Adam(student.parameters(), lr=0.03)
    moving = MoveZeros(student, masks, share=0.3, every=10, growth=growth)
    state = type("State", (), {"max_steps": 400, "global_step": 0})()
    with torch.no_grad():
        for name, weight in moving.weights.items():
            weight.mul_(masks[name])
    for state.global_step in range(400):
        x = torch.randn(64, 16)
        loss = sum((student[name](x) - x @ teacher[name].mT).square().mean() for name in teacher)
        optimizer.zero_grad()
        loss.backward()
        moving.on_pre_optimizer_step(None, state, None, optimizer=optimizer)
        optimizer.step()
        with torch.no_grad():
            for name, weight in moving.weights.items():
                weight.mul_(masks[name])
    return {name: float(masks[f"{name}.weight"].float().mean()) for name in teacher}, float(loss.detach())


def test_growth_over_all_maps_finds_planted_densities():
    of_all, loss = planted("all")
    of_map, worse = planted("map")
    assert of_all["dense"] > 0.8 > 0.3 > of_all["thin"], of_all
    assert of_map["dense"] == pytest.approx(of_map["thin"], abs=0.2) and loss < worse


def test_the_share_falls_to_nothing_at_three_quarters():
    moving = MoveZeros(nn.Linear(2, 2), {}, share=0.4, every=10, growth="all")
    shares = [moving.share_at(step, 1000) for step in range(1000)]
    assert [step for step, share in enumerate(shares) if share] == list(range(9, 750, 10))
    assert shares[9] == pytest.approx(0.4, rel=1e-3) and shares[739] < 0.001


def test_zeros_of_experts_stay_too():
    model = tiny_model("mixtral", n_layers=2)
    with torch.no_grad():
        model.model.layers[0].mlp.experts.down_proj[1, :, ::2] = 0.0
    masks = zero_masks(model)
    assert list(masks) == ["model.layers.0.mlp.experts.down_proj"]


def test_zeros_move_in_a_healing_and_their_number_stays(tmp_path):
    student, lesson = world()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if parameter.ndim == 2 and "layers" in name:
                parameter.mul_(torch.rand_like(parameter) > 0.5)
    before = {name: mask.clone() for name, mask in zero_masks(student).items()}
    asked = config(method="full", keep_zeros=True, regrow=0.3, regrow_every=2)
    pupil = prepare(student, asked, lesson)
    train(pupil, asked, lesson, tmp_path)
    assert sum(n_on(pupil.masks).values()) == sum(n_on(before).values())
    assert any(not torch.equal(pupil.masks[name], before[name]) for name in before)
    off = sum(int((parameter == 0).sum()) for name, parameter in pupil.model.named_parameters() if name in before)
    assert off >= sum(int((~mask).sum()) for mask in before.values())


@pytest.mark.parametrize("wrong", [dict(method="full"), dict(keep_zeros=True), dict(method="norms", keep_zeros=True)], ids=str)
def test_moving_needs_zeros_that_are_kept_and_weights_that_are_trained(wrong):
    with pytest.raises(ValueError, match="add keep_zeros, with method full or partial"):
        config(regrow=0.1, **wrong)


@pytest.mark.parametrize(
    ("kind", "heal", "warns"), [("attn", {}, True), ("attn", {"keep_zeros": True}, False), ("layer", {}, False)]
)
def test_a_training_that_fills_sublayers_again_is_said(kind, heal, warns, tmp_path):
    before, after = Size(layers=6, parameters=60), Size(layers=6, parameters=60)
    plan = Plan(
        source="a",
        source_hash="h",
        teacher="a",
        n_layers=6,
        before=before,
        after=after,
        edits=(Drop(kind=kind, indices=(2, 3)),),
    )
    plan.save(tmp_path / "plan.json")
    said = list(grown_back(HealRequest(student="s", teacher="a", plan=str(tmp_path / "plan.json"), heal=config(**heal))))
    assert [line.split(" went")[0] for line in said] == ["Warning: attn:2,attn:3"] * warns
