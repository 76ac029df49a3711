"""Thinning as a stage and a verb: checkpoints with zeros that plain transformers loads, resumed, streamed, or refused."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM
from world import write_model, write_text

from shoal import compress, load_recipe
from shoal.edits.plan import Plan
from shoal.engine.opening import Opening
from shoal.engine.tensors import each_tensor
from shoal.prune.thin_result import ThinResult
from shoal.run.run_files import plan_file, values_for
from shoal.run.stages import prune as stage

TEXT = ("--samples", 8, "--length", 16, "--no-speed")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_model(folder / "model", n_layers=4)
    write_text(folder / "text.jsonl")
    return folder


def changes(world, **more):
    text = {"sources": [str(world / "text.jsonl")], "samples": 8, "length": 16, "selection": 4, "evaluation": 4}
    return {"model": str(world / "model"), "text": text, "speed": False, **more}


def maps_of(folder):
    """All weights of the maps of a checkpoint, as plain transformers reads it."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    return {name: value for name, value in model.named_parameters() if value.ndim > 1 and ".layers." in name or ".h." in name}


def zero_share(folder):
    values = [value for value in maps_of(folder).values() if value.ndim > 1 and min(value.shape) > 4]
    return sum(int((value == 0).sum()) for value in values) / sum(value.numel() for value in values)


def test_the_verb_leaves_a_checkpoint_with_zeros_and_says_what_they_are(world, shoal):
    code, out, err = shoal(
        "prune", world / "model", "--method", "wanda", "--sparsity", "50%", "--allocate", "owl", "--text", world / "text.jsonl",
        "--out", "run", "--json", *TEXT,
    )  # fmt: skip
    assert code == 0, err
    assert "make nothing faster" in err and "Zeros by map" in err and "shoal heal run --keep-zeros" in err
    found = json.loads(out)["pruned"]
    result = ThinResult.model_validate(found)
    assert len(result.outliers) == 4 and result.total.share == pytest.approx(0.5, abs=0.02)
    assert zero_share("run/model") == pytest.approx(result.total.share)
    card = open("run/model/README.md").read()
    assert "## Zeros" in card and "make nothing faster" in card and "all of its 4 layers" in card
    assert "Weights set to zero" in open("run/report.html").read()
    again, _, err = shoal("run", "run/recipe.yaml", "--out", "again")
    assert again == 0, err
    assert {k: v for k, v in found.items() if k != "seconds"} == {
        k: v for k, v in json.loads(open("again/prune.json").read()).items() if k != "seconds"
    }


@pytest.mark.parametrize("family", ["gpt2", pytest.param("mixtral", marks=pytest.mark.slow)])
def test_after_a_cut_and_a_repair_the_checkpoint_is_the_overlay(family, world, tmp_path):
    """The stage that writes compares the reloaded model with the overlay; transposed weights and fused experts, too."""
    write_model(tmp_path / "model", family=family, n_layers=4)
    found = compress(
        "default",
        tmp_path / "run",
        **changes(world, model=str(tmp_path / "model"), drop="1", guard=1, fit={"tokens": 600}, prune={"method": "sparsegpt"}),
    )
    kinds = [edit.edit for edit in found.plan.edits]
    assert kinds[0] == "drop" and kinds[1] == "refit" and kinds[-3:] == ["prune"] * 3, (
        "zeros come last, in every layer that stays"
    )
    assert found.thinned.total.share == pytest.approx(0.5, abs=0.02)
    assert zero_share(found.model) == pytest.approx(0.5, abs=0.05)  # Routers of the tiny model are part of what is counted.
    plan = Plan.load(plan_file(found.folder))
    assert plan.edits == found.plan.edits and set(values_for(plan, found.folder)) >= {
        f"prune.{edit.layer}.{name}" for edit in plan.edits if edit.edit == "prune" for name in edit.parameters
    }


def test_a_budget_of_all_parameters_counts_the_cut(world, tmp_path):
    found = compress(
        "depth-then-width", tmp_path / "run", **changes(world, drop="1", guard=1, repair="none", prune={"sparsity": "35%all"})
    )
    before, after = found.plan.before.parameters, found.plan.after.parameters
    zeros = found.thinned.total.n_zeros
    assert (before - after + zeros) / before == pytest.approx(0.35, abs=0.01)
    with pytest.raises(ValueError, match="reached by the cut alone"):
        compress("depth-then-width", tmp_path / "other", **changes(world, drop="2", guard=1, prune={"sparsity": "5%all"}))


def test_pattern_two_of_four(world, tmp_path):
    found = compress("sparsegpt", tmp_path / "run", **changes(world, prune={"pattern": "2:4"}))
    for name, value in maps_of(found.model).items():
        groups = value.reshape(len(value), -1, 4)
        assert bool(((groups == 0).sum(-1) == 2).all()), name
    assert "sparse tensor cores" in (found.model / "README.md").read_text()


def values(folder):
    return {
        f"{file.name}:{name}": value
        for file in sorted((folder / "prune").glob("*.safetensors"))
        for name, value in each_tensor(file)
    }


def test_layers_on_disk_give_the_same_bits(world, tmp_path):
    made = [
        compress("sparsegpt", tmp_path / name, opening=Opening(resident=name), **changes(world, prune={"allocate": "lamp"}))
        for name in ("all", "1")
    ]
    ours, theirs = (values(one.folder) for one in made)
    assert ours.keys() == theirs.keys() and len(ours) == 4 * 7
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_that_was_killed_goes_on_behind_its_last_layer(world, tmp_path, monkeypatch):
    whole = compress("sparsegpt", tmp_path / "whole", **changes(world))
    write, done = stage._write_layer, []

    def killed(folder, one):
        if one.layer == 2:
            raise KeyboardInterrupt
        write(folder, one)

    monkeypatch.setattr(stage, "_write_layer", killed)
    with pytest.raises(KeyboardInterrupt):
        compress("sparsegpt", tmp_path / "run", **changes(world))
    monkeypatch.setattr(stage, "_write_layer", write)
    from shoal.prune import thin

    thin_layer = thin._thin_layer
    monkeypatch.setattr(thin, "_thin_layer", lambda site, layer, *more: done.append(layer) or thin_layer(site, layer, *more))
    found = compress("sparsegpt", tmp_path / "run", **changes(world))
    assert done == [2, 3]
    ours, theirs = values(whole.folder), values(found.folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert found.thinned.maps == whole.thinned.maps
    with pytest.raises(ValueError, match="--overwrite"):
        compress("sparsegpt", tmp_path / "run", **changes(world, prune={"sparsity": "60%"}))


def test_named_recipes_of_width_are_valid_and_remove_no_layer():
    for name in ("wanda", "sparsegpt", "owl", "lamp"):
        recipe = load_recipe(name)
        assert recipe.layers == "none" and recipe.prune is not None
    assert load_recipe("lamp").prune.reads_text is False


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--method", "wandaa"], "did you mean 'wanda'"),
        (["--allocate", "owll"], "did you mean 'owl'"),
        (["--sparsity", "50"], "is no share"),
        (["--sparsity", "0%"], "above 0%"),
        (["--sparsity", "100%"], "at most 99%"),
        (["--sparsity", "99%all"], "ask for less"),
        (["--pattern", "4:2"], "0 < N < M"),
        (["--pattern", "2:4", "--sparsity", "60%"], "leave out one"),
        (["--pattern", "2:4", "--allocate", "owl"], "has no say"),
        (["--pattern", "7:13"], "no whole groups of 13"),
        (["--spread", "0.1"], "--allocate owl alone"),
        (["--allocate", "owl", "--spread", "2"], "spread"),
    ],
    ids=" ".join,
)
def test_a_wrong_option_is_one_clear_line(args, said, world, shoal):
    code, _, err = shoal("prune", world / "model", "--out", "out", "--text", world / "text.jsonl", *TEXT, *args)
    lines = [line for line in err.strip().splitlines() if line.startswith("shoal: error")]
    assert code == 2 and len(lines) == 1 and said in lines[0], err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--prune", "wanda:sparsity"], "is no option"),
        (["--prune", "wanda:sparsty=50%"], "sparsity"),
        (["--prune", "none:sparsity=5%"], "write none"),
        (["--layers", "none"], "nothing to repair"),
        (["--layers", "none", "--repair", "none"], "nothing is pruned or healed"),
    ],
    ids=" ".join,
)
def test_a_wrong_pruning_of_a_cut_is_one_clear_line(args, said, world, shoal):
    code, _, err = shoal("compress", world / "model", "--out", "out", "--text", world / "text.jsonl", *TEXT, *args)
    assert code == 2 and said in err.strip().splitlines()[-1], err
