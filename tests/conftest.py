import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ["COLUMNS"] = "140"  # Tables are laid out alike in every runner.
sys.path.insert(0, str(Path(__file__).parent))

from shoal.cli import main  # noqa: E402  (after the environment above)

ABOUT_PICTURES = ("chart", "report", "scan_files", "landscape", "curve", "memory", "use")
ABOUT_HEALING = ("heal", "estimate", "time", "docs", "help")


@pytest.fixture(scope="module", autouse=True)
def one_round_of_speed(request):
    """Runs time teacher and student once, where their speed is not what a file is about: it was a fifth of their time."""
    with pytest.MonkeyPatch.context() as patched:
        if "speed" not in request.path.name:
            from shoal.evaluate.speed import rounds_within

            patched.setitem(rounds_within.__kwdefaults__, "most", 1)
        yield


@pytest.fixture(scope="module", autouse=True)
def short_healing(request):
    """The default trains on 1,024 tokens, where healing is not what a file is about: it was half of the time of most runs."""
    with pytest.MonkeyPatch.context() as patched:
        if not any(word in request.path.name for word in ABOUT_HEALING):
            from shoal.recipes.named.default import DEFAULT

            recipe = DEFAULT.recipe
            patched.setitem(recipe.__dict__, "heal", recipe.heal.model_copy(update={"tokens": 1024}))
            patched.setattr("shoal.run.optional_healing.FEWEST_HEALED", 256)  # It is left out where there is less.
        yield


@pytest.fixture(scope="module", autouse=True)
def no_pictures(request):
    """Runs write no pictures for papers, where these are not what a file is about: an eighth of their time."""
    with pytest.MonkeyPatch.context() as patched:
        if not any(word in request.path.name for word in ABOUT_PICTURES):
            patched.setattr("shoal.show.chart_files.can_draw", lambda: False)
        yield


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


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A run folder with a student of four of six layers, its teacher and text for both."""
    from world import write_model, write_text

    from shoal.recipes.recipe_file import load_recipe
    from shoal.run.compress import compress

    folder = tmp_path_factory.mktemp("cut")
    model, text = write_model(folder / "model"), write_text(folder / "text.jsonl")
    changes = {
        "model": str(model), "text": {"sources": [str(text)], "samples": 8, "length": 16, "evaluation": 8, "selection": 8},
        "drop": "2", "repair": "none", "guard": 1,
    }  # fmt: skip
    compress(load_recipe("default", changes), folder / "run")
    return {"run": folder / "run", "text": text, "teacher": model}
