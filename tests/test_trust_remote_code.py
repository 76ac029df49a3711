"""``--trust-remote-code`` reaches every opening of every verb, of the model and of its student; without it nothing runs."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import typer
from world import write_model, write_text

import shoal as shoal_package
from shoal.cli.table import app
from shoal.engine.opening import Opening
from shoal.run.apply import apply_plan

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


def quiz(world):
    rows = [{"ctx": f"w{i} w{i + 1}", "choices": [f" w{i + 2}", f" w{i + 3}"], "gold": i % 2} for i in range(4)]
    path = world["mark"].parent / "quiz.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def student(world):
    """A cut checkpoint of the model, with its code beside it."""
    out = world["mark"].parent / "student"
    if not out.exists():
        apply_plan(Path("made/plan.json"), out, Opening(trust=True))
        world["mark"].unlink(missing_ok=True)
    return out


TOKENS = ("--heal-tokens", 128)
HEAL = ("--plan", "made/plan.json", "--tokens", 128, "--batch", 4)
ONE_METHOD = ("--methods", "none")
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
    "eval, tasks": lambda w: ("eval", w["model"], "--teacher", w["model"], "--task", quiz(w), *text(w)),
    "compare, tasks": lambda w: ("compare", w["model"], w["model"], "--task", quiz(w), *text(w)),
    "heal": lambda w: ("heal", student(w), "--out", "run", *HEAL, *text(w)[:4]),
    "compress, healed": lambda w: ("compress", w["model"], "--out", "run", *text(w), *QUICK, "--heal", "norms", *TOKENS),
    "curve": lambda w: ("curve", w["model"], "--out", "run", "--drop", "0..1", "--task", quiz(w), *ONE_METHOD, *text(w)),
    "prune": lambda w: ("prune", w["model"], "--out", "run", "--method", "magnitude", "--no-speed", *text(w)),
    "grow": lambda w: ("grow", w["model"], "--out", "run", "--to", 7, "--no-speed", *text(w)),
    "analyse": lambda w: ("analyse", w["model"], "--out", "run", *text(w)),
    "export": lambda w: ("export", "hf", w["model"], "--out", "written"),
    "verify": lambda w: ("verify", w["model"], "--against", w["model"], "--engine", "transformers"),
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
    """Every verb with the flag is tried above; the others say that they open no model of its own code."""
    commands = typer.main.get_command(app).commands
    with_flag = {name for name, one in commands.items() if any("--trust-remote-code" in option.opts for option in one.params)}
    assert with_flag == {verb.split()[0].rstrip(",") for verb in VERBS}
    assert set(commands) - with_flag <= {"demo", "stability", "cut", "report"}


OPENERS = {
    "open_model", "open_streamed", "load_strictly", "load_tokenizer", "describe", "resolve_source", "check_source",
    "open_inputs", "open_pupil", "open_in_4_bits", "out_of_4_bits", "verify", "verify_streamed",
    "from_pretrained", "read_config", "HealBench",
}  # fmt: skip
TRUSTS = ("trust", "trust_remote_code", "opening", "Opening", "here", "like", "inputs")
"""What a call may get its trust from: by itself, by an Opening, by a model in memory, by the inputs that were opened."""
EXPORTS = (
    "export/gguf", "export/blocks.py", "export/engines/", "export/prove.py", "export/table.py", "cli/cut.py",
    "engine/gguf_source.py", "edits/",
)  # fmt: skip
"""Work on files, and on what was trusted before: no code that comes with a model is run there, whatever the user trusts."""


def test_every_opening_in_the_source_is_told_whether_to_trust():
    """An opening that is not told would refuse a model halfway through a run that its user trusts."""
    source = Path(shoal_package.__file__).parent
    forgotten, n_seen = [], 0
    for path in sorted(source.rglob("*.py")):
        name = path.relative_to(source).as_posix()
        for call in ast.walk(ast.parse(path.read_text())):
            if name.startswith(EXPORTS) or not isinstance(call, ast.Call):
                continue
            called = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
            on_path = ast.unparse(call.func).split(".")[0] if isinstance(call.func, ast.Attribute) else ""
            if called in OPENERS and on_path not in ("self", "peft"):
                n_seen += 1
                if not re.search(rf"\b({'|'.join(TRUSTS)})\b", ast.unparse(call)):
                    forgotten.append(f"{name}:{call.lineno}: {ast.unparse(call)}")
    assert n_seen > 40 and forgotten == []


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
