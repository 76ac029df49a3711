"""Stages: one runner, a table, files that are written once, and values with a digest made when they were written."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from world import write_model, write_text

from shoal import compress, load_recipe
from shoal.run.begin import open_folder
from shoal.run.stage import NO_VALUES, Made, Stage, State, run_all, run_stage
from shoal.run.stages.table import STAGES
from shoal.words.progress import watched
from shoal.words.records import file_digest


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    text = {"sources": [str(write_text(folder / "text.jsonl"))], "samples": 12, "length": 16, "selection": 8, "evaluation": 8}
    return load_recipe(
        "default",
        {"model": str(write_model(folder / "model")), "drop": "2", "guard": 1, "fit": {"tokens": 1600}, "text": text},
    )


NO_INPUTS = SimpleNamespace(recipe=None)


def counting(name, log, *, key="k", writes="toy.txt"):
    """A stage that writes one file and notes what was asked of it."""

    def run(state, folder):
        log.append(f"run {name}")
        (folder / writes).write_text(name)
        return Made(replace(state, command=f"{state.command}+{name}"), (writes,))

    def load(state, folder):
        log.append(f"load {name}")
        return replace(state, command=f"{state.command}+{(folder / writes).read_text()}")

    return Stage(name, "a stage of a test", lambda state: key, run, load, lambda sizes: sizes.need(name, toys=77))


def test_a_stage_that_stands_is_read_back_and_gives_the_same_state(tmp_path):
    log = []
    stages = [counting("one", log, writes="one.txt"), counting("two", log, writes="two.txt")]
    first = run_all(stages, State(NO_INPUTS), open_folder(tmp_path))
    again = run_all(stages, State(NO_INPUTS), open_folder(tmp_path))
    assert first.command == again.command == "+one+two"
    assert log == ["run one", "run two", "load one", "load two"]


def test_progress_counts_the_stages_that_the_recipe_asks_for(tmp_path):
    """A stage that is read back has its number, too, so that a run that goes on says where it is."""
    said = []
    skipped = replace(counting("two", [], key=None), is_asked=lambda recipe: False)
    stages = [counting("one", [], writes="one.txt"), skipped, counting("three", [], writes="three.txt")]
    with watched(lambda what, *_: said.append(what)):
        run_all(stages[:1], State(NO_INPUTS), open_folder(tmp_path))
        run_all(stages, State(NO_INPUTS), open_folder(tmp_path))
    assert said == ["one", "stage 2 of 2, three"]


def test_another_key_needs_a_word(tmp_path):
    log = []
    run_stage(counting("one", log), State(NO_INPUTS), open_folder(tmp_path))
    with pytest.raises(ValueError, match="--overwrite"):
        run_stage(counting("one", log, key="other"), State(NO_INPUTS), open_folder(tmp_path))
    with pytest.raises(ValueError, match="--overwrite"):
        run_stage(counting("one", log, key=None), State(NO_INPUTS), open_folder(tmp_path))
    run_stage(counting("one", log, key=None), State(NO_INPUTS), open_folder(tmp_path, overwrite=True))
    assert not (tmp_path / "toy.txt").exists() and log == ["run one"]


def test_a_new_stage_is_one_line_of_the_table(recipe, tmp_path, monkeypatch):
    log = []
    monkeypatch.setitem(STAGES, "toy", counting("toy", log))
    compress(recipe, tmp_path / "run")
    assert log == ["run toy"] and (tmp_path / "run" / "toy.txt").exists()
    compress(recipe, tmp_path / "run")
    assert log == ["run toy", "load toy"]


def test_no_stage_writes_a_file_of_another(recipe, tmp_path):
    """Every file is in the record of one stage, and stays as that stage left it."""
    folder, seen = open_folder(tmp_path), {}
    from shoal.run.job import open_inputs

    state = State(open_inputs(recipe))
    for stage in STAGES.values():
        state = run_stage(stage, state, folder)
        for name, digest in seen.items():
            assert file_digest(folder / name) == digest, f"{stage.name} changed {name}"
        for name in folder.record.stages[stage.name].files if stage.name in folder.record.stages else ():
            if (folder / name).is_file():
                assert name not in seen, f"{stage.name} wrote {name} again"
                seen[name] = file_digest(folder / name)
    assert {"plan.json", "fitted.json", "fit.safetensors", "evaluation.json"} <= set(seen)
    assert state.values.digest == seen["fit.safetensors"], "the digest is that of the file"


def test_a_run_without_a_repair_has_no_values(recipe, tmp_path):
    plain = recipe.model_copy(update={"repair": "none"})
    outcome = compress(plain, tmp_path / "run")
    assert outcome.repaired is None and not list((tmp_path / "run").glob("fit*"))
    assert NO_VALUES.digest == ""


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_every_stage_says_what_it_does(stage):
    assert stage.about and stage.about[0].islower() and not stage.about.endswith(".")
