"""The tournament decides by the true loss: it refuses what every cheap score recommends when that is a catastrophe."""

import io
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from families import VOCAB, tiny_config
from rich.console import Console
from transformers import AutoModelForCausalLM

from shoal.edits.drop import Drop
from shoal.edits.plan import Candidate
from shoal.edits.replace.layer import LayerReplacement
from shoal.engine.passes import run_pass
from shoal.engine.student import student_without
from shoal.engine.view import DecoderView
from shoal.measure.gram import GramObserver
from shoal.measure.oracle import Oracle, Quality
from shoal.measure.set_function import CountedSets
from shoal.run.race import Rung
from shoal.run.tournament import choose, tournament
from shoal.select.budget import parse_budget
from shoal.select.model_size import NOTHING, PutBack, model_size, put_back_of
from shoal.select.plan_of import plan_of
from shoal.select.proposals import Proposer, other_proposers, propose, search_beside
from shoal.select.request import Evidence, Request
from shoal.select.rounds import rescanner
from shoal.select.shortlist import shortlist, spread_of
from shoal.select.table import SELECTORS
from shoal.select.verdict import verdict
from shoal.show.plan_tables import candidates as candidates_table
from shoal.words.types import Batch, Unit

L, X = 10, 5
PUT_BACK = {"none": NOTHING, "layer": put_back_of(LayerReplacement(), 32)}


def batches(seed, n=2):
    generator = torch.Generator().manual_seed(seed)
    return [Batch(torch.randint(3, VOCAB, (3, 12), generator=generator), index=i) for i in range(n)]


CALIBRATION, SELECTION = batches(1), batches(2)


@torch.no_grad()
def planted():
    """Layer ``X`` changes the stream least of all: it only adds a tiny constant, which the head reads with a huge gain."""
    config = tiny_config("llama", n_layers=L)
    config.mlp_bias = True
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.normal_(0.0, 0.1)
    model.model.embed_tokens.weight[:, 0] = 0
    for index, layer in enumerate(model.model.layers):
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            # The neighbours change little, so that spans that hold X are the cheapest.
            weight.mul_({X: 0.0, X - 1: 0.3, X + 1: 0.6}.get(index, 1.0))
            weight[0] = 0
    model.model.layers[X].mlp.down_proj.bias[0] = 1e-3
    model.lm_head.weight[:, 0] = torch.randn(VOCAB, generator=torch.Generator().manual_seed(3)) * 3e3
    return model


@pytest.fixture(scope="module")
def view():
    return DecoderView(planted())


@pytest.fixture(scope="module")
def tables(view):
    observer = GramObserver(L)
    run_pass(view, CALIBRATION, observers=[observer])
    return {table.name: table for table in observer.tables()}


HOW = Request(n_layers=L, protected=frozenset({0, L - 1}))


def depth_of(request):
    """A set function that loses least without the deepest layers."""
    units = [Unit("layer", layer) for layer in request.removable]
    return CountedSets(lambda sets: [sum(L - unit.index for unit in one) for one in sets], units)


def ask(view, tables, *, drop="3", oracle=None, how=HOW, refuse=lambda structure: None, **more):
    size = model_size(view)
    short = shortlist(parse_budget(drop), size, how, Evidence(tables, refuse, depth_of(how)), **more)
    return choose(short, size, judge=oracle)


def only(scores):
    (found,) = scores.values()
    return found


@pytest.mark.parametrize("put_back", ["none", "layer"])
@pytest.mark.parametrize("drop", ["1", "2", "3"])
def test_the_tournament_picks_another_than_the_catastrophic_cosine_winner(view, tables, drop, put_back):
    how = replace(HOW, put_back=PUT_BACK[put_back])
    alone = ask(view, tables, drop=drop, how=replace(how, n_candidates=1))
    guarded = ask(view, tables, drop=drop, how=how, oracle=Oracle(view, SELECTION))
    assert X in alone.best.layers, "cosine recommends it"
    assert X not in guarded.best.layers
    by_layers = {candidate.layers: candidate.kl for candidate in guarded.candidates}
    assert by_layers[alone.best.layers] > 20 * by_layers[guarded.best.layers]
    assert "tournament of" in guarded.method and "tournament" not in alone.method


def test_all_other_scores_agree_on_the_catastrophe(view, tables):
    """The premise of the diverse place among the candidates."""
    want = replace(HOW, n=1)
    for proposer in other_proposers(Evidence(tables), want):
        if proposer.name != "deepest":
            assert next(proposer.candidates).layers == (X,), proposer.name


def test_candidates_are_ordered_by_their_own_measurement(view, tables):
    oracle = Oracle(view, SELECTION)
    choice = ask(view, tables, oracle=oracle)
    assert oracle.n_passes == 1, "one reading of the text for all"
    assert len(choice.candidates) == 4 == oracle.n_evaluations
    assert len({candidate.layers for candidate in choice.candidates}) == 4
    assert [c.kl for c in choice.candidates] == sorted(c.kl for c in choice.candidates)
    for candidate in choice.candidates:
        alone = Oracle(view, SELECTION).measure([student_without(candidate.layers)])[0]
        assert (candidate.kl, candidate.kl_stderr, candidate.perplexity) == (alone.kl, alone.kl_stderr, alone.perplexity)
    assert choice.best == choice.candidates[0]


def test_the_score_shown_is_that_of_the_proposer(view, tables):
    for candidate in ask(view, tables, oracle=Oracle(view, SELECTION)).candidates:
        assert candidate.proposed_by
        for name, score in candidate.scores.items():
            selector, *by = name.removeprefix("runner-up ").split()
            asked = replace(HOW, n=3, by=by[0] if by else HOW.by)
            ranked = SELECTORS[selector].propose(Evidence(tables, value=depth_of(HOW)), asked)
            assert (candidate.layers, score) in [(one.layers, only(one.scores)) for one in ranked]


@pytest.mark.parametrize(
    ("changes", "competes"),
    [
        ({}, "greedy"),
        ({"n_candidates": 3}, "greedy"),
        ({"n_candidates": 2}, "one-shot"),
        ({"n_candidates": 1}, None),
        ({"selector": "disjoint"}, "greedy"),
        ({"selector": "evolution"}, None),  # The selector runs the model itself.
        ({"put_back": PUT_BACK["layer"]}, "greedy"),
        ({"put_back": PutBack("swiglu", own_parameters=5)}, None),  # There is a module for every span.
    ],
)
def test_the_set_that_a_search_finds_competes_with_what_scores_propose(view, tables, changes, competes):
    how = replace(HOW, **changes)
    candidates = ask(view, tables, how=how, oracle=Oracle(view, SELECTION)).candidates
    found = [one for one in candidates if {"greedy", "one-shot"} & set(one.proposed_by)]
    assert search_beside(how) == competes and len(found) == (competes is not None)
    assert all(competes in one.proposed_by and one.layers == (L - 4, L - 3, L - 2) for one in found)


def test_no_search_competes_with_the_score_that_it_chooses_by():
    """One shot leaves out each layer by itself and ranks by KL, as ``left_out_kl`` does; other metrics rank otherwise."""
    for by, n, name in (("left_out_kl", 2, None), ("left_out_ce", 2, "one-shot"), ("left_out_kl", 3, "greedy")):
        assert search_beside(replace(HOW, selector="lowest", by=by, n_candidates=n)) == name


@pytest.mark.parametrize(("searched", "second"), [((0, 1, 3), (0, 1, 3)), ((0, 1, 2), (3, 4, 5))])
def test_of_two_candidates_the_second_is_what_the_search_found_or_a_different_one(searched, second):
    """However much it shares with the first; a different one has the place where the search agrees with what was asked for."""
    asked, found, other, apart = ((0, 1, 2), searched, (0, 1, 4), (3, 4, 5))
    proposers = [
        Proposer(name, iter([HOW.candidate(layers, by=name, score=0.0)]), is_search=name == "one-shot")
        for name, layers in (("span", asked), ("one-shot", found), ("lowest", other), ("deepest", apart))
    ]
    assert [one.layers for one in propose(proposers, 2)] == [asked, second]


def test_choosing_twice_gives_the_same(view, tables):
    assert ask(view, tables, oracle=Oracle(view, SELECTION)) == ask(view, tables, oracle=Oracle(view, SELECTION))


def test_a_choice_becomes_a_plan(view, tables):
    size = model_size(view)
    for name, n_edits in (("none", 3), ("layer", 4)):
        choice = ask(view, tables, how=replace(HOW, put_back=PUT_BACK[name]), oracle=Oracle(view, SELECTION))
        plan = plan_of(
            choice.best.edits,
            size,
            source="m",
            source_hash="0",
            method=choice.method,
            candidates=choice.candidates,
        )
        assert len(plan.removed_layers) == n_edits and plan.after.layers == L - 3
        assert plan.candidates == choice.candidates


@pytest.mark.parametrize("selector", [name for name, one in SELECTORS.items() if not one.refits and "weights" not in one.reads])
def test_with_one_candidate_the_selector_has_the_word(view, tables, selector):
    how = replace(HOW, selector=selector, by="angular/last", n_candidates=1)
    seen = Evidence(tables, value=depth_of(HOW))
    expected = next(SELECTORS[selector].propose(seen, replace(how, n=3)))
    assert ask(view, tables, how=how).best.layers == expected.layers


def test_the_deepest_rule_reads_no_table(view):
    how = replace(HOW, selector="deepest", n_candidates=1)
    assert ask(view, {}, how=how).best.layers == (6, 7, 8)


def test_rounds_are_one_of_the_candidates(view, tables):
    how = replace(HOW, n_rounds=3)
    choice = ask(view, tables, how=how, oracle=Oracle(view, SELECTION), rescan=rescanner(view, CALIBRATION))
    names = [name for candidate in choice.candidates for name in candidate.proposed_by]
    assert "span cosine/rest in 3 rounds" in names and "span cosine/rest" in names, "so does the one-shot choice"
    with pytest.raises(ValueError, match="rounds=3"):
        ask(view, tables, how=how, oracle=Oracle(view, SELECTION))


def test_what_the_family_refuses_is_never_measured(view, tables):
    def refuse(structure):
        return None if {3, 6} <= {slot.like for slot in structure} else "layers 3 and 6 are full attention"

    choice = ask(view, tables, drop="2", oracle=Oracle(view, SELECTION), refuse=refuse)
    assert all(not {3, 6} & set(candidate.layers) for candidate in choice.candidates)
    with pytest.raises(ValueError, match="finds no 3 layers that can go .*: nothing can go"):
        ask(view, tables, oracle=Oracle(view, SELECTION), refuse=lambda structure: "nothing can go")


def test_how_a_choice_is_made_prints_alike_in_every_process():
    """Run folders hash it."""
    assert repr(HOW) == repr(replace(HOW)) and " at 0x" not in repr(HOW)


def test_many_candidates_need_text(view, tables):
    with pytest.raises(ValueError, match="guard: 1"):
        ask(view, tables)
    with pytest.raises(ValueError, match="at least one"):
        tournament((), Oracle(view, SELECTION))


# -- proposals -------------------------------------------------------------------------------------------------------------


def proposer(name, *layers):
    return Proposer(name, iter([HOW.candidate(one, by=name, score=float(i)) for i, one in enumerate(layers)]))


def test_a_replacement_that_inherits_also_competes_as_the_plain_span(tables):
    """Its own span is scored over the inherited layer, too, and may miss the best plain removal."""
    asked = replace(HOW, n=2)
    names = {p.name for p in other_proposers(Evidence(tables), replace(asked, put_back=PUT_BACK["layer"]))}
    assert {"span cosine/rest", "plain span cosine/rest"} <= names
    assert not any(p.name.startswith("plain") for p in other_proposers(Evidence(tables), asked)), "there the two are one"


def test_several_spans_compete_where_their_modules_are_layers(tables):
    asked = replace(HOW, n=2)

    def selectors(put_back):
        return {p.name.split()[0] for p in other_proposers(Evidence(tables), replace(asked, put_back=put_back))}

    assert {"lowest", "disjoint"} <= selectors(NOTHING)
    assert {"lowest", "disjoint"} <= selectors(PUT_BACK["layer"])
    for module in (PutBack("swiglu", own_parameters=5), PutBack("swiglu", layers=1)):
        assert not {"lowest", "disjoint"} & selectors(module)


def test_equal_proposals_are_one_candidate_with_all_its_proposers():
    (only,) = propose([proposer("a", (1, 2)), proposer("b", (1, 2))], 4)
    assert only == Candidate(edits=(Drop(indices=(1, 2)),), proposed_by=("a", "b"), scores={"a": 0.0, "b": 0.0})


def test_the_last_place_is_for_one_that_shares_at_most_half():
    proposers = [proposer("a", (1, 2), (2, 3), (5, 6)), proposer("b", (1, 3)), proposer("c", (1, 4), (2, 4))]
    got = propose(proposers, 3)
    # (1, 2) and (1, 3) share one of two layers: different enough; all of c share at most half with both
    assert [one.layers for one in got] == [(1, 2), (1, 3), (1, 4)]
    alike = [proposer("a", (1, 2, 3), (2, 3, 4), (6, 7, 8)), proposer("b", (1, 2, 4)), proposer("c", (1, 2, 5))]
    got = propose(alike, 3)
    assert [one.layers for one in got] == [(1, 2, 3), (1, 2, 4), (6, 7, 8)]
    assert got[-1].proposed_by == ("runner-up a",)


def test_runners_up_fill_the_places_and_may_run_out():
    got = propose([proposer("a", (1, 2), (2, 3)), proposer("b", (1, 2), (6, 7))], 8)
    assert [one.layers for one in got] == [(1, 2), (2, 3), (6, 7)]
    assert len({one.layers for one in got}) == len(got)
    assert [one.layers for one in propose([proposer("a", (1, 2)), proposer("b", (3, 4))], 1)] == [(1, 2)]


def test_a_criterion_that_finds_nothing_is_no_obstacle_unless_it_was_asked_for():
    assert propose([proposer("a", (1,)), proposer("b")], 2)[0].layers == (1,)
    with pytest.raises(ValueError, match="'b' finds no layers"):
        propose([proposer("b"), proposer("a", (1,))], 2)


# -- for people ------------------------------------------------------------------------------------------------------------


def test_the_table_says_why_the_winner_won(view, tables):

    candidates = ask(view, tables, oracle=Oracle(view, SELECTION)).candidates
    console = Console(file=io.StringIO(), width=150)
    console.print(candidates_table(candidates, n_layers=L))
    text = console.file.getvalue()
    assert f"{candidates[0].kl:.4g}" in text and "span cosine/rest (" in text
    assert f"keeps {L - 3}" in text and "worst" in text


def test_verdict_names_a_difference_within_the_noise():
    def one(layer, kl, stderr):
        return Candidate(edits=(Drop(indices=(layer,)),), proposed_by=("x",), kl=kl, kl_stderr=stderr)

    assert "within the noise" in verdict([one(1, 0.5, 0.1), one(2, 0.6, 0.1)], n_layers=4)
    assert "within the noise" not in verdict([one(1, 0.5, 0.01), one(2, 0.6, 0.01)], n_layers=4)
    assert "KL" not in verdict([Candidate(edits=(Drop(indices=(1,)),), proposed_by=("x",))], n_layers=4)


class Says:
    """An oracle that answers what it is told."""

    def __init__(self, *kls):
        self.kls = kls

    def measure(self, students):
        known = dict(kl_stderr=0.0, agreement=0.5, nll=1.0, perplexity=2.7, n_tokens=10, n_samples=2)
        return [Quality(kl=kl, **known) for _, kl in zip(students, self.kls, strict=True)]


def test_a_candidate_that_overflows_ranks_last_and_only_all_of_them_are_an_error():
    candidates = [Candidate(edits=(Drop(indices=(layer,)),), proposed_by=("a",)) for layer in (1, 2, 3)]
    ranked = tournament(candidates, Says(math.nan, math.inf, 0.5))
    assert [one.layers for one in ranked] == [(3,), (1,), (2,)]
    with pytest.raises(ValueError, match="every candidate"):
        tournament(candidates, Says(math.nan, math.inf, math.nan))


def test_candidates_compete_as_they_would_be_kept():
    """Repaired where that helps, plain where it does not or cannot; the plain figure stays beside it."""
    candidates = [Candidate(edits=(Drop(indices=(layer,)),), proposed_by=("a",)) for layer in (1, 2, 3)]
    plain = {(1,): 0.3, (2,): math.nan, (3,): 0.5}
    repaired = {(2,): 0.1, (1,): math.nan}

    class Knows:
        def measure(self, students):
            known = dict(kl_stderr=0.0, agreement=0.5, nll=1.0, perplexity=2.7, n_tokens=10, n_samples=2)
            found = []
            for student in students:
                layers = tuple(sorted(unit.index for unit in student.removed))
                found.append(Quality(kl=(repaired if student.overrides else plain)[layers], **known))
            return found

    def repair(candidate, kept):
        values = {0: {"weight": torch.zeros(1)}}
        return replace(student_without(candidate.layers), overrides=values) if candidate.layers in repaired else None

    ranked = tournament(candidates, Knows(), rungs=[Rung(640, repair)])
    assert [(one.layers, one.kl) for one in ranked] == [((2,), 0.1), ((1,), 0.3), ((3,), 0.5)]
    assert math.isnan(ranked[0].kl_plain) and [one.kl_plain for one in ranked[1:]] == [0.3, 0.5]
    assert {one.repaired_on for one in ranked} == {640}
    assert [one.layers for one in tournament(candidates, Knows())] == [(1,), (3,), (2,)]
    stream = io.StringIO()
    Console(file=stream, width=200).print(candidates_table(ranked, n_layers=L))
    assert "KL before repair" in stream.getvalue() and "0.5" in stream.getvalue()


def test_the_spread_is_what_the_selector_picks_on_each_part(view, tables):
    """Each part by itself, as if it were the whole text."""
    request = replace(HOW, n=2)
    short = shortlist(parse_budget("2"), model_size(view), request, Evidence(tables))
    parts = tables["cosine/rest"].parts
    alone = [Evidence({"cosine/rest": replace(tables["cosine/rest"], values=part)}) for part in parts]
    picks = [next(SELECTORS["span"].propose(one, request), None) for one in alone]
    found = spread_of(short)
    assert sum(one.n_parts for one in found) == sum(pick is not None for pick in picks) > 1
    assert {one.layers: one.n_parts for one in found} == Counter(pick.layers for pick in picks if pick is not None)
    assert [one.n_parts for one in found] == sorted((one.n_parts for one in found), reverse=True)
    assert spread_of(replace(short, evidence=Evidence())) == ()
    assert spread_of(replace(short, request=replace(request, n_rounds=2))) == (), "each round reads the text anew"
