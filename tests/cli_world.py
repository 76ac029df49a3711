"""What tests of the command ask for, and what one clear line is."""

import json
import shutil

from safetensors.torch import load_file, save_file


def options(world, *more):
    return ("--text", world / "text.jsonl", "--samples", 8, "--length", 16, *more)


def copied(world, tmp_path, **config):
    folder = tmp_path / "copy"
    shutil.copytree(world / "model", folder)
    if config:
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**content, **config}))
    return folder


def edit_weights(folder, edit):
    values = load_file(folder / "model.safetensors")
    edit(values)
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})


def one_line(code, err, said):
    lines = [line for line in err.splitlines() if line.startswith("shoal: ")]
    assert code == 2, err
    assert len(lines) == 1 and lines[0].startswith("shoal: error: ") and "Traceback" not in err, err
    assert said in lines[0], lines[0]
