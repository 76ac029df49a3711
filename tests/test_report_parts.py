"""Parts of a run are a page, too: what is missing is named, and what is damaged is one line."""

import json
import math
import shutil

import pytest
from page_reader import read_page, table_of
from report_world import PLAIN, evaluation, html_of, plan, raw, write_run

from shoal.edits.drop import Drop
from shoal.edits.refit import Refit
from shoal.edits.replace.replace_edit import Replace
from shoal.run.stages.report import read_run, report_stage
from shoal.show.heat import Heat
from shoal.show.report.layer_strip import fates


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", kind="layer")


SECTIONS_OF = {
    "scan.json": {"spans", "layers"},
    "plan.json": {"candidates"},
    "evaluation.json": {"figures", "generations", "speed"},
    "tasks.json": {"tasks"},
    "fit.json": set(),  # The curve of an unfinished training is in train/.
    "verification.json": set(),
    "run.json": set(),
    "recipe.yaml": set(),
}


@pytest.mark.parametrize("missing", SECTIONS_OF)
def test_what_is_missing_has_no_section_and_is_named(run, missing):
    whole = {one.attributes["id"] for one in read_page(html_of(run)).all("section") if "id" in one.attributes}
    (run / missing).unlink()
    page = read_page(html_of(run))
    assert whole - {one.attributes.get("id") for one in page.all("section")} == SECTIONS_OF[missing]
    said = [one.text for one in page.of_class("missing")]
    needed = missing in ("scan.json", "plan.json", "evaluation.json")
    assert bool(said) == needed and all(missing in text for text in said)


def test_what_was_not_measured_is_not_said_to_be_and_the_spread_of_the_choice_is(run):
    content = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps(content | {"spread": [{"layers": [4, 5], "n_parts": 3}]}))
    said = read_page(html_of(run)).text
    assert "Measured on the selection text" in said and "on 3 disjoint parts of the calibration text: 4..5 on 3" in said
    (run / "plan.json").write_text(json.dumps(content | {"candidates": [], "method": "layers given by hand"}))
    said = read_page(html_of(run)).text
    assert "Layers given by hand" in said and "Measured on the selection text" not in said


def test_seconds_of_steps_are_not_counted_once_more_in_their_stage(run):
    record = json.loads((run / "run.json").read_text())
    stages = {name: {"key": "k", "seconds": seconds} for name, seconds in (("heal", 5.0), ("model", 2.0), ("healed", 7.5))}
    (run / "run.json").write_text(json.dumps(record | {"stages": stages}))
    assert read_run(run).facts.seconds == {"heal": 5.0, "model": 2.0}
    (run / "run.json").write_text(json.dumps(record | {"stages": {"healed": stages["healed"]}}))
    assert read_run(run).facts.seconds == {"healed": 7.5}


def test_a_scan_alone_is_a_page(run, tmp_path):
    (tmp_path / "scan").mkdir()
    for name in ("scan.json", "scan.safetensors"):
        shutil.copy(run / name, tmp_path / "scan")
    page = read_page(html_of(tmp_path / "scan"))
    assert "org/model, layer by layer" in page.all("h1")[0].text and page.of_class("heatmap")


def test_a_training_that_was_stopped_shows_its_curve(run):
    (run / "fit.json").unlink()
    (run / "evaluation.json").unlink()
    page = read_page(html_of(run))
    assert "has not finished" in page.text and len(table_of(page, "training 4-7: learning curve")) == 5


@pytest.mark.parametrize(
    "file", ["scan.json", "plan.json", "evaluation.json", "tasks.json", "fit.json", "verification.json", "run.json"]
)
@pytest.mark.parametrize("content", ["", '{"half": ', "[]", '{"unknown": 1}'])
def test_a_damaged_file_is_one_line_and_the_old_page_stays(run, shoal, file, content):
    before = report_stage(run).read_bytes()
    (run / file).write_text(content)
    code, out, err = shoal("report", run)
    assert code == 2 and out == "" and err.count("\n") == 1 and file in err
    assert (run / "report.html").read_bytes() == before


def test_tasks_that_are_none_say_how_to_make_them(run, shoal):
    (run / "tasks.json").write_text("")
    _, _, err = shoal("report", run)
    assert "make tasks.json with `shoal eval" in err


def test_other_damage_is_one_line_too(run, shoal):
    (run / "recipe.yaml").write_text("a: [")
    code, _, err = shoal("report", run)
    assert code == 2 and err.count("\n") == 1 and "recipe.yaml" in err
    (run / "recipe.yaml").unlink()
    (run / "scan.safetensors").write_bytes(b"rubbish")
    code, _, err = shoal("report", run)
    assert code == 2 and err.count("\n") == 1 and "scan.safetensors" in err
    (run / "scan.safetensors").unlink()
    code, _, err = shoal("report", run)
    assert code == 2 and err.count("\n") == 1 and "scan.safetensors" in err


def test_folders_without_a_run_are_refused(tmp_path, shoal):
    for folder, word in ((tmp_path / "nowhere", "not a folder"), (tmp_path, "none of scan.json")):
        code, _, err = shoal("report", folder)
        assert code == 2 and word in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_tasks_of_another_model_are_left_out_and_said(run):
    content = raw(run, "tasks.json")
    content["provenance"]["model_hash"] = "other"
    (run / "tasks.json").write_text(json.dumps(content))
    page = read_page(html_of(run))
    assert "tasks.json is of another one" in page.of_class("missing")[0].text and "quiz" not in page.text


def test_only_our_own_page_is_replaced(run, shoal, tmp_path, monkeypatch):
    monkeypatch.setattr("shoal.run.stages.report.save_figures", lambda charts, folder: [])  # Drawing takes seconds.
    assert shoal("report", run)[0] == 0 and shoal("report", run)[0] == 0
    mine = tmp_path / "thesis.html"
    mine.write_text("<p>months of work")
    code, _, err = shoal("report", run, "--out", mine)
    assert code == 2 and "--overwrite" in err and mine.read_text() == "<p>months of work"
    assert shoal("report", run, "--out", mine, "--overwrite")[0] == 0 and "Shoal report" in mine.read_text()
    code, _, err = shoal("report", run, "--out", run)
    assert code == 2 and "is a folder" in err


def test_json_names_the_files(run, shoal):
    for name in ("plan.json", "evaluation.json", "fit.json", "train", "tasks.json"):
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    code, out, _ = shoal("report", run, "--json")
    found = json.loads(out)
    assert code == 0 and found["report"] == str(run / "report.html")
    assert [path.split("/")[-1] for path in found["figures"]] == [
        "heatmap.svg", "heatmap.png", "norms.svg", "norms.png", "block-influence.svg", "block-influence.png"
    ]  # fmt: skip


def test_fates_are_the_plans():
    made = plan(
        Drop(indices=(1,)),
        Drop(kind="attn", indices=(2,)),
        Refit(layer=3, parameters=("a",)),
        Replace(start=5, stop=7, replacement="layer"),
    )
    assert [one.look for one in fates(made)] == [
        "kept",
        "gone",
        "part",
        "refitted",
        "kept",
        "gone module",
        "gone module last",
        "kept",
    ]
    assert "without its attention" in fates(made)[2].words and "one 'layer' in place of 5..6" in fates(made)[5].words


def test_a_map_needs_a_table():
    with pytest.raises(ValueError, match="at least one table"):
        Heat(())


def test_infinite_and_missing_figures_are_no_error(tmp_path):
    folder = write_run(tmp_path / "run")
    found = evaluation(PLAIN)
    broken = found.quality.model_copy(update={"kl": math.inf, "kl_stderr": math.nan})
    found.model_copy(update={"quality": broken, "speed": None, "generations": ()}).save(folder / "evaluation.json")
    page = read_page(html_of(folder))
    assert "inf" in page.of_class("tiles")[1].text and read_run(folder).evaluation.quality.kl == math.inf
