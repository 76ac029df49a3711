"""Racing spends less than comparing everybody in full, loses no clear winner, and repairs nobody twice after a kill."""

import random
from types import SimpleNamespace

import pytest

from shoal.edits.drop import Drop
from shoal.edits.plan import Candidate
from shoal.fit.fit_config import FitConfig
from shoal.fit.table import REPAIRS
from shoal.recipes.recipe import Recipe
from shoal.run import candidate_repair
from shoal.run.candidate_repair import FEWEST_FOR_RANKING, RANKING_RIDGE, ranking_repairs, ranking_sizes
from shoal.run.race import Rung, Standings, race, ranked, still_in

RUNGS = (Rung(1000, lambda one, kept: None), Rung(4000, lambda one, kept: None))


def candidate(layer, kl=None, stderr=0.01):
    return Candidate(edits=(Drop(indices=(layer,)),), proposed_by=("a",), kl=kl, kl_stderr=stderr)


class Track:
    """Measures the true KL with noise that falls as the text grows, and counts the tokens it took."""

    def __init__(self, truth, *, noise=0.0, seed=0):
        self.truth, self.noise, self.draw, self.runs = truth, noise, random.Random(seed), []

    def __call__(self, one, rung):
        error = self.noise * (1000 / rung.n_tokens) ** 0.5
        self.runs.append((one.layers[0], rung.n_tokens))
        kl = self.truth[one.layers[0]] + self.draw.gauss(0, error)
        return one.model_copy(update={"kl": kl, "kl_stderr": error, "repaired_on": rung.n_tokens})


def layers(found):
    return [one.layers[0] for one in found]


def test_everybody_runs_the_first_rung_and_half_the_last():
    track = Track({1: 0.4, 2: 0.2, 3: 0.3, 4: 0.1}, noise=1.0)
    track.noise, track.draw = 0.0, random.Random(0)
    found = race(
        [candidate(layer) for layer in (1, 2, 3, 4)],
        RUNGS,
        lambda one, rung: track(one, rung).model_copy(update={"kl_stderr": 1.0}),
    )
    assert layers(found) == [4, 2, 3, 1]
    assert track.runs == [(1, 1000), (2, 1000), (3, 1000), (4, 1000), (4, 4000), (2, 4000)]
    assert [one.repaired_on for one in found] == [4000, 4000, 1000, 1000]


def test_a_clear_winner_ends_the_race():
    track = Track({1: 0.4, 2: 0.1, 3: 0.4})
    found = race([candidate(layer) for layer in (1, 2, 3)], RUNGS, track)
    assert layers(found)[0] == 2 and len(found) == 3 and track.runs == [(1, 1000), (2, 1000), (3, 1000)]


def test_two_candidates_meet_on_the_whole_text_alone():
    track = Track({1: 0.4, 2: 0.1})
    assert layers(race([candidate(1), candidate(2)], RUNGS, track)) == [2, 1]
    assert track.runs == [(1, 4000), (2, 4000)]


@pytest.mark.parametrize("seed", range(20))
def test_noise_within_its_errors_does_not_throw_out_the_best(seed):
    """Differences of two standard errors of the first rung: the best of four is among the two that go on or not behind them."""
    track = Track({1: 0.10, 2: 0.14, 3: 0.18, 4: 0.22}, noise=0.02, seed=seed)
    found = race([candidate(layer) for layer in (4, 3, 2, 1)], RUNGS, track)
    assert track.truth[layers(found)[0]] <= 0.14, "the first or a close second"
    assert sum(n for _, n in track.runs) <= 4 * 1000 + 2 * 4000


def test_what_cannot_be_measured_never_stays_in_the_race():
    found = ranked([candidate(1, float("nan")), candidate(2, 0.3), candidate(3, float("inf"))])
    assert layers(found)[0] == 2 and still_in(found) == 1
    assert still_in(ranked([candidate(1, 0.2, stderr=None), candidate(2, 0.2, stderr=None)])) == 2


def test_a_race_that_was_killed_goes_on_where_it_was(tmp_path):
    truth = {1: 0.4, 2: 0.2, 3: 0.3, 4: 0.1}
    every = [candidate(layer) for layer in truth]

    def killed_after(n, track):
        def measure(one, rung):
            def once(kept):
                if len(track.runs) == n:
                    raise KeyboardInterrupt
                return track(one, rung)

            return Standings(tmp_path, "key").once(one, rung, once)

        return measure

    first, second, whole = Track(truth), Track(truth), Track(truth)
    with pytest.raises(KeyboardInterrupt):
        race(every, RUNGS, killed_after(3, first))
    found = race(every, RUNGS, killed_after(99, second))
    assert found == race(every, RUNGS, whole)
    assert first.runs + second.runs == whole.runs, "nobody was measured twice"
    other = Track(truth)
    race(every, RUNGS, lambda one, rung: Standings(tmp_path, "another").once(one, rung, lambda kept: other(one, rung)))
    assert other.runs == whole.runs, "figures of other inputs are not taken"
    Standings(tmp_path, "key").clear()
    assert not tmp_path.exists()


@pytest.mark.parametrize("name", list(REPAIRS))
@pytest.mark.parametrize("n_rounds", [0, 1, 2, 3])
def test_the_repair_of_the_recipe_decides_the_last_round(name, n_rounds):
    """At 50 % of SmolLM2 refits alone would have chosen other layers than those that are best behind the sweep."""
    recipe = Recipe(repair=name, replace="hadamard" if REPAIRS[name].sets_replacements else "none", polish="none")
    found = ranking_repairs(recipe, n_rounds)
    assert len(found) == n_rounds and found[-1:] == [name] * (n_rounds > 0)
    assert set(found[:-1]) <= {REPAIRS[name].ranks_by or name}


def test_a_round_has_at_least_its_tokens_whatever_the_length_of_a_sample():
    for length in (16, 256, 1024, 8192):
        sizes = ranking_sizes(96_000 // length, length)
        assert sizes == sorted(sizes)
        assert sizes[-1] == 96_000 // length // 4 or sizes[-1] * length >= FEWEST_FOR_RANKING
        assert all(n * length >= min(FEWEST_FOR_RANKING, 96_000 // length * length) for n in sizes)
        assert all(2 * a <= b for a, b in zip(sizes, sizes[1:], strict=False))


@pytest.mark.parametrize(("given", "used"), [(None, RANKING_RIDGE), (0.0, 0.0), (0.5, 0.5)])
def test_a_ridge_that_is_given_holds_between_the_rounds_of_a_search(given, used, monkeypatch):
    """Zero is a ridge. What the values of a search rest on says which one it was."""
    monkeypatch.setattr(candidate_repair, "ranking_texts", lambda inputs: [SimpleNamespace(data_hash="hash", n_samples=1)])
    monkeypatch.setattr(candidate_repair, "model_size", lambda view: None)
    inputs = SimpleNamespace(recipe=Recipe(fit=FitConfig(ridge=given)), view=None)
    assert f"ridge={used}," in candidate_repair.refit_without(inputs)[1]
