"""Curves are many compressions that share their measurements: the same cuts, the same figures, one pass where one is enough."""

import functools
import json

import pytest
from world import write_model

from shoal import compress, load_recipe
from shoal.cli.curve import _recipes
from shoal.engine.opening import Opening
from shoal.evaluate.curve.ratio_curve import RatioCurves
from shoal.evaluate.tasks.task_files import load_task
from shoal.measure.oracle import Oracle
from shoal.measure.removals import RemovalLosses
from shoal.recipes.table import RECIPES
from shoal.run.curve.methods import method_choice, method_names, slug
from shoal.run.curve.over_ratios import Keeping, measure_curves
from shoal.select.budget_range import counts_in, spread
from shoal.select.model_size import ModelSize
from shoal.select.search.greedy import Greedy
from shoal.words.progress import watched

TEXT = {"samples": 12, "length": 16, "selection": 8, "evaluation": 8}


def recipe(small, name="none", **changes):
    base, chosen = method_choice(name)
    text = {"sources": [small["text"]], **TEXT}
    train = {"tokens": 640, "batch": 8, "micro_batch": 4}
    return load_recipe(
        base, {"model": small["model"], "text": text, "train": train, "fit": {"tokens": 2000}, **chosen, **changes}
    )


def recipes(small, *names):
    return {name: recipe(small, name) for name in names}


def quiz(folder, *, seed=0):
    rows = [{"ctx": f"w{i} w{i + 1}", "choices": [f" w{i + 2}", f" w{i + 3}"], "gold": i % 2} for i in range(12)]
    path = folder / "quiz.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_task(path)


@pytest.fixture(scope="module")
def swept(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept")
    found = measure_curves(recipes(small, "none", "uidl", "refit"), folder / "curves", drop="0..3", tasks=[quiz(folder)])
    return folder / "curves", found


def test_the_file_is_the_result_and_every_cut_is_there(swept):
    folder, found = swept
    assert RatioCurves.load(folder / "curve.json") == found and found.is_complete
    assert found.counts == (1, 2, 3) and list(found.recipes) == ["none", "uidl", "refit"]
    assert [(one.method, one.n_net) for one in found.points] == [(m, n) for m in found.recipes for n in found.counts]
    for one in found.points:
        assert len(one.layers_out) == one.n_net == found.before.layers - one.size.layers
        assert one.share == pytest.approx(1 - one.size.parameters / found.before.parameters)
        assert (folder / one.plan).exists() and (folder / one.plan).with_name("recipe.yaml").exists()
        assert len(one.kl) == len(one.nll) == len(found.n_tokens) == 8 and len(one.right["quiz"]) == 12
        assert sum(one.kl) / sum(found.n_tokens) == pytest.approx(one.quality.kl, rel=1e-12)
        assert sum(one.nll) / sum(found.n_tokens) == pytest.approx(one.quality.nll, rel=1e-12)


def test_at_zero_stands_the_teacher_itself(swept):
    _, found = swept
    assert set(found.teacher.kl) == {0.0} and found.teacher.quality.agreement == 1.0
    assert found.teacher.share == 0 and found.teacher.size == found.before


def test_shares_rise_with_the_layers_removed(swept):
    _, found = swept
    for method in found.recipes:
        points = found.of_method(method)
        assert all(a.share < b.share and a.n_net < b.n_net for a, b in zip(points, points[1:], strict=False))


@pytest.mark.parametrize("name", [pytest.param("none", marks=pytest.mark.slow), "refit"])
def test_a_point_is_what_compress_makes_of_the_same_recipe(name, small, swept, tmp_path):
    _, found = swept
    point = next(one for one in found.points if (one.method, one.n_net) == (name, 2))
    outcome = compress(recipe(small, name, drop="2"), tmp_path / "run")
    assert outcome.plan.removed_layers == point.layers_out
    close = functools.partial(pytest.approx, rel=1e-5)  # The saved student is a model of its own.
    assert outcome.evaluation.quality.kl == close(point.quality.kl)
    assert outcome.evaluation.quality.nll == close(point.quality.nll)
    assert outcome.evaluation.student.cost.parameters == point.size.parameters


@pytest.mark.slow
def test_a_point_can_be_redone_from_its_recipe_file(swept, tmp_path):
    folder, found = swept
    point = found.points[-1]
    outcome = compress(load_recipe(str((folder / point.plan).with_name("recipe.yaml"))), tmp_path / "run")
    assert outcome.evaluation.quality.kl == pytest.approx(point.quality.kl, rel=1e-5)


def test_the_guards_share_one_pass_and_so_do_the_plain_cuts(small, tmp_path, monkeypatch):
    passes = []
    sums = Oracle.sums

    def counted(self, students):
        passes.append(len(students))
        return sums(self, students)

    monkeypatch.setattr(Oracle, "sums", counted)
    found = measure_curves(recipes(small, "none", "uidl", "shortgpt"), tmp_path / "curves", drop="0..3")
    different = {one.layers_out for one in found.points}
    assert len(passes) == 3 and passes[0] == 1 and passes[2] == len(different), "the teacher, the guards, the cuts"


@pytest.mark.parametrize("names", [("none",), pytest.param(("none", "refit"), marks=pytest.mark.slow)])
def test_the_searches_of_all_points_run_no_set_twice(names, small, tmp_path, monkeypatch):
    asked, run = [], RemovalLosses.__call__

    def counted(self, sets):
        asked.extend(sets)
        return run(self, sets)

    monkeypatch.setattr(RemovalLosses, "__call__", counted)
    found = measure_curves(recipes(small, *names), tmp_path / "curves", drop="0..3")
    assert len(asked) == len(set(asked)) == Greedy().n_evaluations(found.before.layers - 2, 3)
    assert not list((tmp_path / "curves").glob("points/*/search")) and (tmp_path / "curves" / "search").is_dir()


def test_what_a_curve_cannot_score_is_refused_before_a_cut_is_made(small, tmp_path):
    written, unknown = tmp_path / "written.jsonl", tmp_path / "unknown.jsonl"
    written.write_text(json.dumps({"ctx": "w1 w2", "answer": "w3"}) + "\n")
    with pytest.raises(ValueError, match="task 'written' has written answers; a curve scores choices and last words"):
        measure_curves(recipes(small, "uidl"), tmp_path / "curves", drop="0..2", tasks=[load_task(written)])
    unknown.write_text(json.dumps({"ctx": "w1 w2", "target": " w3 w3 w3 w3 w3 w3"}) + "\n")
    keep = Keeping(0.9, "unknown")
    with pytest.raises(ValueError, match="the teacher has no item of 'unknown' right"):
        measure_curves(recipes(small, "uidl"), tmp_path / "curves", drop="0..2", tasks=[load_task(unknown)], keep=keep)
    assert not (tmp_path / "curves" / "points").exists()


def test_tokens_go_to_the_methods_that_read_them():
    common = dict(model="m", samples=4)
    found = _recipes("none,refit,layer", common, fit_tokens=500, train_tokens=640)
    assert [one.fit.tokens == 500 for one in found.values()] == [False, True, False]
    assert [one.train.tokens == 640 for one in found.values()] == [False, False, True]
    with pytest.raises(ValueError, match="--fit-tokens is for a repair, and no method has one"):
        _recipes("none,layer", common, fit_tokens=500, train_tokens=None)
    with pytest.raises(ValueError, match="--train-tokens is for training, and no method trains"):
        _recipes("none,refit", common, fit_tokens=None, train_tokens=640)


class Killed(Exception):
    pass


def without_clocks(curves):
    return [one.model_copy(update={"seconds": 0.0}) for one in (curves.teacher, *curves.points)]


LATER = [pytest.param(when, marks=pytest.mark.slow) for when in ("scan", "guard", "teacher: evaluate", "plain cuts: evaluate")]


@pytest.mark.parametrize("when", ["(refit, 2 layers): stage 2 of 2, refit", *LATER])
def test_a_killed_run_ends_in_the_same_points(when, small, swept, tmp_path):
    methods, task = recipes(small, "none", "uidl", "refit"), quiz(tmp_path)

    def kill(what, done, total):
        if what.endswith(when):
            raise Killed

    with pytest.raises(Killed):
        with watched(kill):
            measure_curves(methods, tmp_path / "curves", drop="0..3", tasks=[task])
    if "refit" in when:
        half = RatioCurves.load(tmp_path / "curves" / "curve.json")
        assert not half.is_complete and len(half.points) == 7
    done = []
    with watched(lambda what, *_: done.append(what)):
        found = measure_curves(methods, tmp_path / "curves", drop="0..3", tasks=[task])
    assert without_clocks(found) == without_clocks(swept[1])
    if "refit" in when:
        assert "scan" not in done and not any("plain cuts" in what or "(refit, 1" in what for what in done)


def test_a_finished_curve_measures_nothing_and_can_be_widened(small, tmp_path):
    methods, work = recipes(small, "none"), []

    def curves(methods, **options):
        with watched(lambda what, *_: work.append(what)):
            return measure_curves(methods, tmp_path / "curves", **options)

    first = curves(methods, drop="0..2")
    work.clear()
    assert curves(methods, drop="0..2") == first and not work
    wider = curves(recipes(small, "none", "uidl"), drop="0..3")
    assert [one for one in wider.points if one.method == "none"][:2] == list(first.points)
    with pytest.raises(ValueError, match="holds 4 points that this run leaves out"):
        curves(methods, drop="0..2")
    assert curves(methods, drop="0..2", overwrite=True).points == first.points


def test_other_text_or_tasks_need_the_users_word(small, swept, tmp_path):
    methods = {"none": recipe(small)}
    measure_curves(methods, tmp_path / "curves", drop="2")
    shorter = {"none": recipe(small, text={"sources": [small["text"]], **TEXT, "length": 12})}
    for changed in (
        functools.partial(measure_curves, shorter),
        functools.partial(measure_curves, methods, tasks=[quiz(tmp_path)]),
    ):
        with pytest.raises(ValueError, match="other options, model or text"):
            changed(tmp_path / "curves", drop="2")
    assert measure_curves(methods, tmp_path / "curves", drop="2", tasks=[quiz(tmp_path)], overwrite=True).tasks


@pytest.mark.slow  # Three methods at three counts; test_streamed.py has a run of each kind.
def test_layers_read_from_disk_give_the_same_points(small, swept, tmp_path):
    methods = recipes(small, "none", "uidl", "refit")
    found = measure_curves(methods, tmp_path / "curves", drop="0..3", tasks=[quiz(tmp_path)], opening=Opening(resident="1"))
    assert without_clocks(found) == without_clocks(swept[1])


def test_a_trained_replacement_is_a_method(small, tmp_path):
    found = measure_curves(recipes(small, "none", "layer"), tmp_path / "curves", drop="2", n_points=1)
    plain, layer = found.points
    assert layer.size.layers == plain.size.layers == 4 and layer.layers_out != plain.layers_out
    assert (tmp_path / "curves" / layer.plan).with_name("train.safetensors").exists()


# -- ranges and names ------------------------------------------------------------------------------------------------------

SIZE = ModelSize(total=1000, layers=(50,) * 16)  # 800 in layers, 200 around


@pytest.mark.parametrize(
    ("drop", "n_points", "counts"),
    [
        ("0..50%", None, tuple(range(1, 11))),
        ("50%", None, tuple(range(1, 11))),
        ("0..50%layers", None, tuple(range(1, 9))),
        ("25..50%layers", None, (4, 5, 6, 7, 8)),
        ("10%..20%", None, (2, 3, 4)),
        ("0..8", None, tuple(range(1, 9))),
        ("3..5layers", None, (3, 4, 5)),
        ("4", 1, (4,)),
        ("0..8", 4, (1, 3, 6, 8)),
        ("0..9", 100, tuple(range(1, 10))),
    ],
)
def test_ranges_become_numbers_of_layers(drop, n_points, counts):
    assert counts_in(drop, SIZE, protected=frozenset({0, 15}), n_points=n_points) == counts


@pytest.mark.parametrize(
    "drop", ["", "..", "a..b", "50%..10%", "0..", "0..99%", "0..15", "-1..3", "0..1.5", "0...5", "1..2..3"]
)
def test_what_is_no_range_is_refused_in_one_line(drop):
    with pytest.raises(ValueError, match="--drop") as error:
        counts_in(drop, SIZE, protected=frozenset({0, 15}))
    assert "\n" not in str(error.value)


def test_points_are_spread_evenly_and_keep_both_ends():
    for n in range(2, 20):
        chosen = spread(range(1, 21), n)
        gaps = {b - a for a, b in zip(chosen, chosen[1:], strict=False)}
        assert len(chosen) == n and chosen[0] == 1 and chosen[-1] == 20 and max(gaps) - min(gaps) <= 1


def test_method_names():
    assert method_choice("none") == ("default", {"replace": "none"})
    assert method_choice("refit") == ("default", {"repair": "refit", "replace": "none"})
    assert method_choice("layer") == ("default", {"replace": "layer"})
    assert method_choice("uidl+sweep") == ("uidl", {"repair": "sweep"})
    assert method_choice("refit+kl") == ("default", {"repair": "refit", "polish": "kl", "replace": "none"})
    assert method_choice("mine.yaml") == ("mine.yaml", {})
    assert all(method_choice(name) == (name, {}) for name in RECIPES)
    assert method_choice("swiglu:width=8,layout=code") == ("default", {"replace": "swiglu:width=8,layout=code"})
    listed = method_names("none, refit,swiglu:width=8,layout=code,,layer ,none")
    assert listed == ["none", "refit", "swiglu:width=8,layout=code", "layer"]
    assert slug("swiglu:width=8,layout=code") == "swiglu-width-8-layout-code"
    assert slug("some/where/my recipe.yaml") == "my-recipe.yaml"


@pytest.mark.parametrize("name", ["refti", "refit+curves", "uidl+shortgpt", "none+refit", "refit+", ""])
def test_names_that_are_no_method(name):
    with pytest.raises(ValueError, match="--methods"):
        method_choice(name)


def test_methods_of_different_text_are_not_compared(small, tmp_path):
    other = recipe(small, text={"sources": [small["text"]], **TEXT, "length": 12})
    with pytest.raises(ValueError, match="compared on one"):
        measure_curves({"none": recipe(small), "refit": other}, tmp_path / "curves")
    assert not (tmp_path / "curves").exists()


# -- the command -----------------------------------------------------------------------------------------------------------


def options(small, *more):
    return ("--text", small["text"], "--samples", 8, "--length", 16, *more)


def test_the_command(shoal, small, tmp_path):
    quiz(tmp_path)
    code, out, err = shoal(
        "curve", small["model"], "--out", "run", "--drop", "0..2", "--methods", "none,uidl", "--task", "quiz.jsonl",
        "--keep", "10%", *options(small), "--json",
    )  # fmt: skip
    assert code == 0, err
    found = RatioCurves.from_json(out)
    assert found == RatioCurves.load(tmp_path / "run" / "curve.json") and len(found.points) == 4
    assert "largest cut that keeps 10 % of perplexity" in err and "points; a break needs" in " ".join(err.split())
    assert (tmp_path / "run" / "report.html").exists()
    for name in ("curve.png", "curve.svg"):
        assert (tmp_path / "run" / name).stat().st_size


def test_the_first_items_are_those_that_every_point_is_scored_on(shoal, small, tmp_path):
    quiz(tmp_path)
    code, out, err = shoal(
        "curve", small["model"], "--out", "run", "--drop", "0..1", "--methods", "none", "--task", "quiz.jsonl", "--items", 2,
        *options(small), "--json",
    )  # fmt: skip
    assert code == 0, err
    found = RatioCurves.from_json(out)
    assert [one.n_items for one in found.tasks] == [2] and len(found.points[0].right["quiz"]) == 2


def test_the_cut_of_a_point_can_be_applied(shoal, small, tmp_path):
    code, _, err = shoal("curve", small["model"], "--out", "run", "--drop", "2..2", "--methods", "refit", *options(small))
    assert code == 0, err
    code, _, err = shoal("apply", "run/points/refit-02/plan.json", "--out", "student")
    assert code == 0 and (tmp_path / "student" / "model.safetensors").exists(), err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--drop", "0..x"), "--drop '0..x'"),
        (("--drop", "0..6"), "this model allows 1..4"),
        (("--methods", "refti"), "did you mean 'refit'"),
        (("--methods", ","), "names no method"),
        (("--points", "0"), "--points 0 needs at least 1"),
        (("--keep", "95"), "--keep '95'"),
        (("--of", "kl"), "give --keep as well"),
        (("--keep", "95%", "--of", "lambada"), "--of 'lambada' is not measured"),
        (("--task", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--drop", "0..0"), "--drop '0..0' removes nothing at its upper end"),
        (("--items", "3"), "--items is about tasks"),
        (("--seed", "-1"), "seed: input should be greater than or equal to 0"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing(shoal, small, tmp_path, more, said):
    code, _, err = shoal("curve", small["model"], "--out", "run", *options(small), *more)
    line = err.strip().splitlines()[-1]
    assert code == 2 and said in line and line.startswith("shoal: error:"), err
    assert not (tmp_path / "run" / "curve.json").exists()


def test_a_folder_of_another_kind_is_refused(shoal, small, tmp_path):
    write_model(tmp_path / "other", seed=1)
    code, _, err = shoal("curve", small["model"], "--out", "other", *options(small))
    assert code == 2 and "not empty and was not written by shoal" in err
