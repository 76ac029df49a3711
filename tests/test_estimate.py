"""A run says how long it will take: counts follow the recipe, and a time that is given chooses the most that fits."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
from toys import TOYS

from shoal.fit.table import REPAIRS
from shoal.recipes.recipe_file import load_recipe
from shoal.run import time_budget
from shoal.run.estimate import Estimate, estimate, minutes
from shoal.run.optional_healing import FEWEST_HEALED
from shoal.run.pace import Pace, StageRates
from shoal.run.time_budget import ROUND, SAFETY, ladder
from shoal.train.heal.config import SHORT_HEAL_TOKENS, HealConfig
from shoal.words.durations import parse_time

RATES = StageRates(layers=1e-3, compared=5e-4, products=1e11, solves=2e10)


@dataclass(frozen=True)
class World:
    """What an estimate reads of the inputs of a job."""

    recipe: object
    length: int = 1024
    widest_map: int = 2304
    n_training: int = 10**6
    not_healed: str = ""
    workers: object = field(default_factory=lambda: SimpleNamespace(size=1))
    view: object = field(
        default_factory=lambda: SimpleNamespace(n_layers=30, hidden_size=576, config=SimpleNamespace(intermediate_size=1536))
    )

    def training_for(self, tokens):
        return SimpleNamespace(n_tokens=self.n_training)


def world(**changes):
    return World(load_recipe("default", {"model": "m", "heal": None, **changes}))


SPARE = HealConfig()


def in_time(inputs, rates, given, *, begun=None, spare=SPARE):
    return time_budget.in_time(inputs, rates, given, begun=begun, spare=spare)


def seconds(**changes):
    return lasts(world(**changes).recipe)


def lasts(recipe):
    return estimate(Pace(World(recipe), RATES)).seconds


def test_more_work_takes_longer():
    assert seconds(repair="none", guard=1) < seconds(repair="refit", guard=1) < seconds(guard=1) < seconds(guard=2) < seconds()
    assert seconds(fit={"tokens": 10_000}) < seconds(fit={"tokens": 100_000})
    assert seconds(text={"samples": 8}) < seconds(text={"samples": 64})
    assert seconds() < seconds(replace="layer", repair="sweep", polish="hidden", train={"tokens": 100_000})
    assert seconds() < seconds(heal={"tokens": 10_000}) < seconds(heal={"tokens": 100_000})
    assert seconds(heal={"tokens": 100_000, "lr": "auto"}) > seconds(heal={"tokens": 100_000})


def test_a_search_takes_as_long_as_the_sets_it_runs():
    def search(**changes):
        return estimate(Pace(world(select="greedy", guard=1, **changes), RATES)).stages["search"]

    assert search(search={"evaluations": 10}) == pytest.approx(search(search={"evaluations": 20}) / 2)
    assert search(search={"tokens": 4096}) == pytest.approx(search() / 4)
    assert search(search={"metric": "hidden_cosine"}) == pytest.approx(search() / 2), "no head is run"


@pytest.mark.parametrize("select", ["laco", "sliding"])
def test_merging_takes_as_long_as_the_rows_it_tries(select):
    """It was left out; the number of rows is played on a model whose layers cost alike."""
    found = estimate(
        Pace(world(select=select, repair="none", search={"metric": "hidden_cosine", "tokens": 4096}), RATES)
    ).stages
    assert list(found) == ["search", "evaluation"]
    n_rows = found["search"] / (4096 * RATES.layers / 2)
    assert 8 <= n_rows <= 30 * 13, "13 thresholds ask for a row per layer at most"


def test_zeros_take_as_long_as_what_is_read_and_solved_for_them():
    def zeros(method, **changes):
        found = estimate(Pace(world(guard=1, prune={"method": method, **changes}), RATES)).stages
        assert list(found) == ["scan", "repair", "prune", "evaluation"]
        return found["prune"]

    assert zeros("magnitude") == 0 < zeros("wanda") < zeros("sparsegpt")
    assert zeros("wanda", allocate="owl") == 2 * zeros("wanda")
    assert zeros("wanda", pattern="2:4") == zeros("wanda")


def test_two_processes_share_the_text():
    one, two = world(), World(world().recipe, workers=SimpleNamespace(size=2))
    assert estimate(Pace(two, RATES)).stages["scan"] == estimate(Pace(one, RATES)).stages["scan"] / 2


def test_stages_are_those_that_run():
    assert list(estimate(Pace(world(repair="none", guard=1), RATES)).stages) == ["scan", "evaluation"]
    searched = world(select="greedy", repair="none", guard=1)
    assert list(estimate(Pace(searched, RATES)).stages) == ["search", "evaluation"]
    assert list(estimate(Pace(world(), RATES)).stages) == ["scan", "search", "tournament", "repair", "evaluation"]
    one_shot = estimate(Pace(world(guard=2), RATES)).stages["search"]  # Two candidates do not warrant a greedy search.
    assert one_shot < estimate(Pace(world(), RATES)).stages["search"] / 2
    assert "search" not in estimate(Pace(world(guard=1), RATES)).stages


def test_a_stage_says_how_long_it_lasts(monkeypatch):
    """The estimate reads the table of stages, and asks only those that the recipe has."""
    table, toy = TOYS["stage"]
    monkeypatch.setitem(table, "toy", toy)
    assert estimate(Pace(world(), RATES)).stages["playing"] == 1000 * RATES.layers
    monkeypatch.setitem(table, "toy", replace(toy, is_asked=lambda recipe: recipe.guard == 1))
    assert "playing" not in estimate(Pace(world(), RATES)).stages
    assert list(estimate(Pace(world(guard=1), RATES), [table["toy"]]).stages) == ["playing"]


def test_it_is_said_in_minutes():
    assert str(Estimate(stages={"scan": 30.0, "repair": 600.0})) == "about 10 min (scan 0.5, repair 10)"
    assert (
        str(Estimate(stages={"scan": 0.2, "repair": 4.1})) == "about 4 s"
        and str(Estimate(stages={"scan": 0.01})) == "about 1 s"
    )
    assert [minutes(s) for s in (3, 60, 600, 7800)] == ["0.1", "1.0", "10", "130"]


@pytest.mark.parametrize(("text", "expected"), [("90s", 90), ("10m", 600), ("10 min", 600), ("1.5h", 5400)])
def test_times(text, expected):
    assert parse_time(text) == expected


@pytest.mark.parametrize("text", ["", "10", "m", "-5m", "0m", "1d"])
def test_no_times(text):
    with pytest.raises(ValueError, match="such as 10m"):
        parse_time(text)


@pytest.mark.parametrize("heals", [False, True])
def test_the_most_that_fits_is_taken_and_more_time_never_buys_less(heals):
    """The longest repair that leaves time for a first healing; where none does, the longest repair."""
    steps = ladder(world().recipe)
    cost = [lasts(step) for step in steps]
    first = lasts(world(heal={"tokens": SHORT_HEAL_TOKENS}).recipe) - lasts(world().recipe) if heals else 0
    taken = []
    for given in (60, 300, 900, 1800, 3600, 36_000):
        recipe = in_time(world(), RATES, given, spare=SPARE if heals else None)[0].recipe
        closed, planned = lasts(recipe.model_copy(update={"heal": None})), SAFETY * given
        fitting = [one for one in cost if one + first <= planned] or [one for one in cost if one <= planned] or [min(cost)]
        assert closed == max(fitting)
        assert lasts(recipe) <= planned or closed == min(cost)
        taken.append((closed, lasts(recipe)))
    assert [whole for _, whole in taken] == sorted(whole for _, whole in taken) and taken[0][0] == min(cost)
    assert taken[-1][0] == max(cost) and (taken[-1][1] > max(cost)) is heals


@pytest.mark.parametrize("asked", [None, {"method": "full", "lr": "auto"}])
def test_the_time_that_is_left_heals_and_no_more(asked):
    """LoRA on logits where no healing is named, else the one that is; the tokens are the most that fit, to a round number."""
    given = 7200
    recipe = in_time(world(heal=asked), RATES, given)[0].recipe
    assert recipe.heal.method == ("lora" if asked is None else "full") and recipe.heal.tokens % ROUND == 0
    more = recipe.model_copy(update={"heal": recipe.heal.model_copy(update={"tokens": recipe.heal.tokens + ROUND})})
    assert lasts(recipe) <= SAFETY * given < lasts(more)


def test_a_healing_is_bounded_by_what_was_asked_for_and_by_the_text():
    assert in_time(world(), RATES, 36_000, spare=None)[0].recipe.heal is None
    assert in_time(world(heal={"tokens": 9000}), RATES, 36_000)[0].recipe.heal.tokens == 9000
    assert in_time(World(world().recipe, n_training=50_000), RATES, 36_000)[0].recipe.heal.tokens == 48 * ROUND
    assert in_time(World(world().recipe, n_training=5000), RATES, 36_000)[0].recipe.heal is None
    assert in_time(world(heal={}), RATES, 1)[0].recipe.heal.tokens == FEWEST_HEALED  # It was asked for.
    assert in_time(World(world(heal={}).recipe, n_training=5000), RATES, 36_000)[0].recipe.heal.tokens is None  # All of it.
    assert in_time(world(prune="wanda:sparsity=50%"), RATES, 36_000)[0].recipe.heal.keep_zeros


OPTIONAL = HealConfig(method="full", lr=3e-5, tokens=20_000, optional=True, seed=3)


def test_an_optional_healing_of_a_recipe_is_the_one_that_time_heals_by():
    """Method and rate of the file were lost: LoRA came in their place."""
    chosen, said = in_time(world(), RATES, 36_000, spare=OPTIONAL)
    longer = chosen.recipe.heal
    assert longer == OPTIONAL.model_copy(update={"tokens": longer.tokens, "optional": False}) and longer.tokens > 20_000
    assert "then full on" in said and not chosen.not_healed


@pytest.mark.parametrize(("n_training", "given", "why"), [(5000, 36_000, "the text has less"), (10**6, 60, "the time that is")])
def test_an_optional_healing_that_time_leaves_out_has_its_reason(n_training, given, why, tmp_path):
    inputs = World(world().recipe, n_training=n_training)
    chosen, _ = in_time(inputs, RATES, given, spare=OPTIONAL)
    assert chosen.recipe.heal is None and chosen.not_healed.startswith(why)
    assert not in_time(inputs, RATES, given)[0].not_healed, "nobody missed it"
    begun = tmp_path / "recipe.yaml"
    begun.write_text(chosen.recipe.to_yaml())
    (tmp_path / "not_healed.txt").write_text(chosen.not_healed)
    again, _ = in_time(inputs, RATES, given, begun=begun, spare=OPTIONAL)
    assert again.not_healed == f"this run began without it: {chosen.not_healed}"


def test_a_repair_says_what_time_may_be_spent_on_it(monkeypatch):
    toy = replace(REPAIRS.named("map"), name="toy", efforts=((3, 777),))
    monkeypatch.setitem(REPAIRS, "toy", toy)
    for name in [one for one in REPAIRS if one != "toy"]:
        monkeypatch.setitem(REPAIRS, name, replace(REPAIRS[name], efforts=()))
    monkeypatch.setitem(REPAIRS, "auto", replace(REPAIRS["auto"], efforts=((2, 10**9),)))
    chosen, said = in_time(world(), RATES, 900)
    assert (chosen.recipe.repair, chosen.recipe.guard, chosen.recipe.fit.tokens) == ("toy", 3, 777) and "repair toy" in said


def test_too_little_time_is_said_and_the_least_is_done():
    chosen, said = in_time(world(), RATES, 1)
    assert chosen.recipe.fit.tokens == 8_000 and "min are expected" in said


@pytest.mark.parametrize("given", [900, 36_000])
@pytest.mark.parametrize("asked", [None, {"method": "full"}, {"tokens": 20_000}])
def test_a_run_that_goes_on_keeps_what_it_chose(tmp_path, given, asked):
    first, said = in_time(world(heal=asked), RATES, given)
    begun = tmp_path / "recipe.yaml"
    begun.write_text(first.recipe.to_yaml())
    slow = RATES.model_copy(update={"layers": 1.0})
    again, repeated = in_time(world(heal=asked), slow, given, begun=begun)
    assert again.recipe == first.recipe and repeated == f"as this run began: {said}"
    for other in (world(drop="8", heal=asked), world(heal={"method": "norms"}), world(heal={"tokens": 20_001})):
        if first.recipe.heal is not None or other.recipe.heal is None:
            with pytest.raises(ValueError, match="other options"):
                in_time(other, RATES, given, begun=begun)


@pytest.mark.parametrize("name", [name for name, one in REPAIRS.items() if one.efforts])
@pytest.mark.parametrize("given", [60, 900, 36_000])
def test_what_is_asked_for_is_kept_and_the_rest_is_chosen(name, given):
    """``--repair sweep --time 10m`` is a sweep; more time buys more of it."""
    asked = world(repair=name, guard=3)
    chosen, said = in_time(asked, RATES, given)
    assert chosen.recipe.repair == name or name == "auto"
    assert chosen.recipe.guard <= 3 and f"{chosen.recipe.guard} candidates" in said
    spent = lasts(chosen.recipe)
    assert spent <= SAFETY * given or "the least there is" in said
    tokens = in_time(world(repair=name, fit={"tokens": 5000}), RATES, given)[0].recipe.fit.tokens
    assert tokens == 5000


def test_no_repair_is_one_that_another_comes_to_and_told_twice():
    every = [(one.repair, one.guard, one.fit.tokens) for one in ladder(world().recipe)]
    assert {name for name, *_ in every} == {"auto", "refit"} and len(every) == len(set(every))


@pytest.mark.parametrize("changes", [{"repair": "none"}, {"repair": "bias"}, {"replace": "layer", "repair": "sweep"}])
def test_a_time_needs_a_repair_or_a_healing_that_it_can_be_spent_on(changes):
    with pytest.raises(ValueError, match=r"--time chooses .* \(auto, refit, sweep\) or a healing, and --re"):
        in_time(world(**changes), RATES, 900)
    chosen, said = in_time(world(**changes, heal={}), RATES, 36_000)
    assert chosen.recipe.heal.tokens > FEWEST_HEALED and "then lora on" in said
