"""Recipes are validated data: what is wrong is named, with the nearest that would be right."""

import pytest
from test_import_contract import SRC

from shoal.cli.recipe_options import with_options
from shoal.edits.replace.table import REPLACEMENTS
from shoal.recipes.listing import recipes_said
from shoal.recipes.recipe import Recipe
from shoal.recipes.recipe_file import load_recipe, merge
from shoal.recipes.table import RECIPES
from shoal.select.table import SELECTORS
from shoal.text.samples import PACKINGS


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_named_recipe_survives_its_own_file(name, tmp_path):
    recipe = load_recipe(name)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(str(path)) == recipe
    assert recipe.about and all(paper.count(".") == 1 for paper in recipe.papers)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_named_recipe_says_what_it_is(name):
    one = RECIPES[name]
    assert (SRC / "recipes" / "named" / f"{name.replace('-', '_')}.py").is_file()
    assert name in dict(recipes_said()) and one.chooses and one.then and "\n" not in one.chooses + one.then + one.differs
    assert bool(one.differs) <= bool(one.title and one.recipe.papers), "the page lists it under its paper's title"


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_every_selector_can_be_named(name):
    assert load_recipe("default", {"select": name}).select == name


def test_a_file_writes_pruning_and_healing_as_the_command_line_does(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("prune: wanda:sparsity=40%,allocate=owl\nheal: norms\n")
    found = load_recipe(str(path))
    by_option = with_options("default", prune="wanda:sparsity=40%,allocate=owl", heal="norms")
    assert (found.prune, found.heal) == (by_option.prune, by_option.heal) and found.heal.method == "norms"
    path.write_text("recipe: owl\nprune: none\nheal: none\nlayers: 3\n")
    assert load_recipe(str(path)).prune is None and load_recipe(str(path)).heal is None


MERGING = [name for name, one in SELECTORS.items() if "weights" in one.reads]


@pytest.mark.parametrize("base", ["", "recipe: default\n", "recipe: low\n"])
@pytest.mark.parametrize("select", MERGING)
def test_a_file_and_the_command_line_set_one_guard_for_merges(select, base, tmp_path):
    """The command line left nothing to compete with what was compared by running it, and a file had to say so by hand."""
    path = tmp_path / "mine.yaml"
    path.write_text(f"{base}select: {select}\nrepair: none\n")
    by_file, name = load_recipe(str(path)), "low" if "low" in base else "default"
    by_option = with_options(name, select=select, repair="none")
    for_people = {"name", "about", "papers"}
    assert by_file.guard == 1 and by_file.model_dump(exclude=for_people) == by_option.model_dump(exclude=for_people)
    assert Recipe(select=select, repair="none").guard == load_recipe("default", {"select": select, "repair": "none"}).guard == 1
    with pytest.raises(ValueError, match="use --guard 1"):
        load_recipe("default", {"select": select, "guard": 4})


def test_a_file_and_the_command_line_set_one_floor_below_a_learning_rate(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("recipe: llm-streamline\ntrain: {lr: 1.0e-5}\n")
    by_file, by_option = load_recipe(str(path)).train, with_options("llm-streamline", lr=1e-5).train
    assert by_file == by_option and by_file.schedule()[0].rates(64) == (1e-5, pytest.approx(1e-6))


def integers_of(schema, where="", *, defs=None):
    """Every place of a JSON schema that holds a whole number, with what is said of it."""
    defs = defs or schema.get("$defs", {})
    if "$ref" in schema:
        yield from integers_of(defs[schema["$ref"].rsplit("/", 1)[1]], where, defs=defs)
    if schema.get("type") == "integer" and "const" not in schema:
        yield where, schema
    for name, below in schema.get("properties", {}).items():
        yield from integers_of(below, f"{where}.{name}".strip("."), defs=defs)
    for below in [*schema.get("anyOf", ()), *schema.get("allOf", ()), *schema.get("prefixItems", ()), schema.get("items")]:
        if isinstance(below, dict):
            yield from integers_of(below, where, defs=defs)


NUMBERS = dict(integers_of(Recipe.model_json_schema()))
CHECKED_WITH_THE_MODEL = {"protect"}


def test_every_whole_number_of_a_recipe_has_a_largest_value():
    unbounded = {where for where, said in NUMBERS.items() if not {"maximum", "exclusiveMaximum"} & set(said)}
    assert unbounded == CHECKED_WITH_THE_MODEL and len(NUMBERS) > 30


@pytest.mark.parametrize("where", sorted(set(NUMBERS) - CHECKED_WITH_THE_MODEL))
def test_a_number_far_too_large_is_one_line(where, tmp_path):
    """``guard: 10000000000000`` was accepted."""
    *above, name = where.split(".")
    path = tmp_path / "large.yaml"
    value = f"{{{name}: {10**13}}}"
    if above == ["train", "stages"]:
        value = f"{{stages: [{value}]}}"
    path.write_text(f"{above[0]}: {value}\n" if above else f"{name}: {10**13}\n")
    with pytest.raises(ValueError, match=f"{name}: input should be less than") as error:
        load_recipe(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        "heal: {clip: .inf}", "heal: {alpha: .nan}", "heal: {betas: [1, 2]}", "heal: {temperature: .inf}", "heal: {lr: .inf}",
        "heal: {warmup: .inf}", "heal: {weight_decay: .inf}", "heal: {most_lost: .inf}", "train: {clip: .inf}",
        "train: {betas: [1, 1]}", "prune: {outlier: .inf}", "grow: {to: 99999999}", "grow: {to: 9999999999999999999999}",
    ],
)  # fmt: skip
def test_a_number_that_is_none_is_one_line(content, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match="wrong.yaml: ") as error:
        load_recipe(str(path))
    assert "\n" not in str(error.value)


def test_a_recipe_may_name_what_the_tables_hold_and_nothing_else():
    with pytest.raises(ValueError, match="unknown selector 'greedi'; did you mean 'greedy'"):
        load_recipe("default", {"select": "greedi"})
    for name in ("none", *REPLACEMENTS):
        assert load_recipe("default", {"replace": name}).replace == name
    with pytest.raises(ValueError, match="unknown replacement 'swigl'; did you mean 'swiglu'"):
        load_recipe("default", {"replace": "swigl"})
    with pytest.raises(ValueError, match="width"):
        load_recipe("default", {"replace": "swiglu:width=0"})


@pytest.mark.parametrize("packing", sorted(PACKINGS))
def test_every_packing_can_be_named(packing):
    assert load_recipe("default", {"text": {"packing": packing}}).text.packing == packing


def test_a_seed_is_that_of_all_that_is_drawn(tmp_path):
    given = load_recipe("default", {"seed": 5, "heal": {"method": "lora"}, "polish": "kl"})
    assert (given.seed, given.train.seed, given.heal.seed) == (5, 5, 5)
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 7\nheal: lora\npolish: kl\ntrain: {seed: 3}\n")
    mine = load_recipe(str(path))
    assert (mine.seed, mine.train.seed, mine.heal.seed) == (7, 3, 7)
    again = load_recipe(str(path), {"seed": 9})
    assert (again.seed, again.train.seed, again.heal.seed) == (9, 9, 9), "an option means all of it"
    path.write_text("seed: 7\n")
    assert (load_recipe(str(path)).train.seed, with_options(str(path), seed=2, polish="kl").train.seed) == (7, 2)
    path.write_text(mine.to_yaml())
    assert load_recipe(str(path)) == mine
    assert load_recipe("default").train.seed == 0


def test_a_file_may_start_from_a_named_recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("recipe: shortgpt\ndrop: 3\npolish: kl\nrepair: refit\ntrain: {lr: 0.01}\n")
    mine = load_recipe(str(path))
    assert (mine.select, mine.drop, mine.train.lr) == ("lowest", "3", 0.01)
    assert mine.train.weight_decay == RECIPES["shortgpt"].recipe.train.weight_decay


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("sellect: span", "'select'"),
        ("train: {lrr: 1}", "train.lrr"),
        ("text: {lenght: 1}", "did you mean 'length'"),
        ("select: spam", "'span'"),
        ("guard: 0", "greater than or equal to 1"),
        ("recipe: shortgtp", "did you mean 'shortgpt'"),
        ("- a\n- b", "not the fields of a recipe"),
        ("a: [", "not YAML"),
        ("drop: [1]", "drop"),
    ],
)
def test_a_wrong_file_is_one_clear_line(content, said, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match="wrong.yaml") as error:
        load_recipe(str(path))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_every_problem_of_a_file_is_said_at_once(tmp_path):
    """Names of every table, values out of range, unknown keys; in one line, so that one correction is enough."""
    wrong = {
        "sellect: span": "unknown key 'sellect'; did you mean 'select'",
        "guard: 0": "guard: input should be greater",
        "drop: half": "--drop 'half' is not a budget",
        "by: cosin/rest": "did you mean 'cosine/rest'",
        "observers: [kca]": "did you mean 'cka'",
        "search: {metric: kk}": "unknown metric 'kk'",
        "repair: swep": "did you mean 'sweep'",
        "replace: swigl": "did you mean 'swiglu'",
        "train: {objective: hiden_mse, batch: true}": "did you mean 'hidden_mse'",
        "heal: {method: lorra, ranks: near, merge: apar, objective: next_tokens}": "did you mean 'lora'",
        "rounds: true": "rounds: holds true or false",
    }
    more = ["train.batch: holds true", "'near'", "did you mean 'apart'", "did you mean 'next_token'"]
    path = tmp_path / "wrong.yaml"
    path.write_text("\n".join(wrong))
    with pytest.raises(ValueError, match="15 problems: ") as error:
        load_recipe(str(path))
    said = str(error.value)
    assert "\n" not in said and [one for one in [*wrong.values(), *more] if one not in said] == []


def test_choices_that_do_not_go_together_are_said_at_once():
    with pytest.raises(ValueError, match="--rounds measures.*there is neither"):
        load_recipe("default", {"select": "greedy", "rounds": 2, "repair": "none", "polish": "kl"})


def test_an_adapter_that_stays_apart_is_no_end_of_a_run():
    with pytest.raises(ValueError, match="ends in a checkpoint"):
        load_recipe("default", {"heal": {"method": "lora", "merge": "apart"}})


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="did you mean 'uidl'.*llm-streamline"):
        load_recipe("uidll")


def test_merge_keeps_what_is_not_changed():
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 5}}) == {"a": {"b": 5, "c": 2}, "d": 3}


def test_protected_layers_count_from_both_ends():
    assert Recipe(protect=(0, -1, 3)).protected(8) == {0, 7, 3}
    with pytest.raises(ValueError, match="protect=8"):
        Recipe(protect=(8,)).protected(8)


def test_who_names_a_replacement_means_it_alone():
    """The repair of the recipe is for its own plain cut; with both named, both are done."""
    assert (load_recipe().replace, load_recipe().repair, load_recipe().training()) == ("none", "auto", None)
    assert load_recipe("default", {"replace": "layer"}).repair == "none"
    assert load_recipe("default", {"replace": "none"}).repair == "none"
    assert load_recipe("default", {"replace": "layer", "repair": "sweep"}).repair == "sweep"
    assert load_recipe("default", {"repair": "map"}).replace == "none"
    assert load_recipe("polished").training() is not None and load_recipe("polished").repair == "auto"


def test_high_trains_every_weight_behind_the_default_and_its_method_can_be_named():
    high, default = load_recipe("high"), load_recipe("default")
    same = {"name", "about", "papers", "heal"}
    assert high.model_dump(exclude=same) == default.model_dump(exclude=same)
    assert (high.heal.method, high.heal.lr, high.heal.objective) == ("full", "auto", None)
    assert load_recipe("high", {"heal": {"method": "lora"}}).heal.lr == "auto"
    assert load_recipe("high", {"heal": None}).heal is None


def test_who_names_a_polish_means_it_instead_of_the_stages_of_the_recipe():
    stages = load_recipe("polished").training().schedule()
    assert [stage.objective for stage in stages] == ["hidden_mse", "forward_kl"]
    (one,) = load_recipe("polished", {"polish": "kl"}).training().schedule()
    assert one.objective == "forward_kl"
    assert load_recipe("polished", {"polish": "none"}).training() is None
    with pytest.raises(ValueError, match="two objectives"):
        load_recipe("polished", {"polish": "kl", "train": {"stages": [{"objective": "cosine"}]}})


def test_a_scaled_stream_is_not_trained_towards_the_teachers():
    with pytest.raises(ValueError, match="'magnitude' scales the stream"):
        load_recipe("polished", {"repair": "magnitude"})


def test_what_starts_at_random_cannot_be_repaired():
    with pytest.raises(ValueError, match="'ffn' starts at random.*use --repair none"):
        load_recipe("default", {"replace": "ffn:form=paper", "repair": "sweep"})


@pytest.mark.parametrize("start", ["", "recipe: default\n"])
def test_the_same_holds_in_a_file(start, tmp_path):
    (tmp_path / "mine.yaml").write_text(start + "replace: layer\n")
    assert load_recipe(str(tmp_path / "mine.yaml")).repair == "none"
    (tmp_path / "mine.yaml").write_text(start + "drop: 2\n")
    assert load_recipe(str(tmp_path / "mine.yaml")).repair == "auto"


def test_a_key_at_the_wrong_place_is_shown_the_right_one_and_known_keys_are_listed_once(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: default\nsamples: 16\ntokens: 4000\nepochs: 1\ndevise: cpu\nout: x\n")
    with pytest.raises(ValueError) as told:
        load_recipe(str(file))
    said = str(told.value)
    assert "it stands below text, as in text: {samples: ...}" in said and "below text, search, fit, " in said
    assert "'out'; where a run goes" in said and said.count("known: ") == 1, said


def test_a_key_below_the_wrong_part_is_shown_the_right_one(tmp_path):
    file = tmp_path / "mine.yaml"
    wrong = ("heal: {length: 64}", "fit: {rank: 3}", "text: {seed: 3, drop: 2}", "train: {stages: [{batch: 3}]}")
    file.write_text("\n".join(("recipe: default", *wrong)))
    with pytest.raises(ValueError) as told:
        load_recipe(str(file))
    said = str(told.value)
    assert "'heal.length' here; it stands below text, as in text: {length: ...}" in said
    assert "'fit.rank' here; it stands below heal" in said
    assert "'text.seed' here; it stands at the top level, as in seed: ..." in said and "drop: ..." in said
    assert said.count(" here; ") == 4, "batch is a key of train, one level up"
