"""The default's healing: in the run where it can be, left out with the reason where it cannot, and never the end of a run."""

import gc
import hashlib
import json
import re
import shutil
import weakref
from dataclasses import replace

import pytest

from shoal import compress, load_recipe
from shoal.cli.console import Screen
from shoal.cli.show import show_outcome
from shoal.engine.opening import Opening
from shoal.recipes.table import RECIPES
from shoal.run import optional_healing
from shoal.run.begin import open_to_cut
from shoal.run.healing import heal_checkpoint
from shoal.run.memory_plan import needs
from shoal.train.heal.config import HealConfig

LENGTH = 16
TEXT = {"samples": 8, "length": LENGTH, "selection": 8, "evaluation": 8}


@pytest.fixture(autouse=True)
def few_tokens_are_enough(monkeypatch):
    monkeypatch.setattr(optional_healing, "FEWEST_HEALED", 8 * LENGTH)


def recipe(small, **changes):
    """The default with eight samples of healing."""
    found = load_recipe(
        "default",
        {
            "model": small["model"], "text": {**TEXT, "sources": [small["text"]]}, "fit": {"tokens": 1024},
            **({} if {"layers", "keep"} & changes.keys() else {"drop": "2"}), **changes,
        },
    )  # fmt: skip
    return (
        found
        if found.heal is None
        else found.model_copy(update={"heal": HealConfig(tokens=8 * LENGTH, optional=True, lr=1e-3)})
    )


def begun(small, folder, opening=Opening(), **changes):
    """The healing of a run as it is settled, and what people are told of it."""
    said = []
    inputs, _ = open_to_cut(recipe(small, **changes), folder, opening, say=said.append)
    return inputs.recipe.heal, [line for line in said if line.startswith("Not healed")]


def bytes_of(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.suffix == ".safetensors"
    }


def test_nothing_of_the_training_stands_beside_the_merge_or_the_evaluation(small, tmp_path, monkeypatch):
    """Circles of references that only the collector would free, and it comes when it likes."""
    from shoal.run.stages import evaluate
    from shoal.train.heal import merge, train
    from shoal.train.heal.trainer import HealTrainer

    born, seen = [], {}

    def noted(function, kind, of_what):
        def called(*args, **kwargs):
            made = function(*args, **kwargs)
            born.append((kind, weakref.ref(of_what(made, args))))
            return made

        return called

    def watched(function, place):
        def called(*args, **kwargs):
            seen[place] = {kind for kind, ref in born if ref() is not None}
            return function(*args, **kwargs)

        return called

    monkeypatch.setattr(HealTrainer, "__init__", noted(HealTrainer.__init__, "trainer", lambda _, args: args[0]))
    monkeypatch.setattr(train, "prepare", noted(train.prepare, "pupil", lambda pupil, _: pupil.model))
    monkeypatch.setattr(merge, "merge_pupil", watched(merge.merge_pupil, "merge"))
    monkeypatch.setattr(evaluate, "against_teacher", watched(evaluate.against_teacher, "evaluation"))
    gc.disable()
    try:
        compress(recipe(small), tmp_path / "run")
    finally:
        gc.enable()
    assert {kind for kind, _ in born} == {"trainer", "pupil"}
    assert seen == {"merge": {"pupil"}, "evaluation": set()}


def test_the_default_heals_as_well_as_it_is_asked_to(small, tmp_path, monkeypatch, capsys):
    found = compress(recipe(small), tmp_path / "run")
    assert found.healed is not None and not found.not_healed and (tmp_path / "run" / "cut").is_dir()
    named = compress(recipe(small).model_copy(update={"heal": HealConfig(tokens=8 * LENGTH, lr=1e-3)}), tmp_path / "named")
    assert bytes_of(found.model) == bytes_of(named.model)
    before = bytes_of(named.folder / "cut")
    shutil.rmtree(named.folder / "cut")  # It may go: the same run makes it again, and trains nothing.
    monkeypatch.setattr("shoal.train.heal.train.train", lambda *_, **__: pytest.fail("it trained again"))
    again = compress(recipe(small).model_copy(update={"heal": HealConfig(tokens=8 * LENGTH, lr=1e-3)}), tmp_path / "named")
    assert bytes_of(again.folder / "cut") == before and bytes_of(again.model) == bytes_of(named.model)
    show_outcome(Screen(as_json=False), found)
    assert re.search(r"unhealed: +\S*cut\s\(\d+\.?\d* [kM]B; it may go", capsys.readouterr().out)


def test_it_takes_the_tokens_that_the_text_holds(small, tmp_path):
    asked = recipe(small)
    inputs, _ = open_to_cut(asked.model_copy(update={"heal": HealConfig(tokens=10**7, optional=True)}), tmp_path / "run")
    held = inputs.training_up_to(10**7).n_tokens
    assert inputs.recipe.heal.tokens == held < 10**7


@pytest.mark.parametrize(
    ("changes", "opening", "why"),
    [
        ({"repair": "none"}, Opening(), r"repair none was asked for; add --heal lora for both"),
        ({"repair": "sweep"}, Opening(), r"repair sweep was asked for"),
        ({"replace": "layer"}, Opening(), r"replace layer was asked for"),
        ({"polish": "kl"}, Opening(), r"polish kl was asked for"),
        ({"layers": "2", "repair": "bias"}, Opening(), r"repair bias was asked for"),
        ({}, Opening(resident="1"), r"it trains with all layers in memory"),
    ],
)  # fmt: skip
def test_it_is_left_out_with_the_reason(changes, opening, why, small, tmp_path, monkeypatch):
    """And at once: what a healing would need is neither read nor imported."""
    asked = []
    monkeypatch.setattr(optional_healing, "refuse_unhealable", lambda *_: asked.append(1))
    healing, said = begun(small, tmp_path / "run", opening, **changes)
    assert healing is None and len(said) == 1 and not asked
    assert re.search(why, said[0]), said


@pytest.mark.parametrize("how", ["left out", "failed"])
def test_the_reason_stands_in_what_a_run_leaves(how, small, tmp_path, monkeypatch, capsys):
    """In the outcome, its few lines, the JSON, the report and the card, and in those of the run that goes on."""

    def fails(*_):
        raise ValueError(f"out of memory; {tmp_path}/run/adapter is left")

    monkeypatch.setattr(heal_checkpoint, "heal_in_run", fails)
    if how == "left out":
        monkeypatch.setattr(optional_healing, "FEWEST_HEALED", 10**6)
    why = {"left out": "the text has 128 tokens to train on", "failed": "out of memory"}[how]
    found = compress(recipe(small), tmp_path / "run")
    assert found.not_healed.startswith(why) and f"not healed: {found.not_healed}" in repr(found)
    capsys.readouterr()
    show_outcome(Screen(as_json=True), found)
    as_json = json.loads(capsys.readouterr().out)
    assert as_json["healed"] is None and as_json["not_healed"] == found.not_healed
    card = (found.model / "README.md").read_text().partition("## Provenance")[2]
    assert f"not healed: {why}" in card and str(tmp_path) not in card
    assert f"Not healed: {why}" in (found.folder / "report.html").read_text()
    again = compress(recipe(small), tmp_path / "run")
    assert again.not_healed == {"left out": f"this run began without it: {found.not_healed}", "failed": found.not_healed}[how]
    if how == "left out":
        inputs, _ = open_to_cut(recipe(small), tmp_path / "run")
        assert inputs.not_healed == again.not_healed


def test_it_is_left_out_of_little_text_and_of_little_memory(small, tmp_path, monkeypatch):
    monkeypatch.setattr(optional_healing, "FEWEST_HEALED", 10**6)
    healing, said = begun(small, tmp_path / "little")
    assert healing is None and "the text has 128 tokens to train on, and it takes 1,000,000" in said[0]
    monkeypatch.undo()
    assert not needs.too_little_to_heal(recipe(small), Opening())
    whole = needs.machine_of
    monkeypatch.setattr(optional_healing, "FEWEST_HEALED", 1)
    monkeypatch.setattr(needs, "machine_of", lambda device: replace(whole(device), free=whole(device).base + 10**6))
    healing, said = begun(small, tmp_path / "memory")
    assert healing is None and "of memory beside its teacher, 1 MB are free" in said[0]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"tokens": 64}, "less than one step of"),
        ({"tokens": 10**9}, "too little text"),
        ({"predict": "answers"}, "chat template"),
        ({"teacher_cache": 4, "objective": "next_token"}, "teacher_cache=4 is not read"),
        ({"rank": 99}, "rank 99 is above the width of .*k_proj .*--rank 16 or less"),
    ],
)
def test_a_healing_that_would_be_refused_is_so_before_the_cut(asked, said, small, tmp_path):
    """It was refused when everything before it was done; an optional one is left out for the same reason."""
    healing = HealConfig(batch=8, **asked)
    with pytest.raises(ValueError, match=said):
        open_to_cut(recipe(small).model_copy(update={"heal": healing}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_optional_healing_that_would_be_refused_is_left_out(small, tmp_path):
    asked = recipe(small).model_copy(update={"heal": HealConfig(tokens=8 * LENGTH, batch=512, optional=True)})
    inputs, _ = open_to_cut(asked, tmp_path / "run")
    assert inputs.recipe.heal is None and "less than one step of 512 samples" in inputs.not_healed


@pytest.mark.parametrize(
    ("changes", "keeps"),
    [
        ({}, False),
        ({"layers": "2"}, False),
        ({"layers": "attn:2,mlp:1"}, True),
        ({"units": "sublayers", "select": "lowest", "by": "relative_update", "drop": "2"}, True),
    ],
)
def test_zeros_that_were_asked_for_stay(changes, keeps, small, tmp_path):
    healing, said = begun(small, tmp_path / "run", **changes)
    assert not said and healing.keep_zeros == keeps


def test_a_healing_that_is_asked_for_by_name_grows_no_sublayer_back(small):
    with pytest.raises(ValueError, match="maps of zeros that would grow back, and --layers attn:2 names single sublayers"):
        recipe(small, layers="attn:2", heal={"tokens": 512})
    assert recipe(small, layers="attn:2", heal={"tokens": 512, "keep_zeros": True}).heal is not None


@pytest.mark.slow  # Two runs.
def test_a_run_goes_on_with_what_it_began_with(small, tmp_path, monkeypatch):
    """The memory that is free may be another by then."""
    compress(recipe(small), tmp_path / "run")
    monkeypatch.setattr(needs, "too_little_to_heal", lambda recipe, opening: "it does not fit")
    healing, said = begun(small, tmp_path / "run")
    assert healing is not None and not said
    compress(recipe(small), tmp_path / "without")
    monkeypatch.undo()
    monkeypatch.setattr(optional_healing, "FEWEST_HEALED", 8 * LENGTH)
    healing, said = begun(small, tmp_path / "without")
    assert healing is None and "this run began without it" in said[0]


def test_a_training_that_fails_leaves_the_student_that_was_cut_and_repaired(small, tmp_path, monkeypatch, shoal):
    """Memory that ran out, say: the run ends with the repaired student, proved, and does not train again when it goes on."""

    def fails(*_):
        raise ValueError("healing ran out of memory; give checkpointing")

    monkeypatch.setattr(heal_checkpoint, "heal_in_run", fails)
    found = compress(recipe(small), tmp_path / "run")
    assert found.healed is None and found.not_healed.startswith("healing ran out of memory")
    assert bytes_of(found.model) == bytes_of(tmp_path / "run" / "cut") == bytes_of(plain(small, tmp_path).model)
    assert json.loads((tmp_path / "run" / "verification.json").read_text())["path"] == "model"
    monkeypatch.setattr(heal_checkpoint, "heal_in_run", lambda *_: pytest.fail("it trained again"))
    assert compress(recipe(small), tmp_path / "run").evaluation == found.evaluation
    code, out, err = shoal("report", tmp_path / "run")
    assert code == 0, err
    monkeypatch.setattr(heal_checkpoint, "heal_in_run", fails)
    with pytest.raises(ValueError, match="out of memory"):
        compress(recipe(small).model_copy(update={"heal": HealConfig(tokens=8 * LENGTH)}), tmp_path / "asked")


@pytest.mark.slow  # Four runs.
def test_after_it_failed_or_was_done_a_run_can_be_made_without_it(small, tmp_path, monkeypatch, shoal):
    """``--heal none --overwrite`` over both: the cut student, and nothing that says or shows a training."""
    without, folder = recipe(small).model_copy(update={"heal": None}), tmp_path / "run"
    expected = bytes_of(plain(small, tmp_path).model)
    with monkeypatch.context() as failing:
        failing.setattr(heal_checkpoint, "heal_in_run", lambda *_: (_ for _ in ()).throw(ValueError("out of memory")))
        compress(recipe(small), folder)
    found = compress(without, folder, overwrite=True)
    assert bytes_of(found.model) == expected and not found.not_healed and not (folder / "not_healed.txt").exists()
    healed = compress(recipe(small), folder, overwrite=True)
    assert healed.healed is not None and (folder / "heal.json").exists()
    found = compress(without, folder, overwrite=True)
    assert bytes_of(found.model) == expected and found.healed is None and not (folder / "heal.json").exists()
    code, _, err = shoal("report", folder, "--overwrite")
    assert code == 0 and "healed as one" not in (folder / "report.html").read_text(), err


def test_a_refusal_to_replace_what_stands_is_no_training_that_failed(small, tmp_path, monkeypatch):
    """Hours of an unfinished training would go with it."""
    asked = recipe(small).model_copy(update={"heal": HealConfig(tokens=16 * LENGTH, lr=1e-3)})

    class Stopped(BaseException):
        pass

    def stops(*_, **__):
        raise Stopped

    with monkeypatch.context() as stopping:
        stopping.setattr(heal_checkpoint, "merge_stage", stops)
        with pytest.raises(Stopped):
            compress(asked, tmp_path / "run")
    trained = (tmp_path / "run" / "heal.json").read_bytes()
    with pytest.raises(ValueError, match="add --overwrite"):
        compress(recipe(small), tmp_path / "run")
    assert (tmp_path / "run" / "heal.json").read_bytes() == trained and not (tmp_path / "run" / "not_healed.txt").exists()


def test_what_else_is_asked_for_does_not_decide_it_anew(small, tmp_path, monkeypatch):
    compress(recipe(small), tmp_path / "run")
    monkeypatch.setattr(needs, "too_little_to_heal", lambda recipe, opening: "it does not fit")
    healing, said = begun(small, tmp_path / "run", speed=False)
    assert healing is not None and not said


def plain(small, folder):
    return compress(recipe(small).model_copy(update={"heal": None}), folder / "plain")


@pytest.mark.parametrize(("given", "expected"), [
    ("lora", HealConfig()),
    ({"tokens": 4096}, HealConfig(tokens=4096)),
    ({"rank": 8}, HealConfig(rank=8)),
    ("none", None),
])  # fmt: skip
def test_a_healing_that_is_asked_for_means_itself(given, expected, tmp_path):
    """Nothing of the optional one stays below it; by an option, in a file, and in one that starts from the default."""
    assert load_recipe("default").heal == RECIPES["default"].recipe.heal and load_recipe("default").heal.optional
    assert load_recipe("default", {"heal": given}).heal == expected
    for base in ("", "recipe: default\n"):
        path = tmp_path / "mine.yaml"
        path.write_text(f"{base}heal: {json.dumps(given)}\n")
        assert load_recipe(str(path)).heal == expected


def test_recipes_of_papers_are_not_healed_by_the_way():
    assert [name for name, one in RECIPES.items() if one.recipe.heal is not None and one.recipe.heal.optional] == ["default"]
