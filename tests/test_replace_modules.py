"""Modules in place of a span: they start as plain removal bit for bit, and compute what their formulas say."""

import math

import pytest
import torch
from families import FAMILIES, VOCAB, tiny_config, tiny_model
from test_replace_layer import MASK_BT, PADDED, SPAN, plan_with, removed
from transformers import AutoModelForCausalLM

from shoal.edits.replace.family_mlp import forms_of
from shoal.edits.replace.modules import ACTIVATIONS, STREAM_MODULES, new_module, rotate
from shoal.edits.replace.replace_edit import Replace
from shoal.edits.replace.table import REPLACEMENTS, parse_replacement, replacement_named
from shoal.edits.student_of import attach, student_of, values_of
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.words.types import Batch, Span

NAMES = [name for name in REPLACEMENTS if name != "layer"]
RANDOM_START = {"ffn": {"form": "paper"}}
LOW_RANK = {"rank": 3}


@pytest.fixture(params=sorted(FAMILIES), scope="module")
def view(request):
    return DecoderView(tiny_model(request.param))


@pytest.fixture(scope="module")
def llama():
    return DecoderView(tiny_model("llama"))


def shaken(module, seed=0):
    """The module with random numbers in place of its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return module


# -- the start -----------------------------------------------------------------------------------------------------------


def test_every_zero_start_is_plain_removal_bit_for_bit(view):
    plain = view.logits(PADDED, student=removed(2, 3, 4))
    for name in NAMES:
        assert replacement_named(name).starts_as == "zero"
        student = student_of(view, plan_with(Replace(start=2, stop=5, replacement=name)))
        assert torch.equal(view.logits(PADDED, student=student), plain), name


@pytest.mark.in_turn(3)
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_inherited_layers_start_as_removal_of_the_rest_under_their_own_arguments(view, layers):
    """Families with alternating windows give each of them another mask."""
    edit = Replace(start=1, stop=5, replacement="layer", options={"layers": layers})
    student = student_of(view, plan_with(edit))
    assert torch.equal(view.logits(PADDED, student=student), view.logits(PADDED, student=removed(*range(1 + layers, 5))))


def test_more_layers_than_the_span_has_cannot_be_inherited(llama):
    with pytest.raises(ValueError, match="4 inherited layers do not fit"):
        replacement_named("layer", {"layers": 4}).build(llama, SPAN)


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_building_twice_gives_equal_bits_and_leaves_the_random_state_alone(llama, name):
    before = torch.random.get_rng_state()
    one, two = (replacement_named(name).build(llama, SPAN).state_dict() for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_the_papers_form_starts_at_random_without_residual(llama):
    replacement = replacement_named("ffn", {"form": "paper"})
    module = replacement.build(llama, SPAN)
    h_BTD = torch.randn(2, 3, 32)
    expected = module.down(torch.relu(module.up(h_BTD)))
    assert replacement.starts_as == "random" and module.up.weight.shape == (128, 32)
    assert torch.equal(module(h_BTD), expected) and expected.abs().sum() > 0


# -- what they compute ---------------------------------------------------------------------------------------------------


def rms(x):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6)


def centred(x):
    x = x - x.mean(-1, keepdim=True)
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6)


def naive(module, x):
    """The formulas of the docstrings, written out in fp64."""
    p = {name: value for name, value in module.state_dict().items()}
    kind, options = module.kind, module.options
    if "norm.weight" in p:
        n = (rms(x) if options["norm"] == "rms" else centred(x)) * p["norm.weight"] + p.get("norm.bias", 0)
    if kind == "ffn":
        hidden = n @ p["up.weight"].T + p.get("up.bias", 0)
        return x + ACTIVATIONS[options["activation"]](hidden) @ p["down.weight"].T + p.get("down.bias", 0)
    if kind == "swiglu":
        gate = ACTIVATIONS[options["activation"]](n @ p["gate.weight"].T)
        return x + (gate * (n @ p["up.weight"].T)) @ p["down.weight"].T
    if kind == "linear" and options.get("rank"):
        return x + n @ p["down.weight"].T @ p["up.weight"].T + p["up.bias"]
    if kind == "linear":
        return x + n @ p["map.weight"].T + p["map.bias"]
    if kind == "free":
        return x + x @ p["map.weight"].T + p.get("map.bias", 0)
    h_DD = rotate(torch.eye(x.shape[-1], dtype=torch.float64), inverse=True)  # The rows are H^T e_i, so this is H.
    return x @ (h_DD @ torch.diag(1 + p["delta"]) @ h_DD.T).T


NORMED = {"norm": "rms", "eps": 1e-6}
FORMS = {
    "ffn": {"width": 20, "activation": "gelu", "bias": True, **NORMED},
    "ffn without biases": {"width": 20, "activation": "relu", "bias": False, "norm": "layer", "eps": 1e-6},
    "swiglu": {"width": 20, "activation": "silu", **NORMED},
    "linear": {"norm": "layer", "eps": 1e-6},
    "linear of low rank": {**NORMED, "rank": 3},
    "free": {"bias": True},
    "hadamard": {},
}


def test_every_module_has_a_formula_here():
    assert {form.split()[0] for form in FORMS} == set(NAMES)
    ours = {kind for kind, one in STREAM_MODULES.items() if one.__module__ == new_module.__module__}
    assert ours == set(NAMES)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("hidden_size", [12, 16])
def test_formulas(form, hidden_size):
    module = new_module(form.split()[0], hidden_size, FORMS[form]).double()
    module.start(torch.Generator().manual_seed(0))
    shaken(module)
    x_BTD = torch.randn(2, 5, hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(module(x_BTD), naive(module, x_BTD), rtol=0, atol=1e-12)  # Sums are fp64 in another order.
    assert torch.allclose(x_BTD + module.change(x_BTD), module(x_BTD), rtol=0, atol=1e-12)
    assert not torch.allclose(module(x_BTD), x_BTD, atol=0.05)


@pytest.mark.parametrize("d", [1, 2, 3, 8, 12, 20, 28, 48, 64, 96])
def test_the_rotation_of_hadamard_is_orthogonal_and_mixes_every_channel(d):
    h_DD = rotate(torch.eye(d, dtype=torch.float64), inverse=False)
    assert torch.allclose(h_DD @ h_DD.T, torch.eye(d, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(rotate(h_DD, inverse=True), torch.eye(d, dtype=torch.float64), atol=1e-12)
    if d & (d - 1) == 0:  # The matrix of the paper is symmetric, with all entries of one size.
        assert torch.allclose(h_DD.abs(), torch.full((d, d), 1 / math.sqrt(d), dtype=torch.float64), atol=1e-12)
        assert torch.allclose(h_DD, h_DD.T, atol=1e-12)


def test_half_precision_norms_are_computed_in_single(llama):
    module = replacement_named("swiglu").build(llama, SPAN)
    x_BTD = 1e3 * torch.randn(1, 2, 32)  # Squares overflow half precision.
    assert torch.isfinite(module.half()(x_BTD.half())).all()


# -- as part of a student --------------------------------------------------------------------------------------------------


def test_values_travel_and_gradients_reach_every_parameter(llama):
    for name in NAMES:
        plan = plan_with(Replace(start=2, stop=5, replacement=name))
        student = student_of(llama, plan)
        shaken(student.attached[0].module)
        again = student_of(llama, plan, values_of(student.attached))
        assert torch.equal(llama.logits(PADDED, student=again), llama.logits(PADDED, student=student)), name
        module = student.attached[0].module.requires_grad_()
        reading = llama.read(PADDED)
        llama.run_layer(2, reading.h_BTD, reading, student=student)[MASK_BT].square().sum().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in module.parameters())


def test_values_of_several_inherited_layers_travel(llama):
    plan = plan_with(Replace(start=1, stop=5, replacement="layer", options={"layers": 2}))
    student = student_of(llama, plan)
    shaken(student.attached[0].module)
    values = values_of(student.attached)
    assert {name.split(".")[2] for name in values} == {"0", "1"}
    again = student_of(llama, plan, values)
    assert torch.equal(llama.logits(PADDED, student=again), llama.logits(PADDED, student=student))


def test_a_module_follows_the_models_dtype():
    view = DecoderView(tiny_model("llama", n_layers=4).bfloat16())
    student = Student(
        attached=(attach(replacement_named("swiglu"), Span(1, 3), replacement_named("swiglu").build(view, SPAN)),)
    )
    assert {p.dtype for p in student.attached[0].module.parameters()} == {torch.bfloat16}
    assert view.logits(Batch(torch.randint(3, VOCAB, (1, 5))), student=student).dtype == torch.bfloat16


# -- options -------------------------------------------------------------------------------------------------------------


def test_options_left_out_are_the_familys(llama):
    swiglu = replacement_named("swiglu").resolved(llama)
    assert (swiglu.width, swiglu.activation, swiglu.norm, swiglu.eps) == (48, "silu", "rms", 1e-6)
    gpt2 = DecoderView(tiny_model("gpt2", n_layers=3))
    ffn = replacement_named("ffn").resolved(gpt2)
    assert (ffn.width, ffn.activation, ffn.norm, ffn.bias) == (128, "gelu_tanh", "layer", True)
    assert replacement_named("swiglu", ffn.model_dump(include={"width"})).width == 128
    assert forms_of(DecoderView(tiny_model("gemma2", n_layers=3))).activation == "gelu_tanh"


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_a_resolved_description_survives_a_plan(llama, name):
    resolved = replacement_named(name).resolved(llama)
    assert replacement_named(name, resolved.options()) == resolved == resolved.resolved(llama)


def test_options_behind_the_name():
    assert parse_replacement("none") is None
    assert parse_replacement("swiglu:width=7,layout=code") == replacement_named("swiglu", {"width": 7, "layout": "code"})
    assert parse_replacement("layer:layers=2").n_inherited == 2
    bad = {
        "swiglu:wid=3": "wid", "swiglu:width": "no option", "swiglu:width=": "no option", "none:a=1": "no options",
        "layer:layers=0": "layers", "swigl": "did you mean 'swiglu'", "linear:rank=x": "rank", "": "unknown replacement",
    }  # fmt: skip
    for text, message in bad.items():
        with pytest.raises(ValueError, match=message):
            parse_replacement(text)


def test_a_rank_above_the_hidden_size_is_refused(llama):
    with pytest.raises(ValueError, match="rank=33 is above the hidden size 32"):
        replacement_named("linear", {"rank": 33}).resolved(llama)


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)


@DTYPES
@pytest.mark.parametrize(
    ("family", "replacement", "layout"),
    [
        ("llama", "swiglu", "stock"),
        ("granite", "swiglu", "stock"),  # The scale of its residual is divided out.
        ("stablelm", "swiglu", "stock"),
        ("gpt2", "ffn", "stock"),
        ("phi", "linear:rank=2", "stock"),
        ("gemma2", "swiglu", "code"),  # There is a norm behind the MLP.
    ],
)
def test_what_a_stock_layer_can_hold_is_the_same_in_every_precision(family, replacement, layout, dtype):
    view = DecoderView(tiny_model(family, n_layers=3).to(dtype))
    assert parse_replacement(replacement).resolved(view).layout == layout


@DTYPES
def test_a_norm_inside_a_wide_mlp_is_seen_in_every_precision(dtype):
    """Random outputs of many units have nearly one length, so a norm nearly passes for a factor; rounding must not hide it."""
    config = tiny_config("bitnet", n_layers=3)
    config.hidden_size, config.intermediate_size, config.hidden_act = 128, 512, "silu"
    config.head_dim = 128 // config.num_attention_heads
    torch.manual_seed(0)
    view = DecoderView(AutoModelForCausalLM.from_config(config).eval().to(dtype))
    for width in (16, 128, 512):
        assert parse_replacement(f"swiglu:width={width}").resolved(view).layout == "code", width
