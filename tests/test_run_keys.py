"""What changes a result changes the key of its stage, and of no stage before it."""

import pytest
from world import write_model, write_text

from shoal.edits.drop import Drop
from shoal.edits.plan import Plan
from shoal.edits.replace.replace_edit import Replace
from shoal.engine.opening import Opening
from shoal.fit.fit_config import FitConfig
from shoal.recipes.reads import needs_scan
from shoal.recipes.recipe import TextChoice
from shoal.recipes.recipe_file import load_recipe, merge
from shoal.run import searching
from shoal.run.asking import budget_of, request_of
from shoal.run.begin import open_folder
from shoal.run.by_hand import named_key
from shoal.run.job import open_inputs
from shoal.run.keys import choice_key, edits_key, evaluation_key, repair_key, save_key, scan_key, train_key
from shoal.run.stage import State, run_stage
from shoal.run.stages.choose import CHOOSE
from shoal.select.model_size import PutBack
from shoal.select.search.search_config import SearchConfig
from shoal.train.config import TrainConfig
from shoal.words.structure import Size

STAGES = {"scan", "plan", "train", "model", "evaluation"}
PLANNING, FITTING = {"plan"}, {"train"}
PLAN = Plan(
    source="m", source_hash="h", teacher="m", n_layers=6, before=Size(layers=6, parameters=6),
    after=Size(layers=5, parameters=5), edits=(Replace(start=2, stop=4, replacement="layer"),),
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    text = {"sources": [str(write_text(folder / "text.jsonl"))], "samples": 12, "length": 16, "selection": 8, "evaluation": 8}
    return {
        "model": str(write_model(folder / "model")),
        "drop": "2",
        "replace": "layer",
        "text": text,
        "train": {"tokens": 640},
    }


def keys(base, changes, **options):
    recipe = load_recipe("default", merge(base, changes))
    inputs = open_inputs(recipe, Opening(**options))
    scan = scan_key(inputs) if needs_scan(recipe) else None
    return {
        "scan": scan,
        "plan": choice_key(inputs, budget_of(recipe), request_of(recipe, inputs.view), scan=scan),
        "train": train_key(inputs, PLAN, ""),
        "model": save_key(inputs, PLAN, ""),
        "evaluation": evaluation_key(inputs, PLAN, ""),
    }


def changed(base, changes, **options):
    before, after = keys(base, {}), keys(base, changes, **options)
    return {stage for stage in STAGES if before[stage] != after[stage]}


TEXT = {
    "samples": (11, {"scan", "plan"}),
    "length": (17, STAGES),  # The batches are others, too.
    "packing": ("padded", STAGES - {"model"}),
    "selection": (7, {"plan", "train"}),
    "evaluation": (7, {"evaluation"}),
    "tokens": (160, set()),  # The tokens count for slices whose samples are not asked for.
}
CHOICE = {
    "drop": "1", "parameters": "30K", "select": "disjoint", "by": "angular/last", "max_spans": 2, "rounds": 2, "protect": (0,),
    "guard": 3, "replace": "none", "size": "50KB",
}  # fmt: skip
TRAIN = {
    "objective": "cosine", "several": "sequential",
    "tokens": 480, "lr": 1e-3, "min_lr": 1e-5, "warmup": 0.1, "weight_decay": 0.1, "betas": (0.9, 0.99), "clip": 0.5,
    "batch": 2, "micro_batch": 2, "dtype": "bfloat16", "eval_every": 3, "seed": 1,
}  # fmt: skip


def test_no_option_is_forgotten_here():
    """``sources``, ``field``, ``seed``, ``repair``, ``fit``, ``polish`` and ``stages`` are below; the rest is for people."""
    assert {*TEXT, "sources", "field"} == set(TextChoice.model_fields)
    assert {*TRAIN, "stages"} == set(TrainConfig.model_fields)
    for_people = {"name", "about", "papers", "model"}
    others = {"text", "train", "observers", "seed", "repair", "fit", "polish", "search", "heal", "speed", "units"} | for_people
    others |= {"layers", "keep", "grow", "merge", "prune"}
    assert {*CHOICE, *others} == set(load_recipe().model_dump())


def test_measuring_speed_or_not_is_another_evaluation(base):
    assert changed(base, {"speed": False}) == {"evaluation"}


@pytest.mark.parametrize(("slice", "reads"), [("samples", {"scan", "plan"}), ("evaluation", {"evaluation"})])
def test_tokens_of_a_slice_whose_samples_are_not_asked_for(base, slice, reads):
    assert changed(merge(base, {"text": {slice: None}}), {"text": {"tokens": 160}}) == reads


@pytest.mark.parametrize("option", TEXT)
def test_text(base, option):
    value, stages = TEXT[option]
    assert changed(base, {"text": {option: value}}) == stages


@pytest.mark.parametrize("option", CHOICE)
def test_choice(base, option):
    decides_training = FITTING if option == "replace" else set()
    assert changed(base, {option: CHOICE[option]}) == PLANNING | decides_training


def test_layers_by_number(base):
    named = ({"layers": "2"}, {"layers": "3"}, {"layers": "attn:2"}, {"keep": "0..3"}, {"keep": "0..4"})
    recipes = [load_recipe("default", {"model": base["model"], **one}) for one in named]
    plans = [named_key("fingerprint", recipe, PutBack()) for recipe in recipes]
    assert len(set(plans)) == len(plans)


@pytest.mark.parametrize("units", ["sublayers", "attention"])
def test_units(base, units):
    base = merge(base, {"select": "greedy", "replace": "none", "repair": "none", "guard": 1})
    assert changed(base, {"units": units}) == PLANNING


@pytest.mark.parametrize("option", TRAIN)
def test_training(base, option):
    assert changed(base, {"train": {option: TRAIN[option]}}) == FITTING


def test_stages_of_training(base):
    staged = [{"objective": name, "tokens": 320} for name in ("hidden_mse", "forward_kl")]
    assert changed(base, {"train": {"tokens": None, "stages": staged}}) == FITTING


def test_polish(base):
    assert changed(base, {"polish": "kl"}) == FITTING
    assert changed(base, {"polish": "hidden"}) == set(), "what a replacement has anyway"
    assert changed(base, {"train": {"objective": "hidden_mse"}}) == set(), "the same, said in full"


FITTED = ({"weights": "plain"}, {"sinks": "counted"}, {"ridge": 0.1}, {"keep": "always"}, {"solve": "ratio"})


def test_repair(base):
    cut = PLAN.model_copy(update={"edits": (Drop(indices=(3,)),)})

    def key(**changes):
        recipe = load_recipe("default", merge(base, {"replace": "none", "repair": "sweep", "fit": {"tokens": 480}, **changes}))
        return repair_key(open_inputs(recipe), cut)

    assert key() == key(train={"tokens": 320}, drop="1", text={"evaluation": 7})
    others = [key(repair="refit"), key(fit={"tokens": 640}), key(text={"selection": 7}), key(seed=1)]
    others += [key(fit={"tokens": 480, **how}) for how in FITTED]
    assert len({key(), *others}) == 5 + len(FITTED)
    assert {name for how in FITTED for name in how} == set(FitConfig.model_fields) - {"tokens"}


def test_the_guard_compares_repaired_candidates(base):
    """So the repair and its text belong to the choice; without a comparison, or with a replacement, they do not."""

    def key(**changes):
        asked = {"replace": "none", "repair": "sweep", "fit": {"tokens": 480}, **changes}
        return keys(base, asked)["plan"]

    assert len({key(), key(repair="refit"), key(repair="none"), key(fit={"tokens": 640})}) == 4
    assert key(guard=1) == key(guard=1, repair="refit", fit={"tokens": 640})


def test_how_a_search_runs_the_model(base):
    """It decides the plan where the selector runs the model, and nothing elsewhere."""
    found = {"metric": "js", "tokens": 64, "evaluations": 50}
    assert {*found, "tasks", "items"} == set(SearchConfig.model_fields)  # what is asked in tasks: test_choose_by_task
    greedy = {"select": "greedy", "guard": 1}
    for name, value in found.items():
        assert changed(base, {"search": {name: value}}) == set()
        assert keys(base, greedy)["plan"] != keys(base, {**greedy, "search": {name: value}})["plan"]


@pytest.mark.parametrize(
    ("changes", "competes"), [({}, True), ({"guard": 2}, True), ({"guard": 1}, False), ({"select": "greedy"}, False)]
)
def test_how_the_search_beside_a_score_runs_the_model(base, monkeypatch, changes, competes):
    changes = {"replace": "none", **changes}
    before = keys(base, changes)["plan"]
    monkeypatch.setattr(searching, "TOKENS_BESIDE", 64)
    assert (keys(base, changes)["plan"] != before) == competes


def test_the_rest_of_a_recipe(base, tmp_path):
    assert changed(base, {"name": "mine", "about": "a try", "papers": ["2403.17887"]}) == set()
    assert changed(base, {"observers": ["cka"]}) == {"scan", "plan"}
    assert changed(base, {"seed": 1}) == STAGES - {"model"}
    other_text = write_text(tmp_path / "other.jsonl", seed=1)
    assert changed(base, {"text": {"sources": [str(other_text)]}}) == STAGES - {"model"}
    assert changed(base, {"model": str(write_model(tmp_path / "other", seed=1))}) == STAGES


def test_precision_changes_every_stage(base):
    assert changed(base, {}, dtype="bfloat16") == STAGES


def test_the_folder_and_the_name_of_text_and_model_change_nothing(base, tmp_path):
    text = write_text(tmp_path / "moved.jsonl")
    assert changed(base, {"model": str(write_model(tmp_path / "moved")), "text": {"sources": [str(text)]}}) == set()


def test_a_rule_without_measurements_reads_no_text(base):
    rule = {"select": "deepest", "guard": 1}
    assert keys(base, rule)["scan"] is None
    other = keys(base, {**rule, "seed": 1, "text": {"samples": 9, "selection": 7}})
    assert keys(base, rule)["plan"] == other["plan"]


def test_a_plan_is_what_it_does_not_how_it_was_found():
    assert edits_key(PLAN) == edits_key(PLAN.model_copy(update={"method": "by hand", "source": "elsewhere"}))
    assert edits_key(PLAN) != edits_key(PLAN.model_copy(update={"edits": (Drop(indices=(3,)),)}))
    assert edits_key(PLAN) != edits_key(PLAN.model_copy(update={"source_hash": "other"}))


def test_a_rule_without_measurements_needs_no_calibration_text(base, tmp_path):
    """There is far less text than this number of samples takes."""
    recipe = load_recipe("uidl-simple", merge(base, {"text": {"samples": 10**6}, "replace": "none"}))
    plan = run_stage(CHOOSE, State(open_inputs(recipe)), open_folder(tmp_path)).planned
    assert plan.removed_layers == (3, 4)
    with pytest.raises(ValueError, match="too little text"):
        run_stage(CHOOSE, State(open_inputs(recipe.model_copy(update={"rounds": 2}))), open_folder(tmp_path / "rounds"))
