"""Help screens: six verbs first, at most twelve options before the headings, every default stated, all from the tables."""

import re

import pytest
import typer

from shoal.cli import _meant
from shoal.cli.help import FIRST_SCREEN, heading_of
from shoal.cli.recipe_groups import EFFORTS
from shoal.cli.table import FIRST, OTHERS, app
from shoal.fit.fit_config import FEWEST_TOKENS, TOKENS_PER_INPUT
from shoal.recipes.table import RECIPES
from shoal.run.job import LONGEST_DEFAULT, MOST_DEFAULT, PARTS
from shoal.select.table import SELECTORS
from shoal.train.config import DEFAULT_TOKENS, MOST_LR, TrainConfig
from shoal.train.heal.config import DEFAULT_HEAL_TOKENS, MOST_BATCH, HealConfig
from shoal.train.heal.table import MOST_HEAL_LR, TRAINABLE

COMMANDS = typer.main.get_command(app).commands
VERBS = list(COMMANDS)


def options_of(verb):
    return [one for one in COMMANDS[verb].params if one.param_type_name == "option"]


def option(verb, flag):
    return next(one for one in options_of(verb) if flag in one.opts)


def default_of(verb, flag):
    """What the help says of an option that is not given."""
    one = option(verb, flag)
    context = typer.Context(COMMANDS[verb])
    said = re.findall(r"\[default: (.*)\]$", one.get_help_record(context)[1])
    return said[0] if said else None


def screen(shoal, monkeypatch, *args, columns=80):
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = shoal(*args, "--help")
    assert code == 0
    return out


def test_six_verbs_come_first():
    assert len(FIRST) == 6 and not set(FIRST) & set(OTHERS) and VERBS == [*FIRST, *OTHERS]


@pytest.mark.parametrize("verb", VERBS)
def test_at_most_twelve_options_come_before_the_headings(verb):
    first = [one for one in options_of(verb) if heading_of(one) == "Options"]
    assert len(first) + 1 <= FIRST_SCREEN, [one.name for one in first]  # The option --help is counted, too.


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_that_may_be_left_out_states_what_it_is_then(verb):
    """A flag is off; anything else has a value, in the one form that typer uses, too."""
    for one in options_of(verb):
        if not one.is_flag and not one.required:
            said = default_of(verb, one.opts[0])
            assert said and "recipe says" not in said and "method's" not in said, (one.name, said)
            assert "[default" not in said, (one.name, said)  # The default is said once.


@pytest.mark.parametrize("verb", ["run", "grow"])
def test_a_verb_with_a_recipe_says_that_what_the_recipe_states_comes_first(verb):
    """``shoal run --help`` said that a quarter goes, whatever the recipe says."""
    stated = {"run": ("--drop", "--params", "--size", "--layers", "--text", "--seed"), "grow": ("--to", "--init", "--heal")}
    for flag in stated[verb]:
        assert default_of(verb, flag).startswith("the recipe's, else "), flag
    assert default_of("run", "--drop").endswith(DEFAULT.drop) and default_of("run", "--device") == "cpu"
    assert default_of("compress", "--drop") == DEFAULT.drop, "the option itself is as it was"


@pytest.mark.parametrize("verb", VERBS)
def test_a_help_screen_says_everything_in_80_columns(verb, shoal, monkeypatch):
    """Nothing is cut off, no type of the program's language is shown, and no line is longer than the terminal."""
    shown = screen(shoal, monkeypatch, verb)
    described = re.sub(r"content, [.]{3}|A B \[C[.]{3}\]", "", shown.split("\n\n", 1)[1])  # These two are meant so.
    assert max(map(len, shown.splitlines())) <= 80 and "..." not in described
    assert not re.search(r"<(list|str|int|path)", shown), shown
    words = "".join(shown.split())
    for one in options_of(verb):
        if one.help and not getattr(one, "hidden", False):
            assert "".join(one.help.split("  [default")[0].split()) in words


def test_the_command_shows_both_lists_in_full(shoal, monkeypatch):
    shown = screen(shoal, monkeypatch)
    first, others = shown.split("Most needed:")[1].split("More verbs:")
    assert all(f"\n  {name} " in first for name in FIRST) and all(f"\n  {name} " in others for name in OTHERS)
    assert "..." not in first + others and max(map(len, shown.splitlines())) <= 80


def test_what_the_repair_of_candidates_takes_is_said_and_how_to_do_without(shoal, monkeypatch):
    for verb in ("plan", "compress"):
        shown = " ".join(screen(shoal, monkeypatch, verb).split())
        assert "four by default" in shown and RECIPES["default"].recipe.guard == 4
        assert "on this machine" in shown and "--guard 1 none is" in shown
    assert RECIPES["low"].recipe.guard == 2  # "--effort low compares two"


DEFAULT = RECIPES["default"].recipe
USUAL = HealConfig()
FROM_TABLES = {
    ("compress", "--drop"): DEFAULT.drop,
    ("compress", "--select"): DEFAULT.select,
    ("compress", "--by"): DEFAULT.by,
    ("compress", "--metric"): DEFAULT.search.metric,
    ("compress", "--guard"): DEFAULT.guard,
    ("compress", "--rounds"): DEFAULT.rounds,
    ("compress", "--protect"): ",".join(map(str, DEFAULT.protect)),
    ("compress", "--replace"): DEFAULT.replace,
    ("compress", "--repair"): f"{DEFAULT.repair}, or none with --replace",
    ("compress", "--recipe"): "default",
    ("compress", "--effort"): "default",
    ("compress", "--seed"): DEFAULT.seed,
    ("compress", "--samples"): f"{MOST_DEFAULT['calibration']}, or {PARTS['calibration'] * DEFAULT.text.tokens:,} tokens",
    ("eval", "--samples"): f"{MOST_DEFAULT['evaluation']}, or {PARTS['evaluation'] * DEFAULT.text.tokens:,} tokens",
    ("compress", "--length"): f"the model's window, at most {LONGEST_DEFAULT:,}",
    ("compress", "--fit-tokens"): f"{TOKENS_PER_INPUT} per input of the widest map, at least {FEWEST_TOKENS:,}",
    ("compress", "--train-tokens"): f"{DEFAULT_TOKENS:,}, ",
    ("compress", "--heal-tokens"): f"{DEFAULT.heal.tokens:,} where nothing asks for it, else {DEFAULT_HEAL_TOKENS:,}, ",
    ("heal", "--tokens"): f"{DEFAULT_HEAL_TOKENS:,}, ",
    ("heal", "--method"): USUAL.method,
    ("heal", "--rank"): USUAL.rank,
    ("heal", "--layers"): USUAL.layers,
    ("heal", "--batch"): MOST_BATCH,
    ("heal", "--micro-batch"): USUAL.micro_batch,
    ("heal", "--merge"): USUAL.merge,
    ("heal", "--most-lost"): USUAL.most_lost,
    ("heal", "--dropout"): f"{USUAL.dropout:g}",
    ("heal", "--warmup"): USUAL.warmup,
    ("heal", "--ranks"): USUAL.ranks,
}


@pytest.mark.parametrize("which", FROM_TABLES, ids=" ".join)
def test_a_default_is_that_of_the_tables(which):
    assert default_of(*which).startswith(str(FROM_TABLES[which]))


def test_the_rates_that_are_said_are_those_that_are_used():
    said = default_of("compress", "--lr")
    times, most = (float(found) for found in re.fullmatch(r"(\S+) / hidden size, at most (\S+)", said).groups())
    stage = next(iter(TrainConfig().schedule()))
    for width in (64, 576, 4096):
        assert stage.rates(width)[0] == pytest.approx(min(most, times / width), rel=5e-3) and most == MOST_LR
    said = default_of("heal", "--lr")
    assert said.startswith(f"{TRAINABLE['lora'].rate:.0e}".replace("e-0", "e-")) and said.endswith(f"at most {MOST_HEAL_LR:g}")
    for name, one in TRAINABLE.items():
        rate = f"{one.rate:.0e}".replace("e-0", "e-")
        assert f"{rate} for {name}" in said or one.rate == TRAINABLE["lora"].rate


def test_what_a_search_runs_is_said_for_a_size_that_people_know():
    said = default_of("compress", "--evaluations")
    for name, one in SELECTORS.items():
        if one.n_evaluations is not None and "values" in one.reads:  # merging takes no limit
            assert f"{name} {one.n_evaluations(32, 8):,}" in said


def test_efforts_are_recipes():
    assert set(EFFORTS) <= set(RECIPES)


@pytest.mark.parametrize(
    ("more", "is_said"),
    [((), True), pytest.param(("--guard", 1), False, marks=pytest.mark.slow), (("--repair", "none"), False)],
)
def test_plan_says_what_it_repairs_and_how_long_it_takes(more, is_said, small, shoal):
    text = ("--text", small["text"], "--length", 16, "--samples", 8)
    fit = () if "--repair" in more else ("--fit-tokens", 500)
    code, out, err = shoal("plan", small["model"], "--out", "run", "--drop", 2, *text, *fit, *more)
    assert code == 0, err
    assert "Takes about" in out
    assert ("Candidates: 4 are repaired" in out) == is_said


def test_the_help_of_a_verb_promises_no_time_and_says_that_the_default_heals():
    """``38 s`` was that of another default, on another machine."""
    for verb, command in COMMANDS.items():
        assert not re.search(r"\d (s|min|minutes|hours)\b", command.help), verb
    assert RECIPES["default"].recipe.heal is not None and "--heal none" in COMMANDS["compress"].help


@pytest.mark.parametrize("verb", ["compress", "cut", "verify"])
def test_what_is_missing_says_what_it_is_for(verb):
    with pytest.raises(Exception) as told:
        COMMANDS[verb].main(["model"], standalone_mode=False)
    param = told.value.param
    assert param.required and _meant(told.value).strip(" .") and _meant(told.value).strip(" .") in param.help
