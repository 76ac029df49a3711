"""A replacement inherits exactly: untrained it equals removing the rest of the span, and values travel without loss."""

import copy

import pytest
import torch
from families import FAMILIES, VOCAB, tiny_model

from shoal.edits.drop import Drop
from shoal.edits.plan import Plan
from shoal.edits.refit import Refit
from shoal.edits.replace.layer import LayerReplacement
from shoal.edits.replace.replace_edit import Replace
from shoal.edits.replace.table import REPLACEMENTS, replacement_named
from shoal.edits.student_of import attach, student_of, values_of
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.select.model_size import put_back_of
from shoal.words.structure import Size
from shoal.words.types import Batch, Span, Unit

IDS_BT = torch.randint(3, VOCAB, (3, 11), generator=torch.Generator().manual_seed(0))
MASK_BT = torch.arange(11)[None] < torch.tensor([7, 11, 3])[:, None]
PADDED = Batch(IDS_BT.where(MASK_BT, 0), MASK_BT)
SPAN = Span(2, 5)


def plan_with(*edits, n_layers=6):
    size = Size(layers=n_layers, parameters=1)
    return Plan(source="tiny", source_hash="0", teacher="tiny", n_layers=n_layers, edits=edits, before=size, after=size)


def removed(*layers):
    return Student(frozenset(Unit("layer", layer) for layer in layers))


@pytest.fixture(params=sorted(FAMILIES), scope="module")
def view(request):
    return DecoderView(tiny_model(request.param))


def test_untrained_it_equals_removing_the_rest_of_the_span(view):
    student = student_of(view, plan_with(Replace(start=2, stop=5, replacement="layer")))
    assert torch.equal(view.logits(PADDED, student=student), view.logits(PADDED, student=removed(3, 4)))


def test_a_gradient_reaches_it_and_never_the_teacher(view):
    module = LayerReplacement().build(view, SPAN).requires_grad_()
    student = Student(attached=(attach(LayerReplacement(), SPAN, module),))
    reading = view.read(PADDED)
    view.run_layer(2, reading.h_BTD, reading, student=student)[MASK_BT].square().sum().backward()
    gradients = {name: p.grad for name, p in module.named_parameters()}
    reached = [name for name, grad in gradients.items() if grad is not None and grad.abs().sum() > 0]
    assert all(torch.isfinite(grad).all() for grad in gradients.values() if grad is not None)
    assert any("attn" in n or "attention" in n for n in reached) and len(reached) >= 4, reached
    assert all(p.grad is None for p in view.model.parameters())


def test_its_parameters_are_its_own(view):
    before = view.logits(PADDED)
    module = LayerReplacement().build(view, SPAN)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    assert torch.equal(view.logits(PADDED), before)


def test_values_travel_through_a_plan(view):
    plan = plan_with(Drop(indices=(0,)), Replace(start=2, stop=5, replacement="layer"))
    student = student_of(view, plan)
    with torch.no_grad():
        for parameter in student.attached[0].module.parameters():
            parameter.mul_(1.5)
    values = values_of(student.attached)
    assert all(name.startswith("replace.2-5.layer.") for name in values)
    again = student_of(view, plan, values)
    logits = view.logits(PADDED, student=student)
    assert torch.equal(view.logits(PADDED, student=again), logits)
    assert not torch.equal(view.logits(PADDED, student=student_of(view, plan)), logits)
    with torch.no_grad():
        next(iter(values.values())).zero_()
    assert torch.equal(view.logits(PADDED, student=student), logits), "values are copies"


@pytest.fixture(scope="module")
def llama():
    return DecoderView(tiny_model("llama"))


def test_the_stock_layer_inside_can_stand_in_a_model(llama):
    student = student_of(llama, plan_with(Replace(start=2, stop=5, replacement="layer")))
    module = student.attached[0].module
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.2)
    model = copy.deepcopy(llama.model)
    layers = model.model.layers
    model.model.layers = torch.nn.ModuleList([layers[0], layers[1], module.layer, layers[5]])
    model.config.num_hidden_layers = 4
    assert torch.equal(DecoderView(model).logits(PADDED), llama.logits(PADDED, student=student))


def test_its_cost_is_one_layer(llama):
    one_layer = sum(p.numel() for p in llama.model.model.layers[2].parameters())
    assert LayerReplacement().size(llama, SPAN) == Size(layers=1, parameters=one_layer)
    assert LayerReplacement().build(llama, SPAN).layer.self_attn.q_proj.weight.numel() == 32 * 32


@pytest.mark.parametrize("cut", [Span(1, 2), Span(3, 5)])
def test_the_span_over_a_cut_starts_as_plain_removal(llama, cut):
    (span,) = put_back_of(LayerReplacement(), 32).replaced(cut.layers)
    student = student_of(llama, plan_with(Replace(start=span.start, stop=span.stop, replacement="layer")))
    assert torch.equal(llama.logits(PADDED, student=student), llama.logits(PADDED, student=removed(*cut.layers)))


def test_nothing_can_be_inherited_before_layer_0():
    with pytest.raises(ValueError, match="layer 0"):
        put_back_of(LayerReplacement(), 32).replaced((0, 1))


def test_refits_become_overrides(llama):
    name = "mlp.down_proj.weight"
    value = torch.randn(32, 48, generator=torch.Generator().manual_seed(1))
    edited = copy.deepcopy(llama.model)
    with torch.no_grad():
        edited.model.layers[1].mlp.down_proj.weight.copy_(value)
    student = student_of(llama, plan_with(Refit(layer=1, parameters=(name,))), {f"refit.1.{name}": value})
    assert torch.equal(llama.logits(PADDED, student=student), DecoderView(edited).logits(PADDED))


def test_an_empty_plan_is_the_teacher(llama):
    assert torch.equal(llama.logits(PADDED, student=student_of(llama, plan_with())), llama.logits(PADDED))


REPLACE = Replace(start=2, stop=5, replacement="layer")
BAD_VALUES = {
    "missing": ((REPLACE,), lambda v: v.pop("replace.2-5.layer.mlp.up_proj.weight"), "'layer.mlp.up_proj.weight' is missing"),
    "unknown": ((REPLACE,), lambda v: v.update({"replace.2-5.x": torch.zeros(1)}), "'x' is unknown"),
    "shape": (
        (REPLACE,),
        lambda v: v.update({"replace.2-5.layer.mlp.up_proj.weight": torch.zeros(2)}),
        r"\(2,\), \(48, 32\) is needed",
    ),
    "left over": ((REPLACE,), lambda v: v.update({"replace.0-2.layer.x": torch.zeros(1)}), "belong to no edit.*replace.0-2"),
    "no refit": ((REPLACE, Refit(layer=0, parameters=("mlp.up_proj.weight",))), lambda v: None, "'refit.0.mlp.*missing"),
    "no such map": ((REPLACE, Refit(layer=0, parameters=("mlp.upproj",))), lambda v: None, "no parameter 'mlp.upproj'"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_values_that_do_not_match_the_plan_are_refused(llama, case):
    edits, spoil, message = BAD_VALUES[case]
    values = values_of(student_of(llama, plan_with(REPLACE)).attached)
    spoil(values)
    with pytest.raises(ValueError, match=message):
        student_of(llama, plan_with(*edits), values)


def test_a_plan_of_another_depth_is_refused(llama):
    with pytest.raises(ValueError, match="8-layer model, this one has 6"):
        student_of(llama, plan_with(n_layers=8))


def test_quantised_weights_are_refused():
    view = DecoderView(tiny_model("llama", n_layers=2))
    layer = view.model.model.layers[0]
    layer.mlp.up_proj.weight = torch.nn.Parameter(torch.zeros(12, 32, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match="quantised.*mlp.up_proj.weight"):
        LayerReplacement().build(view, Span(0, 2))


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_names_and_layouts(name):
    assert replacement_named(name).name == name
    assert set(replacement_named(name).layouts) <= {"stock", "code"} and replacement_named(name).about
    with pytest.raises(ValueError, match="x"):
        replacement_named(name, {"x": 1})


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="'layr'; did you mean 'layer'"):
        replacement_named("layr")
