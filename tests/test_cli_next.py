"""What the command says to do next can be done: each command is parsed, and its files are those that are there."""

import json
import shlex
from pathlib import Path

import pytest
import typer

from shoal.cli.show import next_steps
from shoal.cli.table import app
from shoal.edits.drop import Drop
from shoal.edits.plan import Plan
from shoal.words.structure import Size


def plan(source="org/a name"):
    before, after = Size(layers=6, parameters=60), Size(layers=5, parameters=50)
    return Plan(source=source, source_hash="h", teacher=source, n_layers=6, before=before, after=after,
                edits=(Drop(indices=(3,)),))  # fmt: skip


GGUF = {
    "written here": ({"model_type": "llama"}, ["student.gguf"]),
    "grafted": ({"model_type": "olmo2"}, ["TEACHER.gguf", "student.gguf"]),
    "with images": ({"model_type": "llava", "text_config": {}}, ["TEACHER.gguf", "student.gguf"]),
    "quantised": ({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}, None),
}
"""By the config of a student: the files that its command for llama.cpp names; None where plain weights come first."""


@pytest.mark.parametrize("is_healed", [False, True])
@pytest.mark.parametrize(("config", "files"), GGUF.values(), ids=GGUF)
def test_every_next_step_is_a_command_that_parses(is_healed, config, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = Path("out dir/run/model")
    for folder in (model, Path("org/a name")):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
    head, *lines = next_steps(model.parent, plan(), is_healed=is_healed)
    commands = [shlex.split(line.split(":", 1)[1]) for line in lines]
    assert head == "What next:" and all(len(line) <= 90 for line in lines)
    verbs = ["compare", *([] if is_healed or files is None else ["heal"]), "export"]
    assert [words[1] for words in commands] == verbs
    assert "plain" in commands[-1] if files is None else [word for word in commands[-1] if word.endswith(".gguf")] == files
    group = typer.main.get_command(app)
    for _, verb, *words in commands:
        context = group.commands[verb].make_context(verb, words, resilient_parsing=False)
        assert any("out dir/run" in str(value) for value in context.params.values())


def test_a_student_of_a_gguf_file_goes_back_into_that_file(tmp_path):
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps({"model_type": "llama"}))
    lines = next_steps(model.parent, plan("my model.gguf"), is_healed=True)
    assert "--like 'my model.gguf' --out student.gguf" in lines[-1]
