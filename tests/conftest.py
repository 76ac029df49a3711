import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ["COLUMNS"] = "140"  # tables are laid out alike in every runner
sys.path.insert(0, str(Path(__file__).parent))

from shoal.cli import main  # noqa: E402  (after the environment above)


@pytest.fixture
def shoal(tmp_path, monkeypatch, capfd):
    """Run the command in this process, in an empty folder; returns (exit code, stdout, stderr)."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["shoal", *map(str, args)])
        with pytest.raises(SystemExit) as exit:
            main()
        out, err = capfd.readouterr()
        return exit.value.code or 0, out, err

    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Paths of a tiny model and of text for it, as a recipe takes them."""
    from world import write_model, write_text

    folder = tmp_path_factory.mktemp("small")
    return {"model": str(write_model(folder / "model")), "text": str(write_text(folder / "text.jsonl"))}
