"""Laws of merged layers: the rules are their formulas, the file is the overlay, and the searches do what their papers say."""

import json

import pytest
import torch
from families import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_plan_laws import plan_of_edits
from transformers import AutoModelForCausalLM

from shoal import compress, load_recipe
from shoal.checkpoint.verify import verify
from shoal.checkpoint.write import write
from shoal.edits.drop import Drop
from shoal.edits.merge_edit import Merge
from shoal.edits.merge_rules import RULES, joined_weights
from shoal.edits.merged_layers import merge_of
from shoal.edits.refit import Refit
from shoal.edits.student_of import student_of
from shoal.engine.open import open_model
from shoal.engine.streamed import open_streamed
from shoal.engine.view import DecoderView
from shoal.run.apply import apply_plan
from shoal.run.run_files import plan_file
from shoal.select.merging.by_merging import Similarities, by_merging, in_step
from shoal.select.merging.laco import laco
from shoal.select.merging.merge_config import MergeConfig
from shoal.select.merging.row_trial import MergeRules, n_gone, whole_row
from shoal.select.merging.sliding import sliding
from shoal.select.request import Evidence, Request
from shoal.words.types import Batch

IDS_BT = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(0))
NAMED = [name for name, rule in RULES.items() if rule.weights is not None]


def layers_of(view):
    return [dict(layer.named_parameters()) for layer in view.model.get_submodule(view.layers_path)]


def merged_student(view, rule, layers=(1, 2, 3)):
    plan = plan_of_edits((merge_of(view, layers, RULES.named(rule)),), n_layers=view.n_layers)
    return plan, student_of(view, plan)


def test_the_rules_are_their_formulas():
    view = DecoderView(tiny_model("llama", n_layers=6))
    one, two, three = layers_of(view)[1:4]
    expected = {
        "sum_diff": lambda name: one[name] + (two[name] - one[name]) + (three[name] - one[name]),
        "keep_last": lambda name: one[name] if "norm" in name else three[name],
        "mean": lambda name: (one[name] + two[name] + three[name]) / 3,
    }
    for rule, formula in expected.items():
        _, student = merged_student(view, rule)
        values = {**one, **student.overrides[1]}
        for name, value in values.items():
            torch.testing.assert_close(value, formula(name), atol=1e-6, rtol=1e-5)
        assert student.step(2) is None and student.step(3) is None


def test_the_released_loop_is_keep_last():
    """Each difference is added to what there is by then: the maps end as those of the last layer."""
    view = DecoderView(tiny_model("llama", n_layers=6))
    base, *others = layers_of(view)[1:4]
    name = "mlp.up_proj.weight"
    value = base[name].clone()
    for other in others:
        value = value + (other[name] - value)
    _, student = merged_student(view, "keep_last")
    torch.testing.assert_close(student.overrides[1][name], value, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rule", NAMED)
def test_equal_layers_are_merged_into_themselves(rule):
    """On identical layers the weights do not change, whatever the rule."""
    view = DecoderView(tiny_model("llama", n_layers=5))
    with torch.no_grad():
        first = layers_of(view)[1]
        for other in layers_of(view)[2:4]:
            for name, value in other.items():
                value.copy_(first[name])
    _, student = merged_student(view, rule)
    for name, value in student.overrides[1].items():
        torch.testing.assert_close(value, first[name], atol=1e-6, rtol=1e-5)


@given(st.lists(st.integers(1, 3), min_size=2, max_size=4), st.sampled_from(NAMED))
def test_weights_add_up_to_one_also_when_groups_are_merged_again(sizes, rule):
    groups = [RULES.named(rule).weights(n - 1) if n > 1 else (1.0,) for n in sizes]
    weights = joined_weights(RULES.named(rule), groups)
    assert len(weights) == sum(sizes)
    assert abs(sum(weights) - 1) < 1e-9


@pytest.mark.parametrize("rule", NAMED)
@pytest.mark.parametrize("resident", ["all", 1])
@pytest.mark.parametrize("family", ["gemma2", "gpt2"])
def test_the_written_file_is_the_student(family, resident, rule, tmp_path):
    tiny_model(family, n_layers=6).save_pretrained(tmp_path / "m")
    if resident == "all":
        view = DecoderView(open_model(tmp_path / "m").model)
    else:
        opened, streamed = open_streamed(tmp_path / "m", n_resident=1)
        view = DecoderView(opened.model, residency=streamed)
    plan, student = merged_student(view, rule)
    expected = view.logits(Batch(IDS_BT), student=student)
    write(view, tmp_path / "m", plan, tmp_path / "s")
    checked = verify(tmp_path / "s", ids_BT=IDS_BT, reference=lambda ids: expected)
    assert checked.logit_difference == 0.0 and checked.size.layers == 4


def test_a_refit_behind_a_merge_holds():
    view = DecoderView(tiny_model("llama", n_layers=5))
    merge = merge_of(view, (1, 2), RULES.named("mean"))
    name = "mlp.down_proj.weight"
    plan = plan_of_edits((merge, Refit(layer=1, parameters=(name,))), n_layers=5)
    value = torch.randn_like(layers_of(view)[1][name])
    student = student_of(view, plan, {f"refit.1.{name}": value})
    assert torch.equal(student.overrides[1][name], value)
    assert plan.removed_layers == (2,) and plan.kept_layers == (0, 1, 3, 4)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda view: Merge(into=1, of=(2, 2), parameters=("a",)), "names a layer twice"),
        (lambda view: Merge(into=1, of=(2,), rule="weighted", parameters=("a",)), "takes 2 weights, got 0"),
        (lambda view: Merge(into=1, of=(2,), rule="meen", parameters=("a",)), "did you mean 'mean'"),
        (lambda view: merge_of(view, (1, 2), RULES.named("mean")), "edited twice"),
    ],
)
def test_merges_that_cannot_be_are_refused(make, said):
    view = DecoderView(tiny_model("llama", n_layers=5))
    with pytest.raises(ValueError, match=said):
        plan_of_edits((make(view), Drop(indices=(2,))), n_layers=5)


def test_layers_of_different_kinds_are_not_merged():
    view = DecoderView(tiny_model("qwen3_moe", n_layers=4))
    with pytest.raises(ValueError, match="differ in their parts"):
        merge_of(view, (0, 1), RULES.named("mean"))


# -- the searches, on pure functions ---------------------------------------------------------------------------------------


class Pretend:
    """A trial whose loss is a function of what is gone; counts its readings."""

    def __init__(self, loss):
        self.loss, self.n_passes, self.rows = loss, 0, []
        self.similarity = self.threshold = None

    def chose(self, similarity, threshold):
        self.similarity, self.threshold = similarity, threshold

    def losses(self, rows):
        self.n_passes += 1
        self.rows += rows
        return [self.loss(row) for row in rows]

    def are_alike(self, layers):
        return True

    def edits(self, row):
        several = [group.layers for group in row if len(group.layers) > 1]
        return tuple(Merge(into=one[0], of=one[1:], rule="keep_last", parameters=("w",)) for one in several)


def shallow_costs(row):
    """A merge costs more the lower it is."""
    return sum(0.01 * (20 - layer) for group in row for layer in group.layers[1:])


def rules(most=100, free=range(20)):
    return MergeRules(RULES.named("keep_last"), frozenset(free), lambda layers: True, most)


def end_of(merging, threshold, loss=shallow_costs, n=16, config=None, most=100, free=range(20)):
    return in_step([merging(whole_row(n), config or MergeConfig(), rules(most, free), threshold)], Similarities(Pretend(loss)))[
        0
    ]


def test_laco_goes_down_by_groups_and_intervals():
    """All accepted: the top 4 become one, the next group is where 4 fit again, and a merged layer may be merged again."""
    asked = Pretend(lambda row: 0.0)
    in_step([laco(whole_row(12), MergeConfig(), rules(), 0.5)], Similarities(asked))
    tops = [next(group.layers for group in reversed(row) if len(group.layers) > 1) for row in asked.rows]
    assert tops[0] == (8, 9, 10, 11) and tops[1] == (5, 6, 7, 8, 9, 10, 11)


def test_nothing_is_merged_where_every_merge_is_too_far():
    for merging in (laco, sliding):
        assert n_gone(end_of(merging, 0.5, loss=lambda row: 1.0)) == 0


@pytest.mark.parametrize("merging", [laco, sliding])
def test_a_higher_threshold_never_removes_more_on_a_nested_function(merging):
    gone = [n_gone(end_of(merging, threshold)) for threshold in (0.0, 0.3, 0.6, 0.9, 0.97)]
    assert gone == sorted(gone, reverse=True) and gone[0] > gone[-1]


def test_the_window_grows_is_merged_and_the_next_begins_where_it_broke():
    """Layers 3..7 are one patch and 0..2 another: inside a patch merging is free, across it costs all."""
    patch = {**dict.fromkeys(range(3), 0), **dict.fromkeys(range(3, 8), 1)}

    def loss(row):
        return float(any(len({patch[layer] for layer in group.layers}) > 1 for group in row))

    assert [group.layers for group in end_of(sliding, 0.5, loss, n=8)] == [(0, 1, 2), (3, 4, 5, 6, 7)]


@pytest.mark.parametrize("merging", [laco, sliding])
@pytest.mark.parametrize("n", [1, 4, 7])
def test_a_budget_is_met_exactly_by_the_highest_threshold(merging, n):
    """And the same answer comes at the threshold that is said; protected layers stay."""
    trial = Pretend(shallow_costs)
    request = Request(n_layers=16, n=n, selector="x", protected=frozenset({0, 15}), merge=MergeConfig(rule="keep_last"))
    (found,) = list(by_merging(merging)(Evidence(merges=trial), request))
    assert len(found.layers) == n and not {0, 15} & set(found.layers)
    again = end_of(merging, trial.threshold, n=16, most=n, free=range(1, 15))
    assert sorted(found.layers) == sorted(layer for group in again for layer in group.layers[1:])
    assert trial.n_passes < 120


def test_a_threshold_is_kept_to_where_it_is_given():
    request = Request(n_layers=16, n=9, selector="x", merge=MergeConfig(threshold=0.7))
    (found,) = list(by_merging(laco)(Evidence(merges=Pretend(shallow_costs)), request))
    assert found.scores["similarity"] > 0.7 and 0 < len(found.layers) < 9


def test_a_threshold_that_nothing_reaches_is_one_line():
    request = Request(n_layers=16, n=9, selector="x", merge=MergeConfig(threshold=1.0))
    with pytest.raises(ValueError, match="no merge leaves the student as similar"):
        list(by_merging(laco)(Evidence(merges=Pretend(shallow_costs)), request))


def test_more_than_can_be_merged_is_one_line():
    request = Request(n_layers=6, n=5, selector="x", protected=frozenset({0, 1, 2}))
    with pytest.raises(ValueError, match="at most 2 layers can be merged away"):
        list(by_merging(sliding)(Evidence(merges=Pretend(shallow_costs)), request))


# -- runs ------------------------------------------------------------------------------------------------------------------


def recipe(small, name, **changes):
    text = {"sources": [small["text"]], "samples": 8, "length": 16, "selection": 8, "evaluation": 8}
    given = {"model": small["model"], "drop": "2", "text": text, "heal": None, "speed": False, "search": {"tokens": 64}}
    return load_recipe(name, {**given, **changes})


@pytest.mark.parametrize("name", ["laco", "sliding-merge"])
def test_a_recipe_of_merging_ends_in_a_stock_checkpoint(name, small, tmp_path):
    """Its plan holds merges alone, makes the same bytes when it is applied, and a killed search does not run a row twice."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shoal.run.stages.choose.plan_of", killed)
        compress(recipe(small, name), tmp_path / "run")
    tried = json.loads((tmp_path / "run" / "merging.json").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shoal.run.merge_on_model.run_pass", killed)
        outcome = compress(recipe(small, name), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "merging.json").read_text()) == tried
    assert all(isinstance(edit, Merge) for edit in outcome.plan.edits) and outcome.plan.after.layers == 4
    model, info = AutoModelForCausalLM.from_pretrained(outcome.model, output_loading_info=True)
    assert not any(info.values()) and model.config.num_hidden_layers == 4
    made = apply_plan(outcome.folder / "plan.json", tmp_path / "again")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (made.path, outcome.model))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def killed(*args, **kwargs):
    raise KeyboardInterrupt


def test_a_merged_layer_is_fitted_in_closed_form(small, tmp_path):
    """The start is the rule's; the repair sets its maps by the group's input and output, and the student comes nearer."""
    outcome = compress(recipe(small, "laco", repair="refit", fit={"tokens": 512}), tmp_path / "run")
    merges = [edit for edit in outcome.plan.edits if isinstance(edit, Merge)]
    assert {fit.layer for fit in outcome.repaired.layers} == {edit.into for edit in merges}
    assert all(fit.error_after <= fit.error_before for fit in outcome.repaired.layers)
    refits = {edit.layer for edit in outcome.plan.edits if isinstance(edit, Refit)}
    assert refits <= {edit.into for edit in merges}


TRAIN = {"tokens": 24 * 16, "batch": 4, "micro_batch": 4, "lr": 1e-3, "eval_every": 3}


@pytest.mark.parametrize(("repair", "several"), [("refit", "joint"), ("none", "sequential"), ("refit", "teacher_forced")])
def test_a_merged_layer_is_polished_as_other_replacements_are(repair, several, small, tmp_path):
    """From the rule's values, or those of its fit; never worse than its start; the plan's files make the same bytes."""
    changes = {"repair": repair, "fit": {"tokens": 512}, "polish": "hidden", "train": {**TRAIN, "several": several}}
    outcome = compress(recipe(small, "laco", **changes), tmp_path / "run")
    merges = [edit for edit in outcome.plan.edits if isinstance(edit, Merge)]
    polished = load_file(outcome.folder / "train.safetensors")
    assert {key for edit in merges for key in edit.written()[edit.into].values()} <= set(polished)
    assert outcome.trained and all(one.best.quality <= one.first.quality for one in outcome.trained)
    assert any(one.best_step for one in outcome.trained), "a rate of 1e-3 leads somewhere"
    start = student_of(DecoderView(open_model(small["model"]).model), outcome.plan.model_copy(update={"edits": tuple(merges)}))
    layer = merges[0].into
    name = "self_attn.q_proj.weight"  # No refit writes it.
    assert not torch.equal(polished[f"merge.{layer}.{name}"], start.overrides[layer][name])
    made = apply_plan(plan_file(outcome.folder), tmp_path / "again")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (made.path, outcome.model))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"guard": 4}, "use --guard 1"),
        ({"replace": "layer"}, "use --replace none"),
        ({"merge": {"rule": "weighted"}}, "by hand"),
    ],
)
def test_what_does_not_go_with_merging_is_refused(changes, said, small):
    with pytest.raises(ValueError, match=said):
        recipe(small, "laco", **changes)
