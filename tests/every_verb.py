"""Every verb that opens models, with what it needs, on a tiny model whose class comes with it and notes its forwards."""

import json
from pathlib import Path

from gguf_world import tiny_llama, write_gguf
from world import write_model, write_text

from shoal.engine.opening import Opening
from shoal.run.apply import apply_plan

CONFIG = """
from transformers import LlamaConfig

class OursConfig(LlamaConfig):
    model_type = "ours"  # Its model's forwards are noted in {mark}.
"""
# The mark makes each world's config a class of its own: transformers runs the first class that was registered for a config.
MODEL = """
from transformers import LlamaForCausalLM
{import_config}

class OursForCausalLM(LlamaForCausalLM):
    config_class = {config}

    def forward(self, *args, **kwargs):
        with open("{mark}", "a") as file:
            print(self.dtype, self.config.num_hidden_layers, file=file)
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
        (folder / "configuration_ours.py").write_text(CONFIG.format(mark=mark))
        config["auto_map"]["AutoConfig"] = "configuration_ours.OursConfig"
        config["model_type"] = "ours"
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_world(folder, kind):
    """A model with its own code, text for it, and the file in which its forwards are noted."""
    mark = folder / "ran"
    model = write_own_code(folder / "model", kind, mark)
    return {"model": model, "text": write_text(folder / "text.jsonl"), "mark": mark, "kind": kind}


def text(world):
    return ("--text", world["text"], "--length", 16, "--samples", 8)


def quiz(world):
    rows = [{"ctx": f"w{i} w{i + 1}", "choices": [f" w{i + 2}", f" w{i + 3}"], "gold": i % 2} for i in range(4)]
    path = world["mark"].parent / "quiz.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(world):
    """Two folders of predictions that another evaluator wrote."""
    folder = world["mark"].parent / "answers"
    for name, shift in (("teacher", 0.0), ("student", 0.1)):
        made = folder / name / "quiz.json"
        made.parent.mkdir(parents=True, exist_ok=True)
        rows = {
            str(i): {"label: A": {"PPL": 1.0 + i % 2 + shift}, "label: B": {"PPL": 1.5}, "prediction": "A", "gold": "A"}
            for i in range(4)
        }
        made.write_text(json.dumps(rows))
    return folder / "teacher", folder / "student"


def gguf_file(world):
    path = world["mark"].parent / "model.gguf"
    return path if path.exists() else write_gguf(path, tiny_llama())


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
REPAIRED = ("--drop", 2, "--guard", 2, "--fit-tokens", 400)
# Every verb that opens models, with what it needs; PLAN and RECIPE are made before.
VERBS = {
    "scan": lambda w: ("scan", w["model"], "--out", "run", *text(w)),
    "plan": lambda w: ("plan", w["model"], "--out", "run", *text(w), *QUICK),
    "plan unopened": lambda w: ("plan", w["model"], "--out", "run", "--recipe", "uidl-simple", "--drop", 2),
    "plan --memory": lambda w: ("plan", w["model"], "--out", "run", "--memory", *QUICK),
    "apply": lambda w: ("apply", "made/plan.json", "--out", "checkpoint"),
    "compress": lambda w: ("compress", w["model"], "--out", "run", *text(w), *QUICK),
    "compress, streamed": lambda w: ("compress", w["model"], "--out", "run", *text(w), *QUICK, "--resident", 1),
    "compress, repaired": lambda w: ("compress", w["model"], "--out", "run", *text(w), *REPAIRED),
    "run": lambda w: ("run", "made/recipe.yaml", "--out", "run"),
    "eval": lambda w: ("eval", w["model"], *text(w)),
    "eval --teacher": lambda w: ("eval", w["model"], "--teacher", w["model"], *text(w)),
    "write": lambda w: ("write", w["model"], "--out", "own.jsonl", "--n", 2, *text(w)[:2]),
    "compare": lambda w: ("compare", w["model"], w["model"], *text(w)),
    "eval, tasks": lambda w: ("eval", w["model"], "--teacher", w["model"], "--task", quiz(w), *text(w)),
    "compare, tasks": lambda w: ("compare", w["model"], w["model"], "--task", quiz(w), *text(w)),
    "heal": lambda w: ("heal", student(w), "--out", "run", *HEAL, *text(w)[:4]),
    "heal, full": lambda w: ("heal", student(w), "--out", "run", *HEAL, *text(w)[:4], "--method", "full"),
    "compress, laco": lambda w: ("compress", w["model"], "--out", "run", *text(w), *QUICK, "--select", "laco"),
    "compress, sliding": lambda w: ("compress", w["model"], "--out", "run", *text(w), *QUICK, "--select", "sliding"),
    "compress, healed": lambda w: ("compress", w["model"], "--out", "run", *text(w), *QUICK, "--heal", "norms", *TOKENS),
    "curve": lambda w: ("curve", w["model"], "--out", "run", "--drop", "0..1", "--task", quiz(w), *ONE_METHOD, *text(w)),
    "prune": lambda w: ("prune", w["model"], "--out", "run", "--no-speed", *text(w)),
    "grow": lambda w: ("grow", w["model"], "--out", "run", "--to", 7, "--no-speed", *text(w)),
    "analyse": lambda w: ("analyse", w["model"], "--out", "run", *text(w)),
    "export": lambda w: ("export", "hf", w["model"], "--out", "written"),
    "verify": lambda w: ("verify", w["model"], "--against", w["model"], "--engine", "transformers"),
    "stability": lambda w: ("stability", *answers(w)),
    "cut": lambda w: ("cut", gguf_file(w), "--layers", 1, "--out", "cut.gguf"),
    "report": lambda w: ("report", "made"),
}
SLOW = (
    "verify",
    "heal, full",
    "compress, sliding",
    "compress, laco",
    "compress, healed",
    "compress, repaired",
    "compress, streamed",
)
"""Each long and a sibling of another, or with an engine that is a process of its own."""
ON_FILES = ("stability", "cut", "report")  # No model is named, so no trust is asked for.
OPEN_NOTHING = ("plan unopened", "plan --memory", *ON_FILES)


def prepare(world, shoal):
    code, _, err = shoal("plan", world["model"], "--recipe", "uidl-simple", "--drop", 2, "--out", "made", "--trust-remote-code")
    assert code == 0, err
    fields = {"model": str(world["model"]), "text": {"sources": [str(world["text"])], "length": 16, "samples": 8}}
    recipe = {**fields, "drop": "2", "guard": 1, "repair": "none"}
    with open("made/recipe.yaml", "w") as file:
        json.dump(recipe, file)  # JSON is YAML
    world["mark"].unlink(missing_ok=True)
