"""Polish in the main job: after a repair, with a replacement, interrupted, changed, and from the command."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from shoal import compress, load_recipe
from shoal.edits.plan import Plan
from shoal.edits.refit import Refit
from shoal.run.apply import apply_plan
from shoal.run.run_files import plan_file, values_for

LENGTH = 16
TRAIN = {"tokens": 24 * LENGTH, "batch": 4, "micro_batch": 4, "lr": 5e-4, "eval_every": 3}


def beside(folder):
    return values_for(Plan.load(plan_file(folder)), folder)


def recipe(small, **changes):
    text = {"sources": [small["text"]], "samples": 12, "length": LENGTH, "selection": 8, "evaluation": 8}
    base = {"model": small["model"], "drop": "2", "text": text, "guard": 1, "fit": {"tokens": 100 * LENGTH}, "train": TRAIN}
    return load_recipe("default", {**base, "replace": "none", "repair": "sweep", "polish": "kl", **changes})


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """A sweep polished on logits, not interrupted; not to be changed."""
    return compress(recipe(small), tmp_path_factory.mktemp("whole") / "run")


def test_a_polished_repair_ends_in_a_stock_checkpoint_that_is_never_worse(whole, tmp_path):
    model, info = AutoModelForCausalLM.from_pretrained(whole.model, output_loading_info=True)
    assert not any(info.values())
    assert sum(p.numel() for p in model.parameters()) == whole.plan.after.parameters
    (result,) = whole.trained
    assert result.objective == "forward_kl" and result.decided_by == "quality"
    assert result.first.quality == pytest.approx(whole.repaired.kl_after), "it starts where the repair ended"
    assert result.best.quality <= result.first.quality
    repaired, polished = (load_file(whole.folder / f"{name}.safetensors") for name in ("fit", "train"))
    assert repaired.keys() == polished.keys(), "exactly what the repair set"
    applied = apply_plan(plan_file(whole.folder), tmp_path / "applied")
    assert same(load_file(applied.path / "model.safetensors"), load_file(whole.model / "model.safetensors"))


class Killed(BaseException):
    """As sudden as a signal: nothing catches it."""


def test_a_killed_polish_goes_on_to_the_same_bits_and_does_not_fit_again(small, whole, tmp_path):
    def die(stage, done, total):
        if stage.endswith("train") and done == 4:
            raise Killed

    with pytest.raises(Killed):
        compress(recipe(small), tmp_path / "run", progress=die)
    seen = []
    resumed = compress(recipe(small), tmp_path / "run", progress=lambda stage, done, total: seen.append((stage, done)))
    assert not any(stage.endswith("sweep") or stage.endswith("train") and done == 1 for stage, done in seen)
    assert same(beside(resumed.folder), beside(whole.folder))


def test_without_polish_the_values_of_the_repair_stand_again(small, whole, tmp_path):
    import shutil

    shutil.copytree(whole.folder, tmp_path / "run")
    plain = recipe(small, polish="none")
    with pytest.raises(ValueError, match="--overwrite"):
        compress(plain, tmp_path / "run")
    bare = compress(plain, tmp_path / "run", overwrite=True)
    assert bare.trained == () and not (tmp_path / "run" / "train.safetensors").exists()
    assert same(beside(bare.folder), load_file(whole.folder / "fit.safetensors"))


@pytest.mark.slow
def test_polished_trains_the_layer_before_each_cut_whole_from_the_repair_of_the_plan_it_chose(small, tmp_path):
    changes = {key: value for key, value in TRAIN.items() if key != "lr"}
    text = {"sources": [small["text"]], "samples": 12, "length": LENGTH, "selection": 8, "evaluation": 8}
    base = {"model": small["model"], "drop": "2", "text": text, "guard": 3, "fit": {"tokens": 100 * LENGTH}, "train": changes}
    outcome = compress(load_recipe("polished", base), tmp_path / "run")
    default = compress(
        load_recipe("default", {key: value for key, value in base.items() if key != "train"}), tmp_path / "default"
    )
    candidates = [[(one.layers, one.kl) for one in run.plan.candidates] for run in (outcome, default)]
    assert candidates[0] == candidates[1] and outcome.repaired.kl_after == default.repaired.kl_after, "the default's own choice"
    fronts = {edit.start for edit in outcome.plan.replacements}
    assert fronts and not any(isinstance(edit, Refit) and edit.layer in fronts for edit in outcome.plan.edits)
    assert outcome.plan.candidates[0].kl < outcome.plan.candidates[0].kl_plain, "candidates are compared as they are repaired"
    (result,) = outcome.trained
    assert result.objective == "hidden_mse, then forward_kl"
    assert result.n_tokens == pytest.approx(TRAIN["tokens"], abs=2 * LENGTH)
    assert result.first.quality == pytest.approx(outcome.repaired.kl_after), "it starts where the repair ended"
    assert result.best.quality <= result.first.quality
    model, info = AutoModelForCausalLM.from_pretrained(outcome.model, output_loading_info=True)
    assert not any(info.values()) and sum(p.numel() for p in model.parameters()) == outcome.plan.after.parameters


def test_a_repaired_replacement_is_trained_from_the_repair(small, tmp_path):
    outcome = compress(recipe(small, replace="layer", polish=None), tmp_path / "run")
    assert outcome.plan.replacements and any(isinstance(edit, Refit) for edit in outcome.plan.edits)
    (result,) = outcome.trained
    assert result.objective == "hidden_mse", "what a replacement has without a word"
    assert result.first.quality == pytest.approx(outcome.repaired.kl_after)
    AutoModelForCausalLM.from_pretrained(outcome.model)
    applied = apply_plan(plan_file(outcome.folder), tmp_path / "applied")
    assert same(load_file(applied.path / "model.safetensors"), load_file(outcome.model / "model.safetensors"))


def test_what_cannot_be_polished_is_refused_before_anything_is_loaded(small, tmp_path):
    with pytest.raises(ValueError, match="there is neither; add --repair sweep or --replace layer"):
        recipe(small, repair="none")
    with pytest.raises(ValueError, match="two objectives"):
        recipe(small, train={**TRAIN, "objective": "cosine"})
    with pytest.raises(ValueError, match="--polish kl"):
        recipe(small, repair="magnitude", polish="hidden")
    with pytest.raises(ValueError, match="unknown polish 'hiden'; did you mean 'hidden'"):
        recipe(small, polish="hiden")
    with pytest.raises(ValueError, match="did you mean 'forward_kl'"):
        compress(recipe(small, polish=None, train={**TRAIN, "objective": "forwrd_kl"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes,objective",
    [
        (dict(polish=None), None),
        (dict(polish=None, replace="layer"), "hidden_mse"),
        (dict(polish="none", replace="layer"), None),
        (dict(polish="hidden"), "hidden_mse"),
        (dict(polish="kl", replace="layer"), "forward_kl"),
        (dict(polish=None, train={"objective": "cosine"}), "cosine"),
        (dict(polish="none", train={"objective": "cosine"}), None),
        (dict(polish=None, repair="none", train={"objective": "cosine"}), None),
    ],
)
def test_what_is_trained_for_follows_from_what_is_put_in(small, changes, objective):
    config = recipe(small, **changes).training()
    assert (config and config.objective) == objective


def test_the_command_polishes_and_says_so(small, tmp_path, shoal):
    text = ["--text", small["text"], "--length", LENGTH, "--samples", 12, "--guard", 1]
    more = ["--replace", "none", "--repair", "sweep", "--fit-tokens", 1600, "--polish", "hidden", "--train-tokens", 320]
    code, out, err = shoal("compress", small["model"], "--out", tmp_path / "run", "--drop", 2, *text, *more, "--json")
    assert code == 0, err
    assert json.loads(out)["evaluation"] and "Trained: refit of layer" in " ".join(err.split())
    code, _, err = shoal("compress", small["model"], "--out", tmp_path / "other", "--replace", "none", "--polish", "kl")
    assert code == 2 and "--repair sweep" in err and not (tmp_path / "other").exists()
