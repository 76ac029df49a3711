"""A budget becomes the nearest number of layers, and sizes are exact in every family."""

import copy
import re
from fractions import Fraction

import pytest
import torch
from families import FAMILIES, tiny_model
from world import write_model, write_text

from shoal.edits.plan import Plan
from shoal.edits.replace.layer import LayerReplacement
from shoal.edits.replace.table import REPLACEMENTS, replacement_named
from shoal.engine.view import DecoderView
from shoal.evaluate.cost import cost
from shoal.select.amounts import Amounts
from shoal.select.budget import parse_budget, parse_parameters, parse_size, realised, resolve
from shoal.select.model_size import NOTHING as NONE
from shoal.select.model_size import ModelSize, PutBack, model_size, put_back_of, size_without
from shoal.select.plan_of import plan_of
from shoal.words.types import Span, Unit

LAYER = put_back_of(LayerReplacement(), 1)
FFN = PutBack("ffn", own_parameters=60, options=(("layout", "code"), ("width", 3)))
PADDED = PutBack("ffn", layers=1, options=(("layout", "stock"),))
EVEN = ModelSize(total=2000, layers=(100,) * 16)
LLAMA2_7B = ModelSize(total=6_738_415_616, layers=(202_383_360,) * 32)


def cut(budget, size=EVEN, *, put_back=NONE, removable=None, n_most=None, layers_of=None):
    removable = range(1, size.n_layers - 1) if removable is None else removable
    return resolve(budget, size, put_back=put_back, removable=removable, n_most=n_most or len(removable), layers_of=layers_of)


# -- reading ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("25%", "share", Fraction(1, 4)),
        (" 12.5 % ", "share", Fraction(1, 8)),
        ("8", "layers", 8),
        ("25%layers", "layer_share", Fraction(1, 4)),
        ("33.3% layers", "layer_share", Fraction(333, 1000)),
    ],
)
def test_drop_forms(text, kind, amount):
    budget = parse_budget(text)
    assert (budget.kind, budget.amount) == (kind, amount)


@pytest.mark.parametrize(
    ("text", "amount"), [("6B", 6 * 10**9), ("1.5b", 1_500_000_000), ("350M", 350_000_000), ("12k", 12_000), ("77", 77)]
)
def test_parameter_forms(text, amount):
    assert parse_parameters(text).amount == amount


@pytest.mark.parametrize("text", ["", "abc", "-3", "2.5", "25 percent", "0%", "100%", "150%", "25%%", "8layer%"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(ValueError, match="--drop"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["", "B", "0", "-1B", "6 GB", "6T"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="--params"):
        parse_parameters(text)


# -- nearest reachable -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drop", "n"),
    [
        *(("25%", 5), ("22.5%", 4), ("22.6%", 5), ("27.5%", 5), ("2.6%", 1), ("8", 8)),
        *(("25%layers", 4), ("40.625%layers", 6), ("41%layers", 7)),
    ],
)
def test_nearest_number_of_layers_and_ties_to_fewer(drop, n):
    assert cut(parse_budget(drop)).n == n


def test_target_size_is_the_share_it_leaves():
    assert cut(parse_parameters("1500")).n == 5
    assert cut(parse_parameters("1550")).n == 4, "a tie between 1600 and 1500 keeps more"


@pytest.mark.parametrize("share", [Fraction(k, 97) for k in range(4, 66)])
def test_no_other_number_is_nearer(share):
    budget = parse_budget("25%")
    n = cut(type(budget)("share", share, "x")).n
    assert all(abs(n * 100 - share * 2000) <= abs(other * 100 - share * 2000) for other in range(1, 15))


@pytest.mark.parametrize(("n", "share"), [(8, "24.0%"), (10, "30.0%"), (16, "48.1%")])
def test_published_shares_of_llama2_7b(n, share):
    """LLM-Streamline's bookkeeping: removing n layers, or replacing n + 1 by one, of 32."""
    for put_back in (NONE, LAYER):
        chosen = cut(parse_budget(str(n)), LLAMA2_7B, put_back=put_back)
        assert (chosen.n_net, chosen.n) == (n, n)
        assert realised(LLAMA2_7B, put_back.edits(range(10, 10 + n))).startswith(f"{n} of 32 layers, {share} of all parameters")
    assert cut(parse_budget("25%"), LLAMA2_7B).n == 8


def test_a_replacement_beside_the_layers_costs_its_parameters():
    chosen = cut(parse_budget("4"), put_back=FFN)
    assert (chosen.n_net, chosen.n) == (4, 4)
    # 4 layers of 100 out, 60 in
    assert size_without(EVEN, range(3, 7), FFN).parameters == 2000 - 340
    assert size_without(EVEN, range(3, 7), FFN).layers == 12
    assert cut(parse_budget("22%"), put_back=FFN).n == 5


def test_a_replacement_that_starts_as_zero_in_a_layer_of_its_own_takes_a_layer_more():
    chosen = cut(parse_budget("4"), put_back=PADDED)
    assert (chosen.n_net, chosen.n) == (4, 5)
    assert size_without(EVEN, range(3, 8), PADDED) == size_without(EVEN, range(3, 7), NONE)


def test_layers_of_different_size_count_as_what_they_are():
    size = ModelSize(total=1000, layers=(10, 300, 20, 20, 300, 10))
    assert cut(parse_budget("4%"), size, removable=(1, 2, 3, 4), layers_of=lambda n: (2, 3, 1, 4)[:n]).n == 2
    with pytest.raises(ValueError, match="1..2 layers"):  # The mean layer holds 160, so 1 is already four times the budget.
        cut(parse_budget("4%"), size, removable=(1, 2, 3, 4), n_most=2)


@pytest.mark.parametrize("drop", ["0", "15", "1%layers", "99%layers", "2.5%", "2%", "73%", "99%"])
def test_impossible_budgets_say_what_is_allowed(drop):
    with pytest.raises(ValueError, match=r"1\.\.14.*5\.0%\.\.70\.0%"):
        cut(parse_budget(drop))


@pytest.mark.parametrize("params", ["2000", "3B", "1", "1990"])
def test_impossible_sizes_say_what_is_allowed(params):
    with pytest.raises(ValueError, match=r"--params .*1\.\.14 layers.*600\.\.1,900 parameters left"):
        cut(parse_parameters(params))


def test_nothing_free_is_an_error():
    with pytest.raises(ValueError, match="protect fewer"):
        resolve(parse_budget("1"), EVEN, put_back=PADDED, removable=(3,), n_most=1)


# -- sizes of real models --------------------------------------------------------------------------------------------------


def stored(model):
    """Independent count: distinct storages of the state."""
    return sum(t.numel() for t in {t.data_ptr(): t for t in model.parameters()}.values())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_sizes_equal_a_model_whose_layers_were_deleted(family):
    model = tiny_model(family, n_layers=5)
    size = model_size(DecoderView(model))
    assert size.total == stored(model) and size.n_layers == 5
    for layers in ((1,), (2, 3)):
        cut_model = copy.deepcopy(model)
        path = DecoderView(cut_model).layers_path
        kept = [layer for i, layer in enumerate(cut_model.get_submodule(path)) if i not in layers]
        parent = cut_model.get_submodule(path.rpartition(".")[0])
        setattr(parent, path.rpartition(".")[2], torch.nn.ModuleList(kept))
        assert size_without(size, layers, NONE).parameters == stored(cut_model)
        assert size_without(size, layers, NONE).layers == len(kept)


def test_tied_embeddings_count_once_and_shared_layers_leave_with_none():
    model = tiny_model("llama", n_layers=3)
    untied = model_size(DecoderView(model)).total
    model.lm_head.weight = model.model.embed_tokens.weight
    assert model_size(DecoderView(model)).total == untied - model.lm_head.weight.numel()
    shared = model.model.layers[0].mlp.up_proj.weight
    before = model_size(DecoderView(model)).layers
    model.model.layers[2].mlp.up_proj.weight = shared
    after = model_size(DecoderView(model)).layers
    assert [b - a for b, a in zip(before, after, strict=True)] == [shared.numel(), 0, shared.numel()]


# -- plans -----------------------------------------------------------------------------------------------------------------


def plan(layers, put_back, size=EVEN):
    return plan_of(
        put_back.edits(sorted(set(layers))), size, own_parameters=put_back.own_parameters, source="m", source_hash="0"
    )


def test_plans_hold_the_cut_and_both_sizes():
    plain = plan((4, 5, 9), NONE)
    assert plain.removed_layers == (4, 5, 9) and plain.is_pure_removal
    assert (plain.after.layers, plain.after.parameters) == (13, 1700)
    inherits = plan((4, 5, 9), LAYER)
    assert [(e.start, e.stop, e.replacement, e.options) for e in inherits.replacements] == [
        (3, 6, "layer", {}),
        (8, 10, "layer", {}),
    ]
    assert inherits.after == plain.after, "a layer put back for each layer it inherits"
    ffn = plan((4, 5, 9), FFN)
    assert [(e.start, e.stop) for e in ffn.replacements] == [(4, 6), (9, 10)]
    assert ffn.after.parameters == 1700 + 120 and ffn.after.layers == 13
    assert all(e.options == {"layout": "code", "width": 3} for e in ffn.replacements)
    two = plan((4, 5, 9), PutBack("layer", layers=2, inherits=2, options=(("layers", 2),)))
    assert [(e.start, e.stop) for e in two.replacements] == [(2, 6), (7, 10)] and two.after == plain.after
    for one in (plain, inherits, ffn, plan((), NONE)):
        assert Plan.from_json(one.to_json()) == one
    assert plan((), NONE).after == EVEN.before


def test_inherited_size_is_that_of_the_layer_before_the_cut():
    uneven = ModelSize(total=1000, layers=(10, 300, 20, 20, 300, 10))
    assert plan((2, 3), LAYER, uneven).after.parameters == 960
    assert plan((2, 3), LAYER, uneven).after.layers == 4


def test_plans_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="layer 16"):
        plan((16,), NONE)
    with pytest.raises(ValueError, match="layer 0 has to stay"):
        plan((0, 1), LAYER)
    with pytest.raises(ValueError, match="keep at least one"):
        plan(range(16), NONE)


@pytest.mark.parametrize("family", ["llama", "gpt2", "deepseek_v3"])
@pytest.mark.parametrize("name", REPLACEMENTS)
def test_every_replacement_costs_what_its_module_holds(name, family):
    """The budget's bookkeeping needs no model; it must agree with the modules that are built."""
    view = DecoderView(tiny_model(family, n_layers=5))
    size = model_size(view)
    for options in ({},) if name == "layer" else ({"layout": "code"}, {}):
        replacement = replacement_named(name, options).resolved(view)
        put_back = put_back_of(replacement, view.hidden_size)
        for span in put_back.replaced((2, 3)) + put_back.replaced((1,)):
            asked = replacement.size(view, span)
            gone = span.layers[put_back.inherits :]
            brought = size_without(size, gone, put_back).parameters - size_without(size, gone, NONE).parameters
            inherited = sum(size.layers[layer] for layer in span.layers[: put_back.inherits])
            assert (asked.layers, asked.parameters) == (put_back.layers, brought + inherited)
            if name == "layer" or options:
                held = sum(parameter.numel() for parameter in replacement.build(view, span).parameters())
                assert held == asked.parameters


def test_runs_too_near_to_each_other_or_to_the_start_are_refused():
    two = PutBack("layer", layers=2, inherits=2)
    with pytest.raises(ValueError, match="inherits 2 layers before the removed ones"):
        two.replaced((1,))
    with pytest.raises(ValueError, match="so layer 4 has to stay"):
        two.replaced((3, 5))
    assert two.replaced((3, 6)) == (Span(1, 4), Span(4, 7))
    with pytest.raises(ValueError, match="stands behind the layer before"):
        FFN.replaced((0,))


WEIGHTS = Amounts("bytes of weights", 1000.0, {Unit("layer", layer): 80.0 for layer in range(10)})
MET = Amounts("parameters that a token meets", 500.0, {Unit("layer", layer): 30.0 for layer in range(10)})
RESOURCES = {"bytes": WEIGHTS, "active": MET}


def counted(budget):
    return resolve(budget, EVEN, put_back=NONE, removable=tuple(range(10)), n_most=9, amounts=RESOURCES).n


@pytest.mark.parametrize(
    ("budget", "n"),
    [
        (parse_budget("0.24KB"), 3),
        (parse_budget("0.24kb"), 3),
        (parse_budget("0.16KB, 4"), 4),
        (parse_size("0.76KB"), 3),
        (parse_size("0.75KiB"), 3),  # 768 bytes: 232 to go
        (parse_budget("12%active"), 2),
        (parse_parameters("440 active"), 2),
        (parse_parameters("0.44K active"), 2),
    ],
)
def test_bytes_and_active_parameters_are_the_nearest_number_of_layers(budget, n):
    assert counted(budget) == n


@pytest.mark.parametrize(
    ("read", "text", "said"),
    [
        (parse_size, "4", "not a size"), (parse_size, "0GB", "not a size"), (parse_size, "4 parsec", "not a size"),
        (parse_size, "-1GB", "not a size"), (parse_budget, "0GB", "removes nothing"), (parse_budget, "2GBit", "not a budget"),
        (parse_budget, "9" * 400 + "GB", "not a budget"), (parse_size, "9" * 400 + "GB", "not a size"),
        (parse_parameters, "9" * 5000, "not a size"), (parse_budget, "9" * 5000 + "%", "not a budget"),
        (parse_parameters, "active", "not a size"), (parse_parameters, "2B idle", "not a size"),
    ],
)  # fmt: skip
def test_other_forms_of_them_are_refused(read, text, said):
    with pytest.raises(ValueError, match=said):
        read(text)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (parse_budget("5GB"), "--drop 5GB asks to remove"),
        (parse_size("4GB"), "--size 4GB is not below 1,000, the bytes of weights"),
        (parse_size("0.1KB"), "this model allows 1..9 layers, 8.0%..72.0% of it"),
        (parse_parameters("600 active"), "--params 600 active is not below 500, the parameters that a token meets"),
    ],
)
def test_what_is_out_of_reach_says_the_range(budget, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        counted(budget)


@pytest.mark.parametrize("family", ["mixtral", "llama"])
def test_a_token_meets_all_parameters_but_those_of_experts_that_are_not_chosen(family):
    view = DecoderView(tiny_model(family))
    found = cost(view, context=8)
    experts = sum(p.numel() for name, p in view.model.named_parameters() if ".experts." in name)
    assert found.active_parameters == found.parameters - experts / 2  # Two of four go.
    assert (experts > 0) == (family == "mixtral")


def test_a_plan_of_a_mixture_says_all_sizes_side_by_side(shoal, tmp_path):
    write_model(tmp_path / "m", family="mixtral")
    options = ("--text", write_text(tmp_path / "t.jsonl"), "--length", 16, "--samples", 8, "--guard", 1)
    code, out, err = shoal("plan", "m", "--drop", "30%active", "--out", "run", *options)
    assert code == 0 and " active, " in out and " of weights)" in out and "% of active parameters" in out, err
    plan = Plan.load(tmp_path / "run" / "plan.json")
    assert plan.after.active < plan.before.active < plan.before.parameters and plan.after.bytes < plan.before.bytes
    asked = ("--size", f"{plan.after.bytes / 1000}KB", "--out", "same")
    assert shoal("plan", "m", *asked, *options)[0] == 0
    assert Plan.load(tmp_path / "same" / "plan.json").edits == plan.edits
    assert shoal("plan", "m", "--layers", "2", "--guard", "1", "--out", "no")[0] == 2
    code, _, err = shoal("plan", "m", "--size", "1KB", "--drop", "2", "--out", "no", *options)
    assert code == 2 and "--drop and --size are two budgets" in err
