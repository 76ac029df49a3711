"""The main job on a tiny model: it ends in a stock checkpoint, and a run that died anywhere ends in the same bits."""

import functools
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from world import write_model

from shoal import compress, load_recipe
from shoal.edits.plan import Plan
from shoal.edits.student_of import student_of
from shoal.engine.student import student_without
from shoal.measure.oracle import Oracle
from shoal.measure.scan import Scan
from shoal.recipes.table import RECIPES
from shoal.run.apply import apply_plan
from shoal.run.job import open_inputs
from shoal.run.unit_scoring import FEWEST_FOR_GRADIENTS
from shoal.select.table import SELECTORS
from shoal.train.course import plan_courses
from shoal.words.structure import stored

LENGTH = 16


def recipe(small, name=None, **changes):
    """A named one as it is, else one that trains a layer."""
    if name is None:
        name, changes = "default", {"replace": "layer", **changes}
    ranks_by_gradients = load_recipe(name).by.startswith("taylor")  # Fewer samples are refused.
    samples = FEWEST_FOR_GRADIENTS if ranks_by_gradients else 12
    text = {"sources": [small["text"]], "samples": samples, "length": LENGTH, "selection": 8, "evaluation": 8}
    train = {"tokens": 40 * LENGTH, "batch": 8, "micro_batch": 4, "eval_every": 2}
    own = load_recipe(name).heal
    healed = own is not None and not own.optional  # The optional one is in test_optional_healing.py.
    # The method lora stands for qlora: in 4 bits a CPU wants maps of 64 inputs.
    heal = (
        {
            "tokens": 16 * LENGTH,
            "method": "partial" if name == "reassessing" else "lora",
            "batch": 4,
            "micro_batch": 4,
            "rank": 2,
            "warmup": 0,
            "lr": 1e-3,
        }
        if healed
        else None
    )
    budget = {} if load_recipe(name).is_by_hand else {"drop": "2"}  # A budget would stand in place of the named layers.
    return load_recipe(name, {"model": small["model"], **budget, "text": text, "train": train, "heal": heal, **changes})


def reloaded(path, **options):
    model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **options)
    assert not any(info.values()), info
    return model


def world_of(name, small, folder):
    """The small model, or a deeper one where the recipe protects so many layers that two of six could not go."""
    n_layers = max(6, len(load_recipe(name).protect) + 2)
    return (small if n_layers == 6 else {**small, "model": str(write_model(folder / "deeper", n_layers=n_layers))}), n_layers


def parameters_off(model, plan):
    """Parameters of sublayers that are gone; a stock checkpoint stores them, with an output of zero."""
    total = 0
    for layer, slot in zip(model.model.layers, stored(plan.structure), strict=True):
        for kind in slot.off:
            sublayer, out = (layer.self_attn, "o_proj") if kind == "attn" else (layer.mlp, "down_proj")
            assert not sublayer.get_submodule(out).weight.any(), kind
            total += sum(p.numel() for p in sublayer.parameters())
    return total


def reads_spans(asked):
    """Whether scores of spans are read: by a selector of tables, unless its table scores single units, or for rivals."""
    is_chosen_by_table = "tables" in SELECTORS[asked.select].reads and "/" in asked.by
    return not asked.is_by_hand and (is_chosen_by_table or asked.guard > 1)


# Searched rates, trained layers and gradients, each of which has a file of its own.
LONG = ("high", "polished", "depth-then-width", "streamline-kd", "shortened", "shortened-taylor")
CUTTING = [
    pytest.param(name, marks=pytest.mark.slow if name in LONG else ())
    for name, one in sorted(RECIPES.items())
    if one.recipe.grow is None
]


@pytest.mark.parametrize("name", CUTTING)
def test_every_recipe_ends_in_a_checkpoint_of_the_planned_size(name, small, tmp_path):
    world, n_layers = world_of(name, small, tmp_path)
    asked = recipe(world, name)
    outcome = compress(asked, tmp_path / "run")
    model = reloaded(outcome.model, trust_remote_code=asked.replace in ("hadamard", "free"))  # Layouts with code are left out.
    n_gone = 0 if asked.is_by_hand else 2  # The recipes that name layers name none, and set weights to zero instead.
    layers_go = asked.units == "layers"
    assert model.config.num_hidden_layers == outcome.plan.after.layers == n_layers - (n_gone if layers_go else 0)
    assert sum(len(slot.off) for slot in outcome.plan.structure) == (0 if layers_go else n_gone)
    off = parameters_off(model, outcome.plan) if not layers_go else 0
    assert sum(p.numel() for p in model.parameters()) - off == outcome.plan.after.parameters
    assert (outcome.plan.after.parameters < outcome.plan.before.parameters) == (n_gone > 0)
    assert outcome.evaluation.student.cost.parameters == outcome.plan.after.parameters
    for file in (
        "recipe.yaml",
        "plan.json",
        "evaluation.json",
        "run.json",
        "verification.json",
        "model/README.md",
        "report.html",
    ):
        assert (outcome.folder / file).stat().st_size, file
    assert load_recipe(str(outcome.folder / "recipe.yaml")).to_yaml() == asked.to_yaml()
    assert (outcome.scan is not None) == (outcome.folder / "scan.json").exists() == reads_spans(asked)
    has_zeros = asked.prune is not None
    assert (outcome.thinned is not None) == has_zeros == any((outcome.folder / "prune").glob("layer-*.safetensors"))
    is_repaired = any((outcome.folder / f"{stage}.safetensors").exists() for stage in ("fit", "train"))
    healed = asked.heal is not None
    # What the same cut loses alone is told where layers go and anything has new values; a repair that was undone leaves none.
    has_plain = bool(outcome.plan.absent_layers) and (is_repaired or has_zeros or healed)
    assert (outcome.evaluation.plain is not None) == has_plain
    assert (outcome.healed is not None) == healed == (outcome.folder / "cut").is_dir()
    if healed:
        assert "healed" in (outcome.model / "README.md").read_text()
        again = compress(asked, tmp_path / "run")  # Every stage stands.
        assert again.healed.training == outcome.healed.training and again.evaluation == outcome.evaluation


def test_the_trained_layer_is_never_worse_than_its_start_on_selection(small, tmp_path):
    outcome = compress(recipe(small), tmp_path / "run")
    (result,) = outcome.trained
    assert result.best.quality <= result.first.quality
    assert result.first.quality == pytest.approx(outcome.plan.candidates[0].kl, rel=1e-6)


def test_selection_decides_and_evaluation_is_reported(small, tmp_path):
    outcome = compress(recipe(small), tmp_path / "run")
    inputs, plan = open_inputs(recipe(small)), outcome.plan
    plain = student_without(plan.candidates[0].layers)
    student = student_of(inputs.view, plan, load_file(outcome.folder / "train.safetensors"))
    decided, reported = (
        Oracle(inputs.view, inputs.batches(samples)).measure([plain, student])
        for samples in (inputs.selection, inputs.evaluation)
    )
    close = functools.partial(pytest.approx, rel=1e-5)  # The saved student is a model of its own.
    assert plan.candidates[0].kl == close(decided[0].kl) != close(reported[0].kl)
    assert outcome.trained[0].best.quality == close(decided[1].kl) != close(reported[1].kl)
    assert outcome.evaluation.plain.kl == close(reported[0].kl)
    assert outcome.evaluation.quality.kl == close(reported[1].kl)
    assert outcome.evaluation.provenance.data_hash == inputs.evaluation.data_hash
    assert outcome.scan.provenance.data_hash == inputs.calibration.data_hash
    assert outcome.trained[0].data_hash == inputs.training.data_hash


def artefacts(folder):
    """Everything a run leaves but clocks: tensors bit for bit, decisions as JSON."""
    tensors = {
        str(path.relative_to(folder)): {name: value.contiguous().view(torch.uint8) for name, value in load_file(path).items()}
        for path in sorted(folder.rglob("*.safetensors"))
        if "train" not in path.parts
    }
    evaluation = json.loads((folder / "evaluation.json").read_text())
    evaluation.pop("speed")
    return tensors, (folder / "plan.json").read_text(), (folder / "scan.json").read_text(), evaluation


class Killed(BaseException):
    """As sudden as a signal: nothing catches it."""


@pytest.mark.parametrize("die_at", [4, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (1, 2, 3, 6, 7, 9))])
def test_a_killed_run_goes_on_to_the_same_bits(die_at, small, tmp_path):
    whole = compress(recipe(small), tmp_path / "whole").folder
    calls = 0

    def die(what, done, total):
        nonlocal calls
        calls += 1
        if calls == die_at:
            raise Killed(what)

    with pytest.raises(Killed):
        compress(recipe(small), tmp_path / "broken", progress=die)
    resumed = compress(recipe(small), tmp_path / "broken").folder
    (tensors, *decisions), (expected, *decided) = artefacts(resumed), artefacts(whole)
    assert decisions == decided
    assert tensors.keys() == expected.keys()
    for file, values in expected.items():
        assert values.keys() == tensors[file].keys()
        assert all(torch.equal(value, tensors[file][name]) for name, value in values.items()), file


def test_a_finished_run_is_not_run_again(small, tmp_path):
    first = compress(recipe(small), tmp_path / "run")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.safetensors")}
    second = compress(recipe(small), tmp_path / "run")
    assert second.evaluation == first.evaluation
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.safetensors")}


def test_another_budget_reuses_the_scan_and_needs_a_word(small, tmp_path):
    compress(recipe(small), tmp_path / "run")
    stamp = (tmp_path / "run" / "scan.safetensors").stat().st_mtime_ns
    with pytest.raises(ValueError, match="--overwrite"):
        compress(recipe(small, drop="1"), tmp_path / "run")
    assert load_recipe(str(tmp_path / "run" / "recipe.yaml")) == recipe(small), "the recipe of what stands"
    assert compress(recipe(small, drop="1"), tmp_path / "run", overwrite=True).plan.after.layers == 5
    assert load_recipe(str(tmp_path / "run" / "recipe.yaml")) == recipe(small, drop="1")
    assert (tmp_path / "run" / "scan.safetensors").stat().st_mtime_ns == stamp


def test_unfinished_training_of_other_options_needs_a_word(small, tmp_path):
    def die(what, done, total):
        if what.endswith("train") and done == 3:
            raise Killed

    with pytest.raises(Killed):
        compress(recipe(small), tmp_path / "run", progress=die)
    other = recipe(small, train={"tokens": 24 * LENGTH, "batch": 8, "micro_batch": 4, "eval_every": 2})
    with pytest.raises(ValueError, match="--overwrite"):
        compress(other, tmp_path / "run")
    assert compress(other, tmp_path / "run", overwrite=True).trained[0].n_tokens == 24 * LENGTH


def test_rounds_remove_as_many_layers(small, tmp_path):
    outcome = compress(recipe(small, "shortgpt", rounds=2), tmp_path / "run")
    assert outcome.plan.after.layers == 4


def test_a_plan_is_applied_to_the_same_bits_as_the_run(small, tmp_path):
    for replace in ("none", "layer"):
        outcome = compress(recipe(small, replace=replace), tmp_path / replace)
        applied = apply_plan(tmp_path / replace / "plan.json", tmp_path / f"{replace}-applied")
        ours, theirs = (load_file(folder / "model.safetensors") for folder in (outcome.model, applied.path))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_plan_edited_by_hand_does_what_it_says(small, tmp_path):
    outcome = compress(recipe(small, replace="none"), tmp_path / "run")
    content = json.loads((outcome.folder / "plan.json").read_text())
    content["edits"] = [{"edit": "drop", "kind": "layer", "indices": [1, 4]}]
    (tmp_path / "mine.json").write_text(json.dumps(content))
    applied = apply_plan(tmp_path / "mine.json", tmp_path / "mine")
    teacher = AutoModelForCausalLM.from_pretrained(small["model"])
    student = reloaded(applied.path)
    for new, old in enumerate((0, 2, 3, 5)):
        ours, theirs = student.model.layers[new].state_dict(), teacher.model.layers[old].state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert Plan.load(tmp_path / "mine.json").removed_layers == (1, 4)


def test_a_plan_of_another_model_is_refused(small, tmp_path):
    outcome = compress(recipe(small, replace="none"), tmp_path / "run")
    other = write_model(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="not the model this plan was made for"):
        apply_plan(outcome.folder / "plan.json", tmp_path / "out", model=str(other))


def test_a_saved_scan_is_the_scan(small, tmp_path):
    outcome = compress(recipe(small), tmp_path / "run")
    loaded = Scan.load(outcome.folder)
    assert loaded.provenance == outcome.scan.provenance and loaded.tables.keys() == outcome.scan.tables.keys()


@pytest.mark.parametrize(("packing", "length"), [("packed", 16), ("padded", 64)])
def test_the_training_samples_hold_the_tokens_asked_for(packing, length, small):
    """Padded samples are documents of 20 to 60 words here, so none of them is full."""
    text = {"sources": [small["text"]], "length": length, "packing": packing}
    inputs = open_inputs(load_recipe("default", {"model": small["model"], "text": text, "train": {"tokens": 4000}}))
    assert (inputs.training.lengths_N < length).all() == (packing == "padded")
    assert 4000 <= plan_courses(inputs.training, inputs.recipe.train)[0].samples.n_tokens < 4000 + length
    more = open_inputs(load_recipe("default", {"model": small["model"], "text": text, "train": {"tokens": 10**6}}))
    with pytest.raises(ValueError, match="more text"):
        plan_courses(more.training, more.recipe.train)
