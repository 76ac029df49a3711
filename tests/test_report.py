"""A report says what the files of a run folder say, nothing else, in one file that is safe to open."""

import base64
import hashlib
import json
import re
import shutil

import numpy as np
import pytest
from page_reader import read_page, table_of
from report_world import (
    HOSTILE,
    PLAIN,
    benchmark,
    curve,
    html_of,
    ratio_curves,
    raw,
    span_table,
    write_curves,
    write_run,
)
from safetensors.numpy import load_file

from shoal.edits.plan import Plan
from shoal.evaluate.curve.largest_cut import sentence
from shoal.evaluate.evaluation import Evaluation
from shoal.evaluate.stability import Flip
from shoal.run.stages.report import read_run, report_stage, write_report
from shoal.show.card import card
from shoal.show.chart_files import save_figures
from shoal.show.curve_views import cliff_lines, curves_table, smooth_lines
from shoal.show.figure_tables import figures
from shoal.show.headline import headline
from shoal.show.heat import GAMMA, rescaled_rows
from shoal.show.report import page as report_page
from shoal.show.svg_heat import CODES, LEVELS, colours, levels
from shoal.show.task_tables import flips

KINDS = ("plain", "repair", "layer")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return {kind: write_run(tmp_path_factory.mktemp("runs") / kind, kind=kind) for kind in KINDS}


@pytest.fixture(scope="module")
def pages(runs):
    return {kind: html_of(folder) for kind, folder in runs.items()}


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", kind="layer")


def same(cell, value):
    """A printed figure equals the file's to the digits that are printed."""
    digits = cell.split(" ±")[0].split(" (")[0].rstrip(" %").replace(",", "")
    return float(digits) == pytest.approx(value, rel=5e-3, abs=1e-12)


# -- every figure is the file's --------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_evaluation(pages, runs):
    found = Evaluation.load(runs["plain"] / "evaluation.json")
    table = table_of(read_page(pages["plain"]), figures(found).caption)
    assert table[1:] == figures(found).texts


def test_page_and_card_share_the_headline(pages, runs):
    found, made = Evaluation.load(runs["plain"] / "evaluation.json"), Plan.load(runs["plain"] / "plan.json")
    tiles = {
        t.all("dt")[0].text: [d.text for d in t.all("dd")]
        for tiles in read_page(pages["plain"]).of_class("tiles")
        for t in tiles.all("div")
    }
    text = card(made, found, recipe_name="r", command="c")
    said = headline(made, found)
    for fact in (*said.removed, *said.cost, *said.gain):
        assert tiles[fact.label] == [fact.value, fact.note]
    for fact in (*said.cost, *said.gain):
        assert f"**{fact.label} {fact.value}**" in text
    assert tiles["Accuracy kept"][0] == "100.0 %", "tasks.json is read"


def test_candidates_are_those_of_the_plan(pages, runs):
    listed = raw(runs["plain"], "plan.json")["candidates"]
    table = table_of(read_page(pages["plain"]), "Candidates, as plain cuts, before any repair, best first")[1:]
    assert [row[0] for row in table] == ["4..5", "2..3", "1, 6"]
    for row, one in zip(table, listed, strict=True):
        assert same(row[1], float(one["kl"])) and same(row[2], float(one["perplexity"]))
    assert "span cosine/rest (0.875)" in table[0][3]


def test_candidates_that_were_repaired_are_not_called_plain(runs, tmp_path):
    folder = shutil.copytree(runs["plain"], tmp_path / "run")
    content = raw(folder, "plan.json")
    for n, one in enumerate(content["candidates"], start=1):
        one["kl_plain"], one["repaired_on"] = n / 8, 512 // n
    (folder / "plan.json").write_text(json.dumps(content))
    found = read_page(write_report(folder)[0].read_text())
    table = table_of(found, "Candidates, each repaired, those behind on less text, best first")
    assert table[0][2] == "KL before repair" and [row[2] for row in table[1:]] == ["0.125", "0.25", "0.375"]
    assert "plain cuts, before any repair" not in (folder / "report.html").read_text()
    for one in content["candidates"]:
        one["repaired_on"] = 512
    (folder / "plan.json").write_text(json.dumps(content))
    assert table_of(read_page(write_report(folder)[0].read_text()), "Candidates, each repaired, best first")


@pytest.mark.parametrize("index", range(4))
def test_the_heat_map_holds_every_value_of_the_scan(pages, runs, index):
    page = read_page(pages["plain"])
    data = json.loads(page.all("script", type="application/json")[0].text)
    arrays = load_file(runs["plain"] / "scan.safetensors")
    # The first score is that of the recipe.
    name = ("cosine/rest", "cosine/every", "angular/last", "block_influence/rest")[index]
    one, n_layers = data["tables"][index], data["layers"]
    for n in range(1, n_layers + 1):
        for part, key in (("values", "values"), ("errors", "stderr")):
            np.testing.assert_allclose(one[part][n - 1], np.diagonal(arrays[f"{name}.{key}"], offset=n), rtol=5e-4)
        row = np.diagonal(arrays[f"{name}.values"], offset=n)
        assert one["best"][n - 1] == (row.argmax() if "cosine" in name else row.argmin())
    assert len(page.of_class("cells")[0].all("rect")) == n_layers * (n_layers + 1) // 2


def test_the_table_under_the_map_is_the_scan(pages, runs):
    values = load_file(runs["plain"] / "scan.safetensors")["cosine/rest.values"]
    table = table_of(read_page(pages["plain"]), "cosine (pi rad), all tokens but sinks: n layers from layer l")[1:]
    for n, row in enumerate(table, start=1):
        cells = [cell for cell in row[1:] if cell]
        assert all(same(cell, value) for cell, value in zip(cells, np.diagonal(values, offset=n), strict=True))


def test_colours_follow_the_values(tmp_path):
    """A brighter colour never changes the stream more, within a row."""
    table = span_table(6, "angular", "rest", seed=3)
    shown = levels(table)
    for row, codes in zip(rescaled_rows(table), shown, strict=True):
        known = row[~np.isnan(row)]
        numbers = [CODES.index(code) for code in codes]
        assert numbers == [round(value**GAMMA * (LEVELS - 1)) for value in known]
        assert (np.argsort(known, kind="stable") == np.argsort(numbers, kind="stable")).all()
    brightness = [sum(int(colour[i : i + 2], 16) * w for i, w in ((1, 0.3), (3, 0.59), (5, 0.11))) for colour in colours()]
    assert all(a > b for a, b in zip(brightness, brightness[1:], strict=False))


def test_layers_are_those_of_the_scan(pages, runs):
    found, arrays = raw(runs["plain"], "scan.json")["anatomy"], load_file(runs["plain"] / "scan.safetensors")
    label = "Stream and layers, mean ± standard error over samples; the layer is the one the boundary enters"
    table = table_of(read_page(pages["plain"]), label)[1:]
    assert [row[0] for row in table] == [str(i) for i in range(9)]
    for i, row in enumerate(table):
        assert (
            same(row[1], found["norm_rest"][i]) and same(row[2], found["norm_sink"][i]) and int(row[3]) == found["n_massive"][i]
        )
        if i < 8:
            assert same(row[4], arrays["block_influence/rest.values"][i, i + 1])


def test_the_learning_curve_is_the_files(pages):
    table = table_of(read_page(pages["layer"]), "layer in place of 4..6: learning curve")[1:]
    assert [row[0] for row in table] == ["0", "4", "8", "12 (kept)"]
    for row, point in zip(table, curve(), strict=True):
        assert int(row[1]) == point.tokens and same(row[5], point.validation) and same(row[6], point.quality)


def test_the_repair_is_the_files(pages, runs):
    (row,) = table_of(read_page(pages["repair"]), "Refitted layers, front to back")[1:]
    (one,) = raw(runs["repair"], "fit.json")["layers"]
    assert row[:4] == ["3", "6", "mlp.down_proj", "0.44"]
    assert same(row[5], one["error_before"]) and same(row[6], one["error_after"])


def test_tasks_are_the_files(pages, runs):
    (one,) = raw(runs["plain"], "tasks.json")["tasks"]["tasks"]
    quiz, average = table_of(read_page(pages["plain"]), "Tasks, accuracy in % (95 % intervals)")[1:]
    assert quiz[0] == "quiz" and quiz[1] == "40" and quiz[5] == "8 / 8"
    (agreed,) = table_of(read_page(pages["plain"]), "Agreement with the teacher")[1:]
    assert agreed[2] == "mean_nll" and agreed[3] == f"{one['stability']['effective_items']:.3g}"
    for cell, figure in (
        (1, one["stability"]["stability"]),
        (4, one["answers"]["correctness"]),
        (5, one["answers"]["answers"]),
    ):
        assert agreed[cell].startswith(f"{100 * figure['value']:.1f} ({100 * figure['low']:.1f}..")
    for cell, figure in zip(quiz[2:5], (one["teacher"], one["student"], one["retained"]), strict=True):
        assert [float(x) for x in re.findall(r"\d+\.\d+", cell)] == [
            pytest.approx(100 * figure[k], abs=0.051) for k in ("value", "low", "high")
        ]
    assert average[0] == "average of 1" and average[2] == f"{100 * one['teacher']['value']:.1f}"
    label = "quiz: flips, the teacher's surest first; scores in nats, lower is better, the right option in brackets"
    flips = table_of(read_page(pages["plain"]), label)[1:]
    first = one["answers"]["right_to_wrong"][0]
    assert flips[0][0] == first["text"] and f"[{first['teacher_scores'][first['gold']]:.3f}]" in flips[0][3]


def test_flips_of_written_answers_show_what_was_written():
    sides = dict(teacher=0, student=None, teacher_scores=(0.0,), student_scores=(1.0,), teacher_said="42", student_said="7")
    flip = Flip(key="k", text="six times seven", gold=0, **sides)
    found = benchmark().tasks[0].answers.model_copy(update={"right_to_wrong": (flip,), "wrong_to_right": ()})
    assert flips([found]).texts == [["six times seven", "quiz", "right → wrong", "'42'", "'7'"]]


def test_speed_is_the_files_round_by_round(pages, runs):
    speed = raw(runs["plain"], "evaluation.json")["speed"]
    table = table_of(read_page(pages["plain"]), "Tokens per second, round by round")[1:]
    assert [row[0] for row in table] == [f"{verb}, round {r}" for verb in ("prefill", "decode") for r in (1, 2, 3)]
    for row, (verb, r) in zip(table, [(v, r) for v in ("prefill", "decode") for r in range(3)], strict=True):
        ours, theirs = speed["teacher"][verb][r], speed["student"][verb][r]
        assert same(row[1], ours) and same(row[2], theirs) and same(row[3], theirs / ours)


def test_a_curve_says_what_its_file_says(tmp_path):
    folder = write_curves(tmp_path / "curves")
    found, page = ratio_curves(), read_page(html_of(folder))
    assert table_of(page, curves_table(found).caption)[1:] == curves_table(found).texts
    for line in (*cliff_lines(found), *smooth_lines(found), *(sentence(one) for one in found.kept)):
        assert line in page.text
    for of, id in (("perplexity", "perplexity"), ("kl", "kl"), (PLAIN, "task-2")):
        (chart,) = page.all("figure", id=f"figure-curve-{id}")
        tips = [one.attributes["data-tip"] for one in chart.of_class("point") if "data-tip" in one.attributes]
        assert len(tips) == 2 * 5, "the teacher and four cuts of two methods"
        for tip, (method, place) in zip(tips, [(m, p) for m in found.recipes for p in range(5)], strict=True):
            one = found.of_method(method)[place]
            value = {"perplexity": one.quality.perplexity, "kl": one.quality.kl}.get(of)
            value = 100 * sum(one.right[PLAIN]) / 20 if value is None else value
            assert tip.startswith(f"{method}, {100 * one.share:.1f} % removed: ") and same(tip.split("removed: ")[1], value)
    bands = [one for part in report_page.sections(read_run(folder)) for c in part.charts for one in getattr(c, "bands", ())]
    assert [(b.start, b.stop, b.label) for b in bands] == [(25.0, 37.5, "cliff of uidl")] and page.of_class("heatmap")
    strange = read_page(html_of(write_curves(tmp_path / "strange", HOSTILE)))
    assert outline(strange) == outline(page)


def test_a_curve_that_was_stopped_says_how_much_is_missing(tmp_path):
    folder = write_curves(tmp_path / "curves")
    part = ratio_curves()
    part.model_copy(update={"points": part.points[:5], "cliffs": (), "kept": ()}).save(folder / "curve.json")
    page = read_page(html_of(folder))
    assert "3 of 8 cuts" in page.of_class("missing")[0].text and len(table_of(page, curves_table(part).caption)) == 7
    part.model_copy(update={"points": (), "cliffs": (), "kept": ()}).save(folder / "curve.json")
    assert "8 of 8 cuts" in read_page(html_of(folder)).of_class("missing")[0].text


def test_the_bound_is_the_records(pages, runs):
    found = Evaluation.load(runs["plain"] / "evaluation.json").speed
    table = {row[0]: row[1:] for row in table_of(read_page(pages["plain"]), "Milliseconds of one forward")[1:]}
    for column, phase in enumerate(("prefill", "decode"), start=1):
        fit = found.layer_time(phase)
        ours, theirs = (fit.seconds(layers) for layers in (8, 6))
        assert found.bound(phase) == pytest.approx(ours / theirs)
        for name, value in (("t0: without layers", fit.around), ("t1: one layer", fit.per_layer)):
            assert same(table[name][column], 1000 * value)
    rows = table_of(read_page(pages["plain"]), "Speed; the ratio is a median over rounds with its 75 % interval")
    assert same(rows[1][4], found.bound("prefill")) and same(rows[2][3], found.ratio("decode").value)


def test_provenance_is_complete(pages, runs):
    page = read_page(pages["plain"])
    table = {row[0]: row[1:] for row in table_of(page, "Models and texts")}
    assert table[""] == ["plan.json", "scan.json", "evaluation.json", "tasks.json"]
    assert table["text hash"][1:] == ["d0"] * 3 and table["seed"][1:] == ["7"] * 3 and table["model hash"] == ["m0"] * 4
    blocks = [one.text for one in page.all("code")]
    assert raw(runs["plain"], "run.json")["command"] in blocks and (runs["plain"] / "recipe.yaml").read_text() in blocks
    assert "torch 2.13.0" in page.text


def test_generations_are_shown_whole(pages, runs):
    texts = [one.text for one in read_page(pages["plain"]).of_class("generated")]
    assert texts == [one[who] for one in raw(runs["plain"], "evaluation.json")["generations"] for who in ("teacher", "student")]


def test_every_plotted_point_says_a_value_of_the_table(pages):
    """Charts and tables come from the same numbers: what a point says stands in a table too."""
    for kind in KINDS:
        page = read_page(pages[kind])
        cells = " ".join(cell.text for name in ("td", "th") for cell in page.all(name))
        tips = [one.attributes["data-tip"] for one in page.of_class("point") if one.attributes.get("data-tip")]
        assert len(tips) > 20
        for tip in tips:
            value = re.split(r": (?:KL |x )?", tip)[-1].removesuffix(" %")
            assert value in cells, tip


# -- the page is one safe file -----------------------------------------------------------------------------------------------


def outline(page):
    return [(one.name, sorted(key for key in one.attributes)) for one in page]


@pytest.mark.parametrize("kind", KINDS)
def test_strange_texts_make_the_same_page_as_plain_ones(tmp_path, pages, kind):
    """No text of a model, a data set or a task becomes markup: element by element the page is the one of a plain text."""
    hostile = html_of(write_run(tmp_path / "run", HOSTILE, kind=kind))
    found = read_page(hostile)
    assert outline(found) == outline(read_page(pages[kind]))
    shown = re.sub("[\x00\x1b\u202e]", "\ufffd", HOSTILE).replace("\r\n", "\n")
    assert found.of_class("generated")[0].text == "same " + shown
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", hostile)


def test_strange_names_of_models_make_the_same_page(tmp_path):
    def named(name):
        folder = write_run(tmp_path / "run")
        content = raw(folder, "plan.json")
        (folder / "plan.json").write_text(json.dumps({**content, "source": name}))
        return html_of(folder)

    strange = named('x"><svg onload=alert(1)>')
    assert outline(read_page(strange)) == outline(read_page(named("org/model"))) and "<svg onload" not in strange


def test_nothing_is_fetched_and_nothing_else_may_run(pages):
    text = pages["layer"]
    page = read_page(text)
    assert (
        not page.all("link") and not page.all("img") and not page.all("iframe") and "url(" not in text and "@import" not in text
    )
    for one in page:
        assert not {"src", "srcset", "style", "onclick", "onload", "onerror"} & set(one.attributes)
        assert (one.attributes.get("href") or "#").startswith("#")
    (policy,) = [
        one.attributes["content"] for one in page.all("meta") if one.attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    (script,) = [one for one in page.all("script") if not one.attributes]
    (style,) = page.all("style")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for part, rule in ((script.text, "script-src"), (style.text, "style-src")):
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"
    assert rules["default-src"] == "'none'"


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_can_be_found_through_without_seeing_it(pages, kind):
    page = read_page(pages[kind])
    ids = [one.attributes["id"] for one in page if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        assert link.attributes["href"][1:] in ids
    levels_found = [int(one.name[1]) for one in page if re.fullmatch("h[1-6]", one.name)]
    assert levels_found[0] == 1 and levels_found.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(levels_found, levels_found[1:], strict=False))
    for section in page.all("section"):
        assert section.attributes.get("aria-label") or section.attributes["aria-labelledby"] in ids
    for table in page.all("table"):
        assert table.attributes["aria-label"] and all(one.attributes["scope"] in ("row", "col") for one in table.all("th"))
    for drawing in [one for one in page.all("svg") if one.attributes.get("aria-hidden") != "true"]:
        assert drawing.attributes["role"] and drawing.attributes["aria-label"]
    assert page.all("html")[0].attributes["lang"] == "en" and page.all("main") and page.all("nav")


def test_the_same_files_give_the_same_bytes(run):
    assert report_stage(run).read_bytes() == report_stage(run).read_bytes()


def test_a_model_of_126_layers_stays_below_2_mb(tmp_path):
    page = report_stage(write_run(tmp_path / "run", n_layers=126))
    assert page.stat().st_size < 2_000_000
    read_page(page.read_text())


def test_charts_are_files_for_papers(run):
    _, figures = write_report(run)
    names = {
        "accuracy",
        "block-influence",
        "candidates",
        "depth-decode",
        "heatmap",
        "depth-prefill",
        "norms",
        "speed",
        "stability",
        "training-0-4-7-kl",
        "training-0-4-7-objective",
    }
    assert {path.name for path in figures} == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    for path in figures:
        assert path.parent == run / "figures" and path.read_bytes()[:5] in (b"<?xml", b"\x89PNG\r")
    (chart,) = [one for part in report_page.sections(read_run(run)) for one in part.charts if one.name == "norms"]
    assert all(path.read_bytes() == (run / "figures" / path.name).read_bytes() for path in save_figures([chart], run / "again"))
