"""Growing from end to end: the run and its files, the recipes of the papers, what is refused, a killed run that goes on."""

import json

import pytest
import torch
from families import tiny_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from shoal import compress, load_recipe
from shoal.cli.recipe_options import with_options
from shoal.edits.insert import Insert
from shoal.edits.plan import Plan
from shoal.engine.opening import Opening
from shoal.engine.view import DecoderView
from shoal.fit import lesa
from shoal.fit.lesa import basis_of, predicted
from shoal.recipes.table import RECIPES
from shoal.run.apply import apply_plan
from shoal.select.grow_config import parse_depth

GROWING = [name for name, one in RECIPES.items() if one.recipe.grow is not None]
LENGTH = 16


def recipe(small, name="grow", **changes):
    """A named one on a tiny text, with a healing of four steps where it heals."""
    text = {"sources": [small["text"]], "samples": 8, "length": LENGTH, "selection": 8, "evaluation": 8}
    found = load_recipe(name)
    heal = {"tokens": 16 * LENGTH, "batch": 4, "micro_batch": 4, "warmup": 0, "lr": 1e-3} if found.heal else None
    return load_recipe(name, {"model": small["model"], "text": text, "heal": heal, "speed": False, **changes})


def saved(run):
    return load_file(run / "model" / "model.safetensors")


@pytest.mark.parametrize("name", GROWING)
def test_every_recipe_of_growing_ends_in_a_stock_checkpoint(name, small, tmp_path):
    """Six layers become what the recipe says; the parts that it freezes keep every bit."""
    outcome = compress(recipe(small, name), tmp_path / "run")
    model, info = AutoModelForCausalLM.from_pretrained(outcome.model, output_loading_info=True)
    assert not any(info.values())
    depth = parse_depth(load_recipe(name).grow.to, 6)
    assert model.config.num_hidden_layers == outcome.plan.after.layers == depth > 6
    assert sum(p.numel() for p in model.parameters()) == outcome.plan.after.parameters
    new = [i for i, slot in enumerate(outcome.plan.structure) if slot.is_inserted]
    if name == "grow":
        assert outcome.evaluation.quality.kl == 0.0
    if load_recipe(name).heal is not None and load_recipe(name).heal.method == "new":
        source = AutoModelForCausalLM.from_pretrained(small["model"])
        moved = set()
        for i, slot in enumerate(outcome.plan.structure):
            theirs = source.model.layers[slot.like].state_dict()
            ours = model.model.layers[i].state_dict()
            if any(not torch.equal(ours[key], theirs[key]) for key in ours):
                moved.add(i)
        assert moved == set(new)
    text = (outcome.model / "README.md").read_text()
    assert "made deeper" in text and "put in" in text
    page = (outcome.folder / "report.html").read_text()
    assert 'class="new"' in page and "removes -" not in page and not any(share < 0 for share in outcome.plan.removed.values())


def test_a_grown_plan_is_applied_alone(small, tmp_path):
    """The plan without its run folder gives the same bytes: whole layers and zeros go file to file."""
    outcome = compress(recipe(small, grow={"to": 9, "init": "copy", "where": "range"}), tmp_path / "run")
    made = apply_plan(outcome.folder / "plan.json", tmp_path / "again")
    ours, theirs = load_file(made.path / "model.safetensors"), saved(outcome.folder)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_predicted_weights_lie_beside_the_plan(small, tmp_path):
    outcome = compress(recipe(small, "lesa", heal=None), tmp_path / "run")
    facts = json.loads((outcome.folder / "predict.json").read_text())
    assert {one["name"] for one in facts["maps"]} >= {"self_attn.q_proj.weight", "mlp.down_proj.weight"}
    made = apply_plan(outcome.folder / "plan.json", tmp_path / "again")
    ours, theirs = load_file(made.path / "model.safetensors"), saved(outcome.folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("resident", ["all", pytest.param("1", marks=pytest.mark.slow)])
def test_a_killed_run_ends_in_the_same_bits(resident, small, tmp_path, monkeypatch):
    """Killed when the weights are predicted but not written, and read layer by layer: every file is the same."""
    wanted = compress(recipe(small, "lesa", heal=None), tmp_path / "whole")
    from shoal.run.stages import write as stage

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "_save_and_verify", killed)
        compress(recipe(small, "lesa", heal=None), tmp_path / "run", opening=Opening(resident=resident))
    assert (tmp_path / "run" / "predict.safetensors").is_file() and not (tmp_path / "run" / "model").exists()
    outcome = compress(recipe(small, "lesa", heal=None), tmp_path / "run", opening=Opening(resident=resident))
    ours, theirs = saved(outcome.folder), saved(wanted.folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert Plan.load(outcome.folder / "plan.json").edits == wanted.plan.edits


def test_predicted_layers_of_a_line_are_its_middle():
    """Weights on a line, layer after layer: a new one between two is exactly their mean, whatever the network learned."""
    model = tiny_model("llama", n_layers=7)
    view = DecoderView(model)
    start, way = (
        {name: torch.randn_like(value) for name, value in model.model.layers[0].state_dict().items()} for _ in range(2)
    )
    for index, layer in enumerate(model.model.layers):
        layer.load_state_dict({name: start[name] + 0.1 * index * way[name] for name in start})
    values, found = predicted(view, [Insert(after=3, init="lesa", of=(3,))])
    assert all(one.error_of_mean < 1e-12 for one in found)
    for name in start:
        torch.testing.assert_close(values[f"insert.3.0.{name}"], start[name] + 0.35 * way[name], atol=1e-5, rtol=1e-5)


def test_the_penalty_keeps_what_is_predicted_from_shrinking(monkeypatch):
    """Between neighbours that tell nothing of it, a row of least squares is nothing; rows of layers all have one length."""
    draw = torch.Generator().manual_seed(0)
    rows = [[torch.nn.functional.normalize(torch.randn(128, 16, generator=draw), dim=-1) for _ in range(3)] for _ in range(8)]

    def length():
        network = lesa._trained([tuple(one) for one in rows], 0)
        before, behind = (torch.cat([one[i] for one in rows]) for i in (0, 2))
        with torch.no_grad():
            return float(((before + behind) / 2 + network(torch.cat([before, behind], -1))).norm()) / (8 * 128) ** 0.5

    kept = length()
    monkeypatch.setattr(lesa, "PENALTY", 0.0)
    shrunk = length()
    assert shrunk < 0.35 and kept > 1.5 * shrunk


def test_the_basis_gives_every_layer_back():
    view = DecoderView(tiny_model("llama", n_layers=4))
    for name in ("mlp.down_proj.weight", "self_attn.k_proj.weight"):
        basis = basis_of(view, range(4), name)
        for index, layer in enumerate(view.model.model.layers):
            ours = basis.left_OR @ basis.blocks[index]
            torch.testing.assert_close(ours, layer.get_parameter(name).detach().double(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("grow", "said"),
    [
        ({"to": 6}, "the model has 6 before anything is put in"),
        ({"to": "x"}, "is not a depth"),
        ({"to": 8, "init": "mein"}, "did you mean 'mean'"),
        ({"to": 20, "init": "lesa"}, "one layer between two"),
        ({"to": 8, "where": "9,9"}, "no layer that is kept"),
        ({"to": 8, "cut": 6}, "needs to be below the 6 layers"),
    ],
)
def test_bad_growing_is_one_line(grow, said, small, tmp_path):
    with pytest.raises(ValueError, match=said) as error:
        compress(recipe(small, grow=grow), tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run" / "model").exists()


def test_growing_goes_with_no_repair_and_no_budget(small):
    with pytest.raises(ValueError, match="go with no repair"):
        recipe(small, repair="sweep")
    with pytest.raises(ValueError, match="others are named"):
        recipe(small, grow={"cut": 2}, layers="3")
    assert recipe(small, drop="2").grow is None


def test_a_budget_beside_a_recipe_of_growing_is_refused_by_the_command():
    with pytest.raises(ValueError, match="solar puts layers in, and --drop is what goes"):
        with_options("solar", drop="25%")
    with pytest.raises(ValueError, match="and --params is what goes"):
        with_options("solar", params="6B")


def test_new_layers_alone_are_trained_only_where_a_plan_put_some_in(small, tmp_path):
    changed = {"drop": "2", "repair": "none", "guard": 1, "heal": {"method": "new", "tokens": 16 * LENGTH, "batch": 4}}
    with pytest.raises(ValueError, match="puts none in"):
        compress(recipe(small, "default", **changed), tmp_path / "run")
