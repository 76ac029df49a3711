"""The closed-form repair in the main job: stock checkpoints, resuming, other options, and the command."""

import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from shoal import compress, load_recipe
from shoal.cli import main
from shoal.edits.plan import Plan
from shoal.edits.refit import Refit
from shoal.engine.opening import Opening
from shoal.fit.fit_config import FEWEST_TOKENS, TOKENS_PER_INPUT, FitConfig
from shoal.fit.fit_plan import fit_plan
from shoal.fit.repairs.solve import solved_replacements
from shoal.fit.table import REPAIRS
from shoal.run.apply import apply_plan

LENGTH = 16


def recipe(small, repair="sweep", **changes):
    text = {"sources": [small["text"]], "samples": 12, "length": LENGTH, "selection": 8, "evaluation": 8}
    base = {"model": small["model"], "drop": "2", "text": text, "replace": "none", "repair": repair}
    return load_recipe("default", {**base, "fit": {"tokens": 100 * LENGTH}, **changes})


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """A sweep that nothing interrupted; not to be changed."""
    return compress(recipe(small), tmp_path_factory.mktemp("whole") / "run")


def tensors(folder):
    return {name: value for file in ("fit", "model/model") for name, value in load_file(folder / f"{file}.safetensors").items()}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("repair", ["refit", "sweep"])
def test_a_repaired_run_ends_in_a_stock_checkpoint_and_an_applicable_plan(repair, small, whole, tmp_path):
    outcome = whole if repair == "sweep" else compress(recipe(small, repair), tmp_path / "run")
    model, info = AutoModelForCausalLM.from_pretrained(outcome.model, output_loading_info=True)
    assert not any(info.values())
    assert sum(p.numel() for p in model.parameters()) == outcome.plan.after.parameters
    found = outcome.repaired
    assert found.repair == repair and found.kept and found.kl_after < found.kl_before
    assert outcome.evaluation.plain is not None, "the table shows the same cut without repair"
    assert found.n_tokens == 100 * LENGTH
    assert Plan.load(outcome.folder / "fitted.json") == outcome.plan
    assert any(isinstance(edit, Refit) for edit in outcome.plan.edits)
    chosen = Plan.load(outcome.folder / "plan.json")
    assert chosen.is_pure_removal and chosen.structure == outcome.plan.structure, "written once, as it was chosen"
    applied = apply_plan(outcome.folder / "fitted.json", tmp_path / "applied")
    assert same(load_file(applied.path / "model.safetensors"), load_file(outcome.model / "model.safetensors"))
    assert "new values for" in (outcome.model / "README.md").read_text()


class Killed(BaseException):
    """As sudden as a signal: nothing catches it."""


@pytest.mark.parametrize(
    "what", ["check the repair", *(pytest.param(one, marks=pytest.mark.slow) for one in ("sweep", "evaluate"))]
)
def test_a_killed_repair_goes_on_to_the_same_bits(what, small, whole, tmp_path):
    def die(stage, done, total):
        if stage.endswith(what) and done == total:
            raise Killed

    with pytest.raises(Killed):
        compress(recipe(small), tmp_path / "broken", progress=die)
    resumed = compress(recipe(small), tmp_path / "broken")
    assert same(tensors(resumed.folder), tensors(whole.folder)) and resumed.plan == whole.plan
    clocks = {"seconds": 0.0, "layers": ()}
    assert resumed.repaired.model_copy(update=clocks) == whole.repaired.model_copy(update=clocks)


def test_a_finished_repair_is_not_run_again(small, whole):
    stamp = (whole.folder / "fit.safetensors").stat().st_mtime_ns
    again = compress(recipe(small), whole.folder)
    assert again.repaired == whole.repaired and again.plan == whole.plan
    assert (whole.folder / "fit.safetensors").stat().st_mtime_ns == stamp


def test_changing_the_repair_of_a_folder_needs_a_word_and_leaves_nothing_behind(small, whole, tmp_path):
    shutil.copytree(whole.folder, tmp_path / "run")
    for other in (recipe(small, "none"), recipe(small, "refit")):
        with pytest.raises(ValueError, match="--overwrite"):
            compress(other, tmp_path / "run")
    assert Plan.load(tmp_path / "run" / "fitted.json") == whole.plan
    bare = compress(recipe(small, "none"), tmp_path / "run", overwrite=True)
    assert bare.repaired is None and bare.plan.is_pure_removal
    assert Plan.load(tmp_path / "run" / "plan.json") == bare.plan
    assert not any((tmp_path / "run" / name).exists() for name in ("fit.safetensors", "fit.json", "fitted.json"))
    assert apply_plan(tmp_path / "run" / "plan.json", tmp_path / "applied").plan.is_pure_removal
    back = compress(recipe(small), tmp_path / "run", overwrite=True)
    assert same(tensors(back.folder), tensors(whole.folder))


@pytest.mark.slow  # Three runs.
def test_a_trained_layer_and_a_repair_take_turns_in_one_folder(small, tmp_path):
    train = {"tokens": 24 * LENGTH, "batch": 8, "micro_batch": 4}
    layer = recipe(small, "none", replace="layer", train=train)
    values = load_file(compress(layer, tmp_path / "run").folder / "train.safetensors")
    assert compress(recipe(small), tmp_path / "run", overwrite=True).repaired.kept
    back = compress(layer, tmp_path / "run", overwrite=True)
    assert same(load_file(back.folder / "train.safetensors"), values) and back.repaired is None
    assert not (back.folder / "fit.safetensors").exists()


@pytest.mark.parametrize("replacement", ["linear", "free"])
def test_a_repair_that_was_undone_leaves_a_plan_that_can_be_applied(replacement, small, tmp_path, monkeypatch):
    """A replacement whose values were found worse than its start keeps the start, and the files beside the plan hold it."""
    worse = partial(fit_plan, quality=lambda students: [0.0, 1.0])
    monkeypatch.setattr("shoal.run.stages.fit.fit_plan", lambda *args, **options: worse(*args, **{**options, **worse.keywords}))
    outcome = compress(recipe(small, "solve", replace=replacement, polish="none"), tmp_path / "run")
    assert not outcome.repaired.kept and outcome.repaired.kl_after == 1.0
    applied = apply_plan(outcome.folder / "fitted.json", tmp_path / "applied", opening=Opening(trust=True))
    for file in outcome.model.glob("*.safetensors"):
        assert same(load_file(file), load_file(applied.path / file.name))


def test_an_unknown_repair_is_refused(small):
    with pytest.raises(ValueError, match="repair"):
        recipe(small, "swep")


def test_the_text_of_a_repair_grows_with_the_widest_map():
    assert FitConfig().n_tokens(100) == FEWEST_TOKENS
    assert FitConfig().n_tokens(14336) == TOKENS_PER_INPUT * 14336
    assert FitConfig(tokens=5).n_tokens(14336) == 5


def test_the_command_repairs_and_shows_it(small, tmp_path, capsys, monkeypatch):
    def shoal(*more):
        text = ["--text", small["text"], "--length", "16", "--samples", "12"]
        monkeypatch.setattr(sys, "argv", ["shoal", "compress", small["model"], "--out", str(tmp_path / "run"), *text, *more])
        with pytest.raises(SystemExit) as exit:
            main()
        return exit.value.code or 0, capsys.readouterr()

    code, shown = shoal("--drop", "2", "--replace", "none", "--repair", "sweep", "--fit-tokens", "1600", "--json")
    assert code == 0, shown.err
    found = json.loads(shown.out)
    assert found["repair"]["kept"] and found["repair"]["n_tokens"] == 1600
    assert "Repair: 'sweep' of layers" in " ".join(shown.err.split())


def test_the_guard_ranks_repaired_candidates(whole, small, tmp_path):
    """Each with its repair on a part of the text; the plain figures stay beside them; linear errors have a word."""
    ranked = whole.plan.candidates
    assert len(ranked) > 1 and all(one.kl_plain is not None and one.kl <= one.kl_plain for one in ranked)
    assert [one.kl for one in ranked] == sorted(one.kl for one in ranked)
    assert any("span linear_error/rest" in one.proposed_by for one in ranked)
    plain = compress(recipe(small, "none"), tmp_path / "plain").plan.candidates
    assert all(one.kl_plain is None and "span linear_error/rest" not in one.proposed_by for one in plain)
    same = {one.layers: one.kl for one in plain}
    assert all(one.kl_plain == same[one.layers] for one in ranked if one.layers in same)


def test_the_linear_error_can_decide_alone(small, tmp_path):
    chosen = compress(recipe(small, by="linear_error/rest", guard=1), tmp_path / "run").plan
    assert len(chosen.removed_layers) == 2 and "linear_error/rest" in chosen.method
    with pytest.raises(ValueError, match="--select span"):
        compress(recipe(small, by="linear_error/rest", select="lowest"), tmp_path / "other")


def test_help_documents_and_implementation_read_one_table(shoal):
    code, out, _ = shoal("compress", "--help")
    said = " ".join(re.sub(r"[│\s]+", " ", out).split())
    page = (Path(__file__).parent.parent / "docs/repair.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|$", page.split("| `--repair` |")[1].split("\n\n")[0], re.MULTILINE)
    assert dict(rows) == {name: one.about for name, one in REPAIRS.items()}
    assert code == 0 and all(f"{name}: {one.about.split()[0]}" in said for name, one in REPAIRS.items())


@pytest.mark.parametrize("replacement", [*solved_replacements(), "linear:rank=2"])
def test_a_replacement_in_closed_form_ends_in_a_checkpoint_without_training(replacement, small, tmp_path):
    outcome = compress(recipe(small, "solve", replace=replacement, polish="none"), tmp_path / "run")
    assert outcome.repaired.repair == "solve" and not outcome.trained
    assert outcome.repaired.kl_after < outcome.repaired.kl_before or not outcome.repaired.kept
    assert {edit.replacement for edit in outcome.plan.replacements} == {replacement.partition(":")[0]}
    assert outcome.evaluation.quality.kl >= 0


def test_solving_needs_a_replacement_with_a_closed_form(small):
    for replacement in ("none", "layer", "swiglu"):
        with pytest.raises(ValueError, match="repair 'solve' sets a replacement that has a closed form"):
            recipe(small, "solve", replace=replacement)
