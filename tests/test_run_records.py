"""Records that somebody else wrote: no path of one leaves its folder, all are bounded, and each fault is one line."""

import json
import os

import pytest
from world import write_model

from shoal.edits.plan import Plan
from shoal.measure.scan import Scan
from shoal.recipes.recipe_file import load_recipe
from shoal.run.asked import flat
from shoal.run.folder import OtherRun, RunFolder, RunRecord, StageRecord
from shoal.words.reading import inside, read_json
from shoal.words.yaml_text import parse_yaml

QUICK = ("--length", 16, "--samples", 8)
CUT = ("--drop", 2, "--guard", 1, "--repair", "none")


def one_line(code, err, *said):
    lines = [line for line in err.splitlines() if line.startswith("shoal: ")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in err, err
    assert all(word in lines[0] for word in said), lines[0]
    return lines[0]


def text(small):
    return ("--text", small["text"], *QUICK)


@pytest.fixture
def run(small, shoal):
    code, _, err = shoal("compress", small["model"], "--out", "run", *text(small), *CUT)
    assert code == 0, err
    return small


def edit_record(change):
    with open("run/run.json") as file:
        record = json.load(file)
    change(record)
    with open("run/run.json", "w") as file:
        json.dump(record, file)


def test_a_folder_of_another_run_says_what_differs(tmp_path):
    """It named nothing: which of thirty options is another had to be found by eye."""

    def said(asked, stage="plan"):
        folder = RunFolder(tmp_path / "run", version="1")
        folder.asked = flat(asked)
        with pytest.raises(OtherRun) as told:
            folder.is_done(stage, "another key")
        return str(told.value)

    first = {"text": {"sources": ["a.txt"], "length": None}, "drop": "4", "protect": [0, -1], "dtype": None, "heal": None}
    folder = RunFolder(tmp_path / "run", version="1")
    folder.asked = flat(first)
    folder.finish("scan", "key", seconds=1.0, files=())
    folder.asked = flat({**first, "drop": "5"})  # Another budget goes on with the same scan.
    folder.finish("plan", "key", seconds=1.0, files=())
    assert "text (drop was 5, now 6); add --overwrite" in said({**first, "drop": "6"})
    assert "text (drop was 4, now 6); add --overwrite" in said({**first, "drop": "6"}, "scan")
    assert "text (drop was 5, now 4; dtype was none, now bfloat16)" in said({**first, "dtype": "bfloat16"})
    more = said({**first, "drop": "6", "text": {"sources": ["b.txt"], "length": 8}, "protect": [], "heal": {"rank": 8}})
    assert "(text.sources was a.txt, now b.txt; text.length was none, now 8; drop was 5, now 6; and 2 more)" in more
    assert "(the same options, so what a file holds has changed)" in said({**first, "drop": "5"})
    assert len(RunRecord.load(tmp_path / "run" / "run.json").asked) == 2
    RunRecord(version="1", stages={"plan": StageRecord(key="0", seconds=0.0)}).save(tmp_path / "run" / "run.json")
    assert "model or text; add --overwrite" in said(first), "a record of an older version says nothing of what was asked"


OUTSIDE = ["../victim", "{cwd}/victim", "model/../../victim", "..", ".", "", "run/../../victim", "x" * 5000, "a\0b"]


@pytest.mark.parametrize("place", OUTSIDE, ids=[name[:16] for name in OUTSIDE])
def test_a_record_that_names_a_path_outside_is_refused_as_a_whole(tmp_path, place):
    RunFolder(tmp_path / "run", version="1")
    stage = StageRecord(key="0", seconds=0.0, files=(place.replace("{cwd}", str(tmp_path)),))
    RunRecord(version="1", stages={"evaluation": stage}).save(tmp_path / "run" / "run.json")
    with pytest.raises(ValueError, match="run.json names .*not inside"):
        RunFolder(tmp_path / "run", version="1", overwrite=True)


def test_a_record_that_names_a_path_outside_deletes_nothing(run, shoal, tmp_path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "thesis.txt").write_text("years of work")
    stage = {"key": "0" * 16, "seconds": 0.0, "files": ["../victim"]}
    edit_record(lambda record: record["stages"].update(evaluation=stage))
    code, _, err = shoal("compress", run["model"], "--out", "run", *text(run), *CUT, "--overwrite")
    one_line(code, err, "run.json", "not inside")
    assert (tmp_path / "victim" / "thesis.txt").exists() and (tmp_path / "run" / "model").is_dir()


def test_a_model_folder_that_is_a_link_is_not_followed(run, shoal, tmp_path):
    os.rename("run/model", "elsewhere")
    os.symlink(tmp_path / "elsewhere", "run/model")
    code, _, err = shoal("compress", run["model"], "--out", "run", *text(run), *CUT, "--drop", 3, "--overwrite")
    one_line(code, err, "'model'", "not inside")
    assert (tmp_path / "elsewhere" / "config.json").exists()


DAMAGED = ["[" * 5000, '{"version": ' + "9" * 5000 + "}", "[]", "{", '{"version": "1", "stages": 3}', "\xff"]


@pytest.mark.parametrize("content", DAMAGED, ids=[text[:12] for text in DAMAGED])
def test_a_damaged_run_record_is_one_line(tmp_path, content):
    RunFolder(tmp_path / "run", version="1")
    (tmp_path / "run" / "run.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match="run.json") as caught:
        RunFolder(tmp_path / "run", version="1", overwrite=True)
    assert "\n" not in str(caught.value)


def test_a_name_stays_in_its_folder(tmp_path):
    assert inside(tmp_path, "a/b.txt", "x") == tmp_path / "a/b.txt"
    (tmp_path / "link").symlink_to(tmp_path.parent)
    for name in ("link", "link/x", "../x", "/x", ""):
        with pytest.raises(ValueError, match="not inside"):
            inside(tmp_path, name, "x")


# -- plans ---------------------------------------------------------------------------------------------------------------

PLAN = dict(
    source="m", source_hash="0", teacher="m", n_layers=6, edits=[{"edit": "drop", "indices": [1]}],
    before={"layers": 6, "parameters": 1}, after={"layers": 5, "parameters": 1},
)  # fmt: skip
PLANS = {
    "a billion layers": dict(n_layers=10**9),
    "more layers than any number": dict(n_layers=10**400),
    "no layers": dict(n_layers=0),
    "true as a layer": dict(edits=[{"edit": "drop", "indices": [True]}]),
    "true as the number of layers": dict(n_layers=True),
    "a layer as a text": dict(edits=[{"edit": "drop", "indices": ["one"]}]),
    "half a layer": dict(edits=[{"edit": "drop", "indices": [1.5]}]),
    "a layer far away": dict(edits=[{"edit": "drop", "indices": [10**12]}]),
    "a span far away": dict(edits=[{"edit": "replace", "start": 1, "stop": 10**12, "replacement": "layer"}]),
    "an unknown edit": dict(edits=[{"edit": "melt"}]),
    "edits that are a text": dict(edits="drop"),
    "a key more": dict(note="x"),
    "deep options": dict(
        edits=[{"edit": "replace", "start": 1, "stop": 2, "replacement": "layer", "options": {"a": [[[[[]]]]]}}]
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_that_cannot_be_is_one_line_at_once(tmp_path, shoal, name):
    (tmp_path / "plan.json").write_text(json.dumps({**PLAN, **PLANS[name]}))
    code, _, err = shoal("apply", "plan.json", "--out", "out")
    one_line(code, err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["[" * 5000, '{"n_layers": ' + "9" * 5000 + "}", '{"source": "\\ud800"}', "null", ""])
def test_a_plan_that_is_no_record_is_one_line(tmp_path, content):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(ValueError, match="plan.json") as caught:
        Plan.load(tmp_path / "plan.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("replacement", ["layer", "swiglu", "free"])
def test_a_plan_without_the_values_of_its_replacement_is_refused(small, shoal, tmp_path, replacement):
    code, _, err = shoal(
        "plan", small["model"], "--out", "run", *text(small), "--drop", 1, "--guard", 1, "--replace", replacement
    )
    assert code == 0, err
    code, _, err = shoal("apply", "run/plan.json", "--out", "out")
    one_line(code, err, repr(replacement), "has no values beside the plan")
    assert not (tmp_path / "out").exists()


# -- a check that fails leaves nothing -----------------------------------------------------------------------------------


def broken_model(folder):
    """A model whose weights hold NaN in a layer that stays."""
    from safetensors.torch import load_file, save_file

    write_model(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_checkpoint_that_fails_its_check_never_has_its_name(shoal, tmp_path):
    model = broken_model(tmp_path / "m")
    code, _, err = shoal("plan", model, "--recipe", "uidl-simple", "--drop", 2, "--out", "run")
    assert code == 0, err
    code, _, err = shoal("apply", "run/plan.json", "--out", "out")
    one_line(code, err, "out: weight 'model.layers.0.mlp.up_proj.weight' holds NaN")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "run"]


@pytest.mark.parametrize("out", [".", "m", "m/inside", "link", "file", "file/below", "x" * 5000, "pipe", "m/../m"])
def test_a_place_that_cannot_be_the_result_is_refused(shoal, tmp_path, out):
    model = write_model(tmp_path / "m")
    code, _, err = shoal("plan", model, "--recipe", "uidl-simple", "--drop", 2, "--out", "run")
    assert code == 0, err
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    code, _, err = shoal("apply", "run/plan.json", "--out", out)
    one_line(code, err)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("verb", ["scan", "compress", "plan"])
@pytest.mark.parametrize("out", ["{model}/inside", "file/below", "x" * 5000, "pipe"])
def test_a_run_folder_in_an_impossible_place_is_refused(shoal, small, tmp_path, verb, out):
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    code, _, err = shoal(verb, small["model"], "--out", out.format(model=small["model"]), *text(small))
    one_line(code, err, "--out")


def test_a_side_file_that_links_elsewhere_is_refused_before_any_work(shoal, small, tmp_path):
    model = write_model(tmp_path / "m")
    (tmp_path / "secret").write_text("x")
    (model / "NOTES.txt").symlink_to(tmp_path / "secret")
    code, _, err = shoal("compress", model, "--out", "run", *text(small), *CUT)
    one_line(code, err, "NOTES.txt is a link to")
    assert not (tmp_path / "run" / "scan.json").exists()


# -- a scan is read as it was asked for ----------------------------------------------------------------------------------


def test_plan_takes_the_text_that_the_scan_states(shoal, small, tmp_path):
    code, _, err = shoal("scan", small["model"], "--out", "sc", *text(small), "--seed", 3)
    assert code == 0, err
    before = (tmp_path / "sc" / "scan.json").read_bytes()
    code, _, err = shoal("plan", "sc", *CUT)
    assert code == 0, err
    assert (tmp_path / "sc" / "scan.json").read_bytes() == before and (tmp_path / "sc" / "plan.json").exists()
    code, _, err = shoal("plan", "sc", *CUT, "--seed", 4)  # What is asked for otherwise is said, and nothing is replaced.
    one_line(code, err, "--overwrite")
    assert (tmp_path / "sc" / "scan.json").read_bytes() == before


def test_values_of_a_scan_of_another_shape_are_refused(shoal, small, tmp_path):
    import numpy as np
    from safetensors.numpy import load_file, save

    from shoal.words.records import stable_hash

    code, _, err = shoal("scan", small["model"], "--out", "sc", *text(small))
    assert code == 0, err
    arrays = load_file("sc/scan.safetensors")
    name = next(iter(arrays))
    for wrong in (np.zeros((3, 3)), np.zeros(7), np.zeros((2, 2, 2, 2))):
        content = save({**arrays, name: wrong})
        (tmp_path / "sc" / "scan.safetensors").write_bytes(content)
        head = read_json(tmp_path / "sc" / "scan.json")
        (tmp_path / "sc" / "scan.json").write_text(json.dumps({**head, "values_hash": stable_hash(content)}))
        with pytest.raises(ValueError, match="another shape"):
            Scan.load(tmp_path / "sc")


# -- recipes -------------------------------------------------------------------------------------------------------------

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [*{old},*{old},*{old},*{old},*{old},*{old},*{old},*{old},*{old}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
RECIPES = {
    "anchors that multiply": (BOMB, "anchors that multiply"),
    "an anchor that holds itself": ("text: &a {sources: *a}", "holds itself"),
    "deep lists": ("a: " + "[" * 3000 + "]" * 3000, "nested deeper"),
    "a date that is none": ("model: 2024-99-99", "cannot be"),
    "a number of 5,000 digits": ("seed: " + "9" * 5000, "cannot be"),
    "no YAML": ("a: [", "is not YAML"),
    "an unhashable key": ("{[1]: 2}", "is not YAML"),
    "a list": ("- a", "not the fields of a recipe"),
    "averages that never move": ("train: {objective: hidden_mse, betas: [1, 1]}\nreplace: layer\n", "betas"),
    "an endless rate": ("train: {objective: hidden_mse, lr: .inf}\nreplace: layer\n", "lr"),
    "true as a number": ("guard: true", "true or false"),
    "a width beyond any model": ("replace: swiglu:width=9999999999", "width"),
    "a value with a tag": ("model: !!python/object/apply:os.system ['true']", "is not YAML"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_cannot_be_is_one_line_at_once(shoal, tmp_path, name):
    content, said = RECIPES[name]
    (tmp_path / "r.yaml").write_text(content)
    code, _, err = shoal("run", "r.yaml", "--out", "out")
    one_line(code, err, said)
    assert not (tmp_path / "out").exists()


def test_anchors_that_say_what_they_mean_are_fine():
    assert parse_yaml("a: &x [1, 2]\nb: *x\n", "r") == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", ".", "nowhere.yaml"])
def test_a_recipe_that_is_not_there(name):
    with pytest.raises(ValueError):
        load_recipe(name)


def test_a_pipe_as_a_recipe_is_refused_and_nobody_waits(tmp_path):
    os.mkfifo(tmp_path / "r.yaml")
    with pytest.raises(ValueError, match="pipe"):
        load_recipe(str(tmp_path / "r.yaml"))


def test_the_record_of_a_run_reads_back(tmp_path):
    RunFolder(tmp_path / "run", version="1")
    assert RunRecord.load(tmp_path / "run" / "run.json").version == "1"
