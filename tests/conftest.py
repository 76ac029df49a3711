import gc
import os
import runpy
import subprocess
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
ABOUT_SPEED = ("speed", "report", "card", "cuda", "every_verb", "evaluate", "estimate", "time", "docs", "notebook", "guides")
ABOUT_FITS = ("fit", "repair", "race", "tournament", "needs", "memory", "text", "estimate", "time", "docs", "help")


IN_TURN = {}
"""By test and value of a parameter: of each case that is not slow by itself, whether it is out of its turn."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Each value of each parameter is in the gate (test_gate.py), every pair of them in the slow tests: pairs of families and
    variants were an eighth of the gate, and a variant that fails in one family alone is rare."""
    axes = {}
    for item in items:
        for turn in item.iter_markers("in_turn"):
            values = item.callspec._idlist
            places = axes.setdefault(item.function, [{} for _ in values])
            place = sum(axis.setdefault(value, len(axis)) for axis, value in zip(places, values, strict=True))
            if not any(item.iter_markers("slow")):
                for one in enumerate(values):
                    IN_TURN.setdefault((item.originalname, *one), []).append(bool(place % turn.args[0]))
            if place % turn.args[0]:
                item.add_marker(pytest.mark.slow)


def pytest_collection_finish():
    """What the imports left is never garbage: each collection went through it, a half of a second every time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def speed_in_one_round(request):
    """Runs time teacher and student once, and only where their speed may be asked for: it was a third of a small run."""
    with pytest.MonkeyPatch.context() as patched:
        if not any(word in request.path.name for word in ABOUT_SPEED):
            patched.setattr("shoal.run.measuring._timed", lambda *words: None)
        elif "speed" not in request.path.name:
            from shoal.evaluate.speed import rounds_within, speed

            patched.setitem(rounds_within.__kwdefaults__, "most", 1)
            patched.setitem(speed.__kwdefaults__, "warmup", 0)
        yield


@pytest.fixture(scope="module", autouse=True)
def short_healing(request):
    """The default trains on 256 tokens, where healing is not what a file is about: it was half of the time of most runs."""
    with pytest.MonkeyPatch.context() as patched:
        if not any(word in request.path.name for word in ABOUT_HEALING):
            from shoal.recipes.named.default import DEFAULT

            recipe = DEFAULT.recipe
            patched.setitem(recipe.__dict__, "heal", recipe.heal.model_copy(update={"tokens": 256}))
            patched.setattr("shoal.run.optional_healing.FEWEST_HEALED", 64)  # It is left out where there is less.
        yield


@pytest.fixture(scope="module", autouse=True)
def short_fits(request):
    """Repairs read 1,024 tokens unless told, where they are not what a file is about: all that a text has was half of a run."""
    with pytest.MonkeyPatch.context() as patched:
        if not any(word in request.path.name for word in ABOUT_FITS):
            patched.setattr("shoal.fit.fit_config.FEWEST_TOKENS", 1024)
            patched.setattr("shoal.fit.fit_config.TOKENS_PER_INPUT", 8)
        yield


@pytest.fixture(scope="module", autouse=True)
def no_pictures(request):
    """Runs write no pictures for papers, where these are not what a file is about: an eighth of their time."""
    with pytest.MonkeyPatch.context() as patched:
        if not any(word in request.path.name for word in ABOUT_PICTURES):
            patched.setattr("shoal.show.chart_files.can_draw", lambda: False)
        yield


@pytest.fixture(scope="module")
def transformers_answers_here():
    """In this process, not in one of its own, whose start takes most of a proof; test_export_verify starts them."""
    from transformers.utils import logging

    from shoal.export import prove

    apart, said = subprocess.run, logging.get_verbosity()

    def run(words, **options):
        if words[0] != sys.executable:
            return apart(words, **options)
        runpy.run_path(words[1])["main"](*words[2:])
        return subprocess.CompletedProcess(words, 0, "", "")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(prove.subprocess, "run", run)
        yield
    logging.set_verbosity(said)


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
