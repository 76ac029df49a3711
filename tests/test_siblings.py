"""Inputs of the kinds that people ran into, which nobody had listed: each ends in a result, or in one line and nothing left."""

import json
import os
import shutil
from pathlib import Path

import pytest

LONG = " ".join(f"w{i % 40}" for i in range(50))
TEXT = ("--length", 16)
FEW = (*TEXT, "--samples", 8)


def rows(*found):
    Path("t.jsonl").write_text("\n".join(map(json.dumps, found)))
    return "t.jsonl"


def pipe(name):
    os.mkfifo(name)
    return name


def folder(name):
    Path(name).mkdir()
    return name


def holding(name, content):
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def model(small, **fields):
    """The model with other fields in its config."""
    made = Path(shutil.copytree(small["model"], "m"))
    stated = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**stated, **fields}))
    return made


def beside(small, name, content):
    """The model with another file beside its weights; None: a pipe."""
    made = Path(shutil.copytree(small["model"], "m"))
    (made / name).unlink(missing_ok=True)
    if content is None:
        os.mkfifo(made / name)
    else:
        (made / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return made


def ends_well(code, err, *, said):
    """Exit code 0, or one line that says this."""
    lines = [line for line in err.splitlines() if line.startswith("shoal: ")]
    print(code, lines)
    assert "Traceback" not in err and "fault of shoal" not in err, err
    if said is None:
        assert code == 0, err
    else:
        assert code == 2 and len(lines) == 1 and said in lines[0], (code, lines or err)
        assert not Path("o").exists() and not list(Path(".").glob(".o*"))


ROWS = {
    "a text and a null": ([{"text": None}, {"text": LONG}], (), "line 1: text is empty (null)"),
    "preferences": ([{"prompt": "w1", "chosen": LONG, "rejected": LONG}] * 3, (), "name the one that holds it with --field"),
    "turns that are texts": ([{"data": [LONG, LONG]}], ("--field", "data"), "data, turn 1 is a text"),
    "a row that is a number": ([7], (), "is a JSON int"),
    "a system alone": ([{"messages": [{"role": "system", "content": ""}]}] * 3, (), "holds no text"),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows(name, small, shoal):
    found, more, said = ROWS[name]
    code, _, err = shoal("scan", small["model"], "--text", rows(*found), *more, *TEXT, "--out", "o")
    ends_well(code, err, said=said)


NO_TEXT = {
    "a dash": (lambda: "-", "no such text"),
    "nothing": (lambda: "", ""),
    "parts of nothing": (lambda: "0.7*nope.txt+0.3*x.txt", "nope.txt"),
    "a table with a short row": (lambda: holding("t.csv", f"id,text\n1,{LONG}\n2\n"), "text is empty (null)"),
    "UTF-16": (lambda: holding("t.txt", LONG.encode("utf-16")), "not UTF-8"),
    "a pipe": (lambda: pipe("t.jsonl"), "pipe"),
    "an empty folder": (lambda: folder("texts"), "holds no text"),
}


@pytest.mark.parametrize("name", NO_TEXT)
def test_texts(name, small, shoal):
    make, said = NO_TEXT[name]
    code, _, err = shoal("scan", small["model"], "--text", make(), *TEXT, "--out", "o")
    ends_well(code, err, said=said)


LITTLE = {"plan": ("--drop", 2), "curve": (), "grow": (), "prune": (), "write": ()}


@pytest.mark.parametrize("verb", LITTLE)
def test_too_little_text(verb, small, shoal):
    out = "o.jsonl" if verb == "write" else "o"
    code, _, err = shoal(verb, small["model"], *LITTLE[verb], "--text", holding("t.txt", "w1 w2 w3"), "--out", out)
    ends_well(code, err, said="too little text")


CONFIGS = {
    "an activation": ({"hidden_act": "x"}, ""),
    "no vocabulary": ({"vocab_size": 0}, ""),
    "a vocabulary below none": ({"vocab_size": -5}, ""),
    "an epsilon in words": ({"rms_norm_eps": "x"}, ""),
    "heads of nothing": ({"head_dim": 0}, ""),
    "rotations in words": ({"rope_parameters": "x"}, ""),
    "rotations in a list": ({"rope_parameters": [1]}, ""),
    "rotations by nothing": ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "holds NaN before any weight"),
    "rotations of no kind": ({"rope_parameters": {"rope_type": "zzz", "rope_theta": 1e4}}, ""),
    "half a layer": ({"num_hidden_layers": 6.5}, ""),
    "layers in words": ({"num_hidden_layers": "6"}, ""),
    "no layers": ({"num_hidden_layers": 0}, ""),
    "a window in words": ({"max_position_embeddings": "x"}, ""),
    "keys for three heads": ({"num_key_value_heads": 3}, ""),
    "a padding that is no token": ({"pad_token_id": 10**6}, ""),
    "too few kinds": ({"layer_types": ["full_attention"]}, ""),
    "a range in words": ({"initializer_range": "x"}, "cannot be read"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs(name, small, shoal):
    fields, said = CONFIGS[name]
    code, _, err = shoal("scan", model(small, **fields), "--text", small["text"], *FEW, "--out", "o")
    ends_well(code, err, said=said)


BESIDE = {
    "generation in words": ("generation_config.json", {"max_length": "x", "temperature": "hot"}, None),
    "an end that is a list": ("generation_config.json", {"eos_token_id": [[]]}, None),
    "a template that is a number": ("tokenizer_config.json", {"chat_template": 5}, None),
    "a tokenizer of no class": ("tokenizer_config.json", {"tokenizer_class": "Nope"}, None),
    "special tokens in a list": ("special_tokens_map.json", [1], "an object is needed"),
    "a template that is a pipe": ("chat_template.jinja", None, ""),
    "a template that is none": ("chat_template.jinja", "{% for %}", None),
    "a card that is a pipe": ("README.md", None, ""),
    "pickled weights": ("pytorch_model.bin", "x", None),
    "weights of another tool": ("consolidated.safetensors", "x", None),
}


@pytest.mark.parametrize("verb", ["apply", "scan"])
@pytest.mark.parametrize("name", BESIDE)
def test_files_beside_the_weights(name, verb, small, shoal):
    file, content, said = BESIDE[name]
    more = ("--layers", 2) if verb == "apply" else ("--text", small["text"], *FEW)
    code, _, err = shoal(verb, beside(small, file, content), *more, "--out", "o")
    ends_well(code, err, said=said)


PLACES = {
    "a recipe that is a pipe": (lambda s: ("run", pipe("r.yaml"), "--model", s["model"], "--out", "o"), "pipe"),
    "a recipe that is a folder": (lambda s: ("run", folder("r.yaml"), "--model", s["model"], "--out", "o"), "folder"),
    "a recipe of bytes": (lambda s: ("run", holding("r.yaml", bytes(range(256))), "--model", s["model"], "--out", "o"), ""),
    "tasks that are a pipe": (lambda s: ("eval", s["model"], "--text", s["text"], *FEW, "--task", pipe("t.jsonl")), "pipe"),
    "tasks that are a folder": (lambda s: ("eval", s["model"], "--text", s["text"], *FEW, "--task", folder("t.jsonl")), ""),
    "no tasks": (lambda s: ("eval", s["model"], "--text", s["text"], *FEW, "--task", holding("t.jsonl", "")), ""),
    "a plan that is a pipe": (lambda s: ("apply", pipe("plan.json"), "--out", "o"), "plan.json is a pipe"),
    "a plan that is a folder": (lambda s: ("apply", folder("plan.json"), "--out", "o"), "is a folder, and a plan is a file"),
    "a report of a model": (lambda s: ("report", s["model"]), ""),
    "a model without a name": (lambda s: ("scan", "", "--text", s["text"], *FEW, "--out", "o"), ""),
    "a revision without a name": (lambda s: ("scan", "org/name@", "--text", s["text"], *FEW, "--out", "o"), ""),
    "an address": (lambda s: ("scan", "https://example.org/name", "--text", s["text"], *FEW, "--out", "o"), ""),
    "a device that there is not": (lambda s: ("scan", s["model"], "--device", "tpu", "--out", "o"), ""),
    "no layers in memory": (lambda s: ("scan", s["model"], "--resident", 0, "--out", "o"), "--resident"),
    "samples beyond all text": (lambda s: ("scan", s["model"], "--samples", 10**13, "--out", "o"), "less than or equal"),
    "a seed below 0": (lambda s: ("scan", s["model"], "--seed", -1, "--out", "o"), ""),
    "layers named twice": (lambda s: ("apply", s["model"], "--layers", "2,2,3", "--out", "o"), None),
    "layers with spaces": (lambda s: ("apply", s["model"], "--layers", " 2 , 3 ", "--out", "o"), None),
    "no layer": (lambda s: ("apply", s["model"], "--layers", "none", "--out", "o"), "so nothing is removed"),
    "all layers kept": (lambda s: ("apply", s["model"], "--keep", "0..5", "--out", "o"), "so nothing is removed"),
    "layers backwards": (lambda s: ("apply", s["model"], "--keep", "4..1", "--out", "o"), "runs backwards"),
    "a format of no name": (lambda s: ("export", "ggml", s["model"], "--out", "o"), ""),
    "a file that is not there": (lambda s: ("verify", "nope.gguf", "--against", s["model"]), "nope.gguf"),
    "a time in words": (lambda s: ("compress", s["model"], "--time", "soon", "--out", "o"), "such as 10m"),
    "too few layers": (lambda s: ("grow", s["model"], "--text", s["text"], *FEW, "--to", 3, "--out", "o"), "--to 3"),
    "twice of all weights": (lambda s: ("prune", s["model"], "--sparsity", "200%", "--out", "o"), "sparsity"),
    "a time for no repair": (
        lambda s: ("compress", s["model"], "--text", s["text"], *FEW, "--time", "9m", "--repair", "none", "--out", "o"),
        "--time chooses",
    ),
    "a range backwards": (lambda s: ("curve", s["model"], "--text", s["text"], *FEW, "--drop", "90..10%", "--out", "o"), ""),
    "writing at no temperature": (
        lambda s: ("write", s["model"], "--text", s["text"], "--n", 1, "--temperature", "nan", "--out", "o.jsonl"), "above 0",
    ),
    "a name of two lines": (lambda s: ("apply", s["model"], "--layers", 2, "--out", "a\nb"), None),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_places_and_options(name, small, shoal):
    make, said = PLACES[name]
    code, _, err = shoal(*make(small))
    ends_well(code, err, said=said)


EDITED = {
    "no indices": (lambda plan: plan["edits"][0].update(indices=[]), ""),
    "no edits": (lambda plan: plan.update(edits=[]), "so nothing is removed"),
    "one edit twice": (lambda plan: plan["edits"].append(plan["edits"][0]), ""),
    "all layers": (lambda plan: plan["edits"][0].update(indices=list(range(6))), ""),
    "half an index": (lambda plan: plan["edits"][0].update(indices=[2.5]), ""),
    "a source that is gone": (lambda plan: plan.update(source="/nowhere"), "/nowhere"),
    "a kind of no name": (lambda plan: plan["edits"][0].update(kind="moe"), ""),
}


@pytest.mark.parametrize("name", EDITED)
def test_plans_edited_by_hand(name, small, shoal):
    edit, said = EDITED[name]
    assert shoal("plan", small["model"], "--layers", 3, "--out", "p")[0] == 0
    plan = json.loads(Path("p/plan.json").read_text())
    edit(plan)
    Path("p/plan.json").write_text(json.dumps(plan))
    code, _, err = shoal("apply", "p/plan.json", "--out", "o")
    ends_well(code, err, said=said)
