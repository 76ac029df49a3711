"""Selectors equal brute force over every set of layers, in order, with protected layers, ties and refusals."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from families import VOCAB, tiny_model

from shoal.edits.replace.layer import LayerReplacement
from shoal.engine.passes import run_pass
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.measure.gram import GramObserver
from shoal.measure.set_function import CountedSets
from shoal.select.model_size import put_back_of
from shoal.select.request import Evidence, Request, change_costs, most_layers
from shoal.select.rounds import compact, in_rounds, rescanner, shares
from shoal.select.span import plain_span_by
from shoal.select.table import SELECTORS
from shoal.words.types import Batch, Span, SpanTable, Unit, spans_of

L = 8

# The others refit or merge while they search, which takes a model: test_select_by_running.py and test_merge.py have them.
OF_TABLES_AND_SETS = [name for name, one in SELECTORS.items() if not one.refits and "weights" not in one.reads]


def table(seed=0, *, n_layers=L, criterion="angular", tokens="rest", higher=False, integers=False):
    rng = np.random.default_rng(seed)
    shape = (n_layers + 1, n_layers + 1)
    values = rng.integers(0, 3, shape).astype(float) if integers else rng.random(shape)
    values[np.tril_indices(n_layers + 1)] = np.nan
    return SpanTable(criterion, tokens, values, np.zeros_like(values), "unit", higher, 3)


def wanted(n, **changes):
    changes.pop("refuse", None)
    return Request(**{"n_layers": L, "n": n, "protected": frozenset({0, L - 1}), "by": "angular/rest", **changes})


def evidence(*tables, refuse=None, **_):
    return Evidence({one.name: one for one in tables}, *([refuse] if refuse else []))


def picks(selector, one, want, **wish):
    return list(SELECTORS[selector].propose(replace(evidence(one, **wish), value=squares(want)), want))


def squares(request):
    """A set function whose best sets are known: the sum of the squares of what is off."""
    units = [Unit("layer", layer) for layer in request.removable]
    return CountedSets(lambda sets: [float(sum(unit.index**2 for unit in one)) for one in sets], units)


def score(candidate):
    (found,) = candidate.scores.values()
    return found


def sets_of(n, want, **wish):
    seen = evidence(**wish)
    sets = itertools.combinations(range(want.n_layers), n)
    return [layers for layers in sets if seen.reason_against(want, layers) is None]


def deeper(layers):
    return tuple(-layer for layer in layers)


def needs_odd_layers(structure):
    return None if len([slot for slot in structure if slot.like % 2]) >= 3 else "needs three odd layers"


ODD = {"refuse": needs_odd_layers}
WISHES = [{}, {"protected": frozenset()}, {"protected": frozenset({0, 4, 7})}, {**ODD}]


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("n", range(1, 7))
@pytest.mark.parametrize(("criterion", "higher"), [("angular", False), ("cosine", True)])
@pytest.mark.parametrize("integers", [False, True])
def test_spans_are_ranked_like_brute_force(wish, n, criterion, higher, integers):
    one = table(n, criterion=criterion, higher=higher, integers=integers)
    want = wanted(n, by=one.name, **wish)
    runs = [layers for layers in sets_of(n, want, **wish) if len(spans_of(layers)) == 1]
    expected = sorted(runs, key=lambda run: (one.cost(Span(run[0], run[-1] + 1)), deeper(run)))
    got = picks("span", one, want, **wish)
    assert [pick.layers for pick in got] == expected
    assert all(score(pick) == one[Span(pick.layers[0], pick.layers[-1] + 1)] for pick in got)


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("n", range(1, 7))
@pytest.mark.parametrize(("criterion", "higher"), [("angular", False), ("cosine", True)])
def test_lowest_layers_are_ranked_like_brute_force(wish, n, criterion, higher):
    one = table(n, criterion=criterion, higher=higher)
    want = wanted(n, by=one.name, **wish)

    def cost(layers):
        return sum(one.cost(Span(layer, layer + 1)) for layer in layers)

    expected = sorted(sets_of(n, want, **wish), key=cost)
    got = picks("lowest", one, want, **wish)
    assert [pick.layers for pick in got] == expected
    assert all(score(pick) == pytest.approx(sum(one[Span(i, i + 1)] for i in pick.layers)) for pick in got)


@pytest.mark.parametrize("n", range(1, 7))
def test_lowest_layers_are_the_n_lowest_and_ties_go_deeper(n):
    one = table(3, integers=True)
    free = range(1, L - 1)
    by_hand = sorted(free, key=lambda layer: (one[Span(layer, layer + 1)], -layer))[:n]
    assert picks("lowest", one, wanted(n))[0].layers == tuple(sorted(by_hand))


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("max_spans", [1, 2, 3, 4])
@pytest.mark.parametrize("n", range(1, 7))
@pytest.mark.parametrize(
    ("criterion", "higher", "integers"), [("angular", False, False), ("cosine", True, False), ("angular", False, True)]
)
def test_disjoint_spans_equal_brute_force(wish, max_spans, n, criterion, higher, integers):
    one = table(n + 10, criterion=criterion, higher=higher, integers=integers)
    want = wanted(n, by=one.name, max_spans=max_spans, **wish)
    costs = change_costs(one)

    def key(layers):
        runs = spans_of(layers)
        return sum(float(costs[run.start, run.stop]) for run in runs), len(runs), deeper(layers)

    expected = sorted((layers for layers in sets_of(n, want, **wish) if len(spans_of(layers)) <= max_spans), key=key)
    got = picks("disjoint", one, want, **wish)
    # The dynamic programme works out the 32 best before refusals.
    assert [pick.layers for pick in got] == expected[: len(got)] and len(got) >= min(len(expected), 1)
    assert all(score(pick) == pytest.approx(key(pick.layers)[0]) for pick in got)
    assert wish or len(got) == min(len(expected), 32)


def test_one_span_of_the_disjoint_selector_is_the_span_selector():
    one = table(5)
    for n in range(1, 7):
        assert picks("disjoint", one, wanted(n, max_spans=1))[0].edits == picks("span", one, wanted(n))[0].edits


def test_a_large_model_takes_no_time():
    """80 layers, 20 out, 5 spans: 10^18 sets."""
    one = table(6, n_layers=80)
    best = next(SELECTORS["disjoint"].propose(evidence(one), wanted(20, n_layers=80, max_spans=5)))
    assert len(best.layers) == 20 and len(spans_of(best.layers)) <= 5


def test_scores_without_a_meaning_of_no_change_cannot_be_summed():
    one = table(criterion="dot", higher=True)
    with pytest.raises(ValueError, match="no change"):
        picks("disjoint", one, wanted(2, by=one.name))


@pytest.mark.parametrize("n_layers", [4, 12, 32])
def test_deepest_but_the_last_0_based(n_layers):
    """UIDL counts from 1: '(L-n) to (L-1)' is L-1-n .. L-2 here, and the last layer stays."""
    for n in range(1, n_layers - 1):
        want = wanted(n, n_layers=n_layers, protected=frozenset())
        assert next(SELECTORS["deepest"].propose(Evidence(), want)).layers == tuple(range(n_layers - 1 - n, n_layers - 1))
    shifted = next(SELECTORS["deepest"].propose(Evidence(), wanted(1, n_layers=n_layers, protected=frozenset({n_layers - 2}))))
    assert shifted.layers == (n_layers - 3,)


def test_a_replacement_that_inherits_is_scored_over_the_layer_it_inherits():
    """LLM-Streamline compares n + 1 layers and puts one back."""
    one = table(7)
    want = wanted(3, put_back=put_back_of(LayerReplacement(), 32), protected=frozenset())
    best = min((Span(s, s + 4) for s in range(L - 3)), key=lambda span: one[span])
    first = picks("span", one, want)[0]
    assert first.layers == tuple(best.layers)[1:] and score(first) == one[best]
    plain = next(plain_span_by(evidence(one), want))
    assert score(plain) == min(one[Span(s, s + 3)] for s in range(1, L - 2))
    assert 0 not in want.removable


def test_unscored_spans_are_never_picked():
    one = table(8)
    one.values[2, 4] = np.nan
    one.values[3, 4] = np.nan
    assert (2, 3) not in [pick.layers for pick in picks("span", one, wanted(2))]
    assert all(3 not in pick.layers for pick in picks("lowest", one, wanted(2)))
    assert all(Span(2, 4) not in spans_of(pick.layers) for pick in picks("disjoint", one, wanted(4)))


@pytest.mark.parametrize("selector", OF_TABLES_AND_SETS)
def test_too_many_layers_give_nothing(selector):
    want = wanted(7, protected=frozenset({0, 7}))
    assert picks(selector, table(), want) == []
    assert most_layers(SELECTORS[selector], want) == 6
    for n in (1, 6):
        assert len(picks(selector, table(), wanted(n))[0].layers) == n


def test_most_layers_of_a_contiguous_selector_is_the_longest_free_run():
    want = wanted(1, protected=frozenset({2}))
    assert most_layers(SELECTORS["span"], want) == 5
    assert most_layers(SELECTORS["lowest"], want) == 7
    assert most_layers(SELECTORS["lowest"], wanted(1, protected=frozenset())) == 7, "one layer always stays"


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="did you mean 'disjoint'"):
        SELECTORS.named("disjoin")
    with pytest.raises(ValueError, match="angular/rest"):
        picks("span", table(), wanted(2, by="angular/lst"))
    with pytest.raises(ValueError, match="scan this model"):
        picks("span", table(n_layers=5), wanted(2))


# -- rounds ----------------------------------------------------------------------------------------------------------------


def test_rounds_share_the_layers():
    assert shares(8, 3) == [3, 3, 2] and shares(5, 5) == [1] * 5 and shares(4, 1) == [4]
    with pytest.raises(ValueError, match="rounds=4 needs 1..3"):
        in_rounds(SELECTORS["span"], Evidence(), wanted(3, n_rounds=4), rescan=lambda student: {})


def test_compact_table_is_that_of_the_model_without_the_layers():
    one = table(2)
    small = compact(one, [0, 1, 4, 7])
    assert small.n_layers == 4
    assert small[Span(1, 3)] == one[Span(1, 7)] and small[Span(2, 4)] == one[Span(4, 8)]
    same = compact(one, range(L))
    assert np.array_equal(same.values, one.values, equal_nan=True)


@pytest.mark.parametrize("selector", OF_TABLES_AND_SETS)
def test_one_round_is_one_shot(selector):
    one = table(4)
    seen = replace(evidence(one), value=squares(wanted(3)))
    got = in_rounds(SELECTORS[selector], seen, wanted(3, n_rounds=1), rescan=lambda student: {})
    assert got.layers == picks(selector, one, wanted(3))[0].layers


@pytest.mark.parametrize("selector", ["lowest", "span", "disjoint"])
def test_rounds_equal_a_greedy_loop_over_students(selector):
    """Naive reference: after each cut, score every remaining layer from the student's own states, in the student's indices."""
    view = DecoderView(tiny_model("llama", n_layers=L))
    batches = [Batch(torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1)))]
    asked = []

    def rescan(student):
        asked.append(sorted(unit.index for unit in student.removed))
        return rescanner(view, batches)(student)

    observer = GramObserver(L)
    run_pass(view, batches, observers=[observer])
    want = wanted(3, by="block_influence/every", n_rounds=3)
    got = in_rounds(SELECTORS[selector], evidence(*observer.tables()), want, rescan=rescan)

    remaining, history = list(range(L)), []
    for _ in range(3):
        gone = Student(removed=frozenset(Unit("layer", i) for i in range(L) if i not in remaining))
        states = dict(view.stream(view.read(batches[0]), student=gone))
        change = {
            i: 1 - torch.cosine_similarity(states[i].double(), states[i + 1].double(), dim=-1).mean().item()
            for i in remaining
            if i not in want.protected
        }
        remaining.remove(min(change, key=change.get))
        history.append(sorted(set(range(L)) - set(remaining)))
    assert got.layers == tuple(history[-1])
    assert asked == history[:-1], "measured anew after each cut but the last"


def test_rounds_remove_runs_of_what_is_left():
    """With layers 3 and 4 gone, 2 and 5 are neighbours: the student's span of the two reaches from boundary 2 to 6."""
    first, second = table(1), table(2)
    first.values[3, 5] = second.values[2, 6] = -1.0
    got = in_rounds(SELECTORS["span"], evidence(first), wanted(4, n_rounds=2), rescan=lambda student: {second.name: second})
    assert got.layers == (2, 3, 4, 5)


def test_rounds_keep_constraints_in_the_teachers_numbers():
    one = table(9)
    want = wanted(3, protected=frozenset({0, 7, 5}), n_rounds=3)
    seen = evidence(one, refuse=lambda structure: None if 3 in {slot.like for slot in structure} else "layer 3 is needed")
    got = in_rounds(SELECTORS["lowest"], seen, want, rescan=lambda student: {one.name: one})
    assert not {0, 3, 5, 7} & set(got.layers) and len(got.layers) == 3
    with pytest.raises(ValueError, match="protect fewer"):
        in_rounds(SELECTORS["lowest"], evidence(one, **ODD), wanted(6, n_rounds=6), rescan=lambda student: {one.name: one})
