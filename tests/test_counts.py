"""Counts as people write them."""

from __future__ import annotations

import pytest

from shoal.cli import main
from shoal.recipes.recipe_file import load_recipe
from shoal.words.counts import parse_count


@pytest.mark.parametrize(
    ("written", "value"),
    [("20M", 20_000_000), ("32k", 32_000), ("1.5K", 1500), ("32,768", 32_768), ("1_000", 1000), (" 7 ", 7), ("2B", 2 * 10**9)],
)
def test_a_count_is_what_is_written(written: str, value: int) -> None:
    assert parse_count(written) == value


@pytest.mark.parametrize("written", ["0", "-3", "k", "1.5", "0.0001k", "3 G", "1e3", "", "20MM", "٣k"])
def test_what_is_not_a_count_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="number of tokens"):
        parse_count(written)


def test_the_command_refuses_in_our_words(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["shoal", "heal", "student", "--tokens", "20Q", "--out", "folder"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "'--tokens': '20Q' is not a number of tokens" in said and said.count("\n") == 1


def test_recipes_take_counts() -> None:
    recipe = load_recipe("default", {"fit": {"tokens": "48k"}, "heal": {"tokens": "20M"}, "train": {"tokens": "1_000"}})
    assert recipe.heal is not None
    assert (recipe.fit.tokens, recipe.train.tokens, recipe.heal.tokens) == (48_000, 1000, 20_000_000)
