"""``--trust-remote-code`` reaches every opening of every verb, of the model and of its student; without it nothing runs."""

import ast
import re
import sys
from pathlib import Path

import pytest
import torch
from every_verb import KINDS, ON_FILES, QUICK, VERBS, prepare, text, write_world

import shoal as shoal_package


@pytest.fixture(scope="module", params=KINDS)
def world(request, tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("own code"), request.param)


FEW = ("plan unopened", "apply", "compress", "eval")
"""Verbs that are tried on a model with a config of the library, too; that all run with the flag is a law of every verb."""


@pytest.mark.parametrize("verb", FEW)
def test_with_the_flag_a_verb_runs_to_its_end(world, verb, shoal):
    if world["kind"] == "own config":
        return
    prepare(world, shoal)
    code, _, err = shoal(*VERBS[verb](world), "--trust-remote-code")
    assert code == 0, err
    assert world["mark"].exists() or verb == "plan unopened", "another class than the model's own ran"


@pytest.mark.parametrize("verb", VERBS)
def test_without_the_flag_the_models_code_never_runs_and_nobody_is_asked(world, verb, shoal, monkeypatch):
    if world["kind"] == "stock config" and verb not in FEW:
        return
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("a question on the terminal"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    prepare(world, shoal)
    code, _, err = shoal(*VERBS[verb](world))
    assert not world["mark"].exists()
    if verb in ON_FILES:
        assert code == 0, err
    elif world["kind"] == "own config":
        lines = [line for line in err.splitlines() if line.startswith("shoal: ")]
        assert code == 2 and len(lines) == 1 and "--trust-remote-code" in lines[0], err


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


@pytest.mark.slow
def test_a_checkpoint_with_code_of_ours_can_be_cut_again(shoal, small):
    common = ("--text", small["text"], "--length", 16, "--samples", 8, "--guard", 1, "--drop", 2)
    more = ("--replace", "free", "--repair", "solve", "--polish", "none")
    code, _, err = shoal("compress", small["model"], "--out", "one", *common, *more)
    assert code == 0, err
    code, _, err = shoal("compress", "one/model", "--out", "two", *common, "--repair", "none", "--trust-remote-code")
    assert code == 0, err
    code, _, err = shoal("compress", "one/model", "--out", "three", *common, "--repair", "none")
    assert code == 2 and "--trust-remote-code" in err and "Traceback" not in err
