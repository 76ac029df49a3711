"""``--trust-remote-code`` reaches every opening of every verb, of the model and of its student; without it nothing runs."""

import json
import sys

import pytest
import torch
from world import write_model, write_text

CONFIG = """
from transformers import LlamaConfig

class OursConfig(LlamaConfig):
    model_type = "ours"
"""
MODEL = """
from pathlib import Path
from transformers import LlamaForCausalLM
{import_config}

class OursForCausalLM(LlamaForCausalLM):
    config_class = {config}

    def forward(self, *args, **kwargs):
        Path("{mark}").write_text("it ran")
        return super().forward(*args, **kwargs)
"""
KINDS = ("stock config", "own config")


def write_own_code(folder, kind, mark):
    """A model whose class comes with it; its code leaves a mark when it runs."""
    write_model(folder)
    own = kind == "own config"
    names = {"import_config": "from .configuration_ours import OursConfig" if own else "from transformers import LlamaConfig"}
    (folder / "modeling_ours.py").write_text(MODEL.format(config="OursConfig" if own else "LlamaConfig", mark=mark, **names))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_ours.OursForCausalLM"}
    config["architectures"] = ["OursForCausalLM"]
    if own:
        (folder / "configuration_ours.py").write_text(CONFIG)
        config["auto_map"]["AutoConfig"] = "configuration_ours.OursConfig"
        config["model_type"] = "ours"
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module", params=KINDS)
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own code")
    model = write_own_code(folder / "model", request.param, folder / "ran")
    return {"model": model, "text": write_text(folder / "text.jsonl"), "mark": folder / "ran", "kind": request.param}


def text(world):
    return ("--text", world["text"], "--length", 16, "--samples", 8)


QUICK = ("--drop", 2, "--guard", 1, "--repair", "none")
# Every verb that opens models, with what it needs; PLAN and RECIPE are made before.
VERBS = {
    "scan": lambda w: ("scan", w["model"], "--out", "run", *text(w)),
    "plan": lambda w: ("plan", w["model"], "--out", "run", *text(w), *QUICK),
    "plan unopened": lambda w: ("plan", w["model"], "--out", "run", "--recipe", "uidl-simple", "--drop", 2),
    "plan --memory": lambda w: ("plan", w["model"], "--out", "run", "--memory", *QUICK),
    "apply": lambda w: ("apply", "made/plan.json", "--out", "checkpoint"),
    "compress": lambda w: ("compress", w["model"], "--out", "run", *text(w), *QUICK),
    "compress, streamed": lambda w: ("compress", w["model"], "--out", "run", *text(w), *QUICK, "--resident", 1),
    "compress, repaired": lambda w: ("compress", w["model"], "--out", "run", *text(w), "--drop", 2, "--fit-tokens", 2000),
    "run": lambda w: ("run", "made/recipe.yaml", "--out", "run"),
    "eval": lambda w: ("eval", w["model"], *text(w)),
    "eval --teacher": lambda w: ("eval", w["model"], "--teacher", w["model"], *text(w)),
    "write": lambda w: ("write", w["model"], "--out", "own.jsonl", "--n", 2, *text(w)[:2]),
    "compare": lambda w: ("compare", w["model"], w["model"], *text(w)),
}


def prepare(world, shoal):
    code, _, err = shoal("plan", world["model"], "--recipe", "uidl-simple", "--drop", 2, "--out", "made", "--trust-remote-code")
    assert code == 0, err
    fields = {"model": str(world["model"]), "text": {"sources": [str(world["text"])], "length": 16, "samples": 8}}
    recipe = {**fields, "drop": "2", "guard": 1, "repair": "none"}
    with open("made/recipe.yaml", "w") as file:
        json.dump(recipe, file)  # JSON is YAML
    world["mark"].unlink(missing_ok=True)


FEW = ("plan unopened", "apply", "compress", "eval")
"""Verbs that are tried on a model with a config of the library, too."""


@pytest.mark.parametrize("verb", VERBS)
def test_with_the_flag_every_verb_runs_to_its_end(world, verb, shoal):
    if world["kind"] == "stock config" and verb not in FEW:
        return
    prepare(world, shoal)
    code, _, err = shoal(*VERBS[verb](world), "--trust-remote-code")
    assert code == 0, err
    assert world["mark"].exists() or verb in ("plan unopened", "plan --memory"), "another class than the model's own ran"


@pytest.mark.parametrize("verb", VERBS)
def test_without_the_flag_the_models_code_never_runs_and_nobody_is_asked(world, verb, shoal, monkeypatch):
    if world["kind"] == "stock config" and verb not in FEW:
        return
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("a question on the terminal"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    prepare(world, shoal)
    code, _, err = shoal(*VERBS[verb](world))
    assert not world["mark"].exists()
    if world["kind"] == "own config":
        lines = [line for line in err.splitlines() if line.startswith("shoal: ")]
        assert code == 2 and len(lines) == 1 and "--trust-remote-code" in lines[0], err


def test_no_verb_is_forgotten_here():
    import typer

    from shoal.cli.table import app

    commands = typer.main.get_command(app).commands
    with_flag = {name for name, one in commands.items() if any("--trust-remote-code" in option.opts for option in one.params)}
    assert with_flag <= {verb.split()[0].rstrip(",") for verb in VERBS} | NEEDS_TASKS


NEEDS_TASKS = {"stability", "sweep", "curve", "heal", "cut", "export", "prune", "grow", "verify", "analyse", "analyze"}
"""Verbs that open through the same functions and need more than a model and text."""


def test_the_checkpoint_of_such_a_model_is_one_too(world, shoal):
    code, _, err = shoal("compress", world["model"], "--out", "run", *text(world), *QUICK, "--trust-remote-code")
    assert code == 0, err
    from transformers import AutoModelForCausalLM

    world["mark"].unlink(missing_ok=True)
    model = AutoModelForCausalLM.from_pretrained("run/model", trust_remote_code=True)
    assert type(model).__name__ == "OursForCausalLM" and model.config.num_hidden_layers == 4
    model(input_ids=torch.tensor([[1, 2, 3]]))
    assert world["mark"].exists()


def test_a_checkpoint_with_code_of_ours_can_be_cut_again(shoal, small):
    common = ("--text", small["text"], "--length", 16, "--samples", 8, "--guard", 1, "--drop", 2)
    more = ("--replace", "free", "--repair", "solve", "--polish", "none")
    code, _, err = shoal("compress", small["model"], "--out", "one", *common, *more)
    assert code == 0, err
    code, _, err = shoal("compress", "one/model", "--out", "two", *common, "--repair", "none", "--trust-remote-code")
    assert code == 0, err
    code, _, err = shoal("compress", "one/model", "--out", "three", *common, "--repair", "none")
    assert code == 2 and "--trust-remote-code" in err and "Traceback" not in err
