"""Modules in closed form: planted ones are recovered, narrower forms are never better, values mean what is solved."""

import math
from typing import ClassVar

import pytest
import torch
from families import tiny_model
from test_fit_sweep import LENGTH, boundary, samples

from shoal import load_recipe
from shoal.edits.replace.closed_form import ClosedForm
from shoal.edits.replace.described import StreamReplacement
from shoal.edits.replace.hadamard import rotated_channels, rotation_matrix
from shoal.edits.replace.linear import low_rank_change
from shoal.edits.replace.modules import StreamModule
from shoal.edits.replace.table import REPLACEMENTS, replacement_named
from shoal.engine.student import Attached, Student
from shoal.engine.view import DecoderView
from shoal.fit.fit_config import FitConfig
from shoal.fit.fit_job import FitJob
from shoal.fit.held_out import LayerEnds, observe
from shoal.fit.replacement_fit import closed_form_of, fit_replacements
from shoal.fit.sites.site import CannotRefit
from shoal.fit.solve import ridge_change, solve_for, squared_error
from shoal.fit.sums import folds_of, no_sums
from shoal.words.types import Batch, Span

D = 12
KINDS = {"linear": {}, "low rank": {"rank": 3}, "free": {}, "free with bias": {"bias": True}, "hadamard": {}}


def described(kind):
    return replacement_named(kind.split()[0] if kind != "low rank" else "linear", KINDS[kind])


def module_of(kind, *, seed=0, size=D):
    """A module of the kind with random values: a planted truth."""
    view = DecoderView(tiny_model("llama"))
    module = described(kind).resolved(view).module(size).double()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if "norm" not in name:
                value.copy_(0.3 * torch.randn(value.shape, generator=draw))
    return module


def sums_of(x_ND, y_ND, *, reads=lambda x: x, weights_N=None, n=1):
    """Sums of n shards of the tokens."""
    shards = []
    weights_N = torch.ones(len(x_ND)) if weights_N is None else weights_N
    for part in torch.arange(len(x_ND)).chunk(n):
        one = no_sums(D, D)
        sinks_N = torch.zeros(len(part), dtype=torch.bool)
        one.add_tokens(reads(x_ND[part]), y_ND[part] - x_ND[part], weights_N=weights_N[part], sinks_N=sinks_N)
        shards.append(one)
    return shards


def change_of(form):
    """The best change of the form; where it may be any linear map, a ridge regression."""
    return form.change or (lambda sums, ridge: ridge_change(sums, ridge, bias=form.bias))


def tokens(n=400, seed=3):
    draw = torch.Generator().manual_seed(seed)
    mix_DD = torch.randn(D, D, generator=draw, dtype=torch.float64)
    return torch.randn(n, D, generator=draw, dtype=torch.float64) @ mix_DD + 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_module_is_recovered_exactly(kind):
    planted, x_ND = module_of(kind), tokens()
    y_ND = planted(x_ND).detach()
    form = closed_form_of(planted)
    shards = sums_of(x_ND, y_ND, reads=lambda x: form.reads(x).detach(), n=3)
    found = solve_for(shards, change_of(form), ridge=0.0)
    fitted = module_of(kind, seed=1)
    fitted.load_state_dict(closed_form_of(fitted).values(found.change_ED))
    torch.testing.assert_close(fitted(x_ND), y_ND, rtol=1e-8, atol=1e-8)
    assert found.r2 == pytest.approx(1.0, abs=1e-9) and found.r2_folds == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_values_of_a_module_are_the_change_that_was_solved(kind):
    module, x_ND = module_of(kind), tokens()
    y_ND = x_ND.roll(1, 0) + 0.1 * tokens(seed=4)
    form = closed_form_of(module)
    read_ND = form.reads(x_ND).detach()
    for ridge in (1e-3, math.inf):
        (sums,) = sums_of(x_ND, y_ND, reads=lambda x: form.reads(x).detach())
        change_ED = change_of(form)(sums, ridge)
        module.load_state_dict(form.values(change_ED))
        expected = x_ND + torch.nn.functional.pad(read_ND, (0, 1), value=1.0) @ change_ED
        torch.testing.assert_close(module(x_ND).detach(), expected, rtol=1e-9, atol=1e-9)
        assert float(squared_error(sums, change_ED)) == pytest.approx(float((y_ND - expected).square().sum()), rel=1e-9)
    torch.testing.assert_close(module(x_ND).detach(), x_ND)  # An infinite ridge is plain removal.


def test_each_form_is_never_better_than_the_one_that_holds_it():
    """Hadamard and low rank within the affine map; a rank within the next; without a ridge and with any weights."""
    x_ND = tokens()
    y_ND = torch.tanh(x_ND).roll(1, 1) + 0.3 * x_ND
    weights_N = torch.rand(len(x_ND), generator=torch.Generator().manual_seed(0)) + 0.1
    (sums,) = sums_of(x_ND, y_ND, weights_N=weights_N)

    def error(change):
        return squared_error(sums, change(sums, 0.0))

    affine, linear = (error(lambda sums, ridge, bias=bias: ridge_change(sums, ridge, bias=bias)) for bias in (True, False))
    ranks = [error(low_rank_change(rank)) for rank in range(1, D + 1)]
    nothing = float(sums.rr)
    assert affine < linear < error(rotated_channels) < nothing
    assert all(lower >= higher for lower, higher in zip(ranks, ranks[1:], strict=False))
    assert ranks[-1] == pytest.approx(affine, rel=1e-9) and ranks[0] < nothing


def test_low_rank_is_the_best_of_its_rank():
    """No descent from it, and none from elsewhere, gets below: the naive search over both factors."""
    x_ND, rank = tokens(200), 2
    y_ND = x_ND + torch.tanh(x_ND).roll(1, 1)
    (sums,) = sums_of(x_ND, y_ND)
    best = squared_error(sums, low_rank_change(rank)(sums, 0.0))
    down, up, bias = (torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in ((D, rank), (rank, D), (1, D)))
    optimizer = torch.optim.LBFGS([down, up, bias], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def loss():
        optimizer.zero_grad()
        value = (x_ND + x_ND @ down @ up + bias - y_ND).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    found = float(loss().detach())
    assert best <= found * (1 + 1e-9) and best == pytest.approx(found, rel=1e-3)


def test_the_hadamard_basis_is_the_modules():
    h_DD, x_ND = rotation_matrix(D, like=tokens()), tokens()
    torch.testing.assert_close(h_DD @ h_DD.mT, torch.eye(D, dtype=torch.float64))
    module = module_of("hadamard")
    torch.testing.assert_close(module(x_ND).detach(), x_ND + (x_ND @ h_DD * module.delta) @ h_DD.mT)


# -- in a student --------------------------------------------------------------------------------------------------------


def student_with(view, kind, *spans):
    description = described(kind).resolved(view).model_copy(update={"layout": "code"})
    return Student(attached=tuple(Attached(span, description.build(view, span), span.start) for span in spans))


@pytest.mark.parametrize("kind", KINDS)
def test_modules_are_fitted_front_to_back_and_errors_are_those_of_the_student(kind):
    view, text = DecoderView(tiny_model("llama")), samples(60)
    spans = (Span(1, 3), Span(4, 5))
    start = student_with(view, kind, *spans)
    found = fit_replacements(FitJob(view, start, text.batches(16)))
    assert [(one.layer, one.target) for one in found.layers] == [(1, 3), (4, 5)]
    (batch,) = text.batches(60)
    held = folds_of([batch])[0] == 0
    for number, (one, span) in enumerate(zip(found.layers, spans, strict=True)):
        after = Student(attached=(*found.attached[: number + 1], *start.attached[number + 1 :]))
        before = Student(attached=(*found.attached[:number], *start.attached[number:]))
        goal = boundary(view, batch, Student(), span.stop)[held].double()
        for student, error in ((before, one.error_before), (after, one.error_after)):
            miss = boundary(view, batch, student, span.stop)[held].double() - goal
            assert error == pytest.approx(float((miss.square().sum(-1) / goal.square().sum(-1)).mean()), rel=1e-4)
        assert one.error_after <= one.error_before
    assert all(not value.any() for name, value in start.attached[0].module.state_dict().items() if name == "map.bias")


def test_known_states_of_the_teacher_change_no_bit():
    view, text = DecoderView(tiny_model("llama")), samples(40)
    batches = text.batches(20)
    known = {stop: [boundary(view, batch, Student(), stop) for batch in batches] for stop in range(1, 7)}
    start = student_with(view, "free", Span(2, 4))
    one, two = (fit_replacements(FitJob(view, start, batches, known=states)).attached[0].module for states in (None, known))
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


def test_a_sink_that_arises_inside_the_span_does_not_ruin_the_other_tokens():
    """No input of the map tells the first token from the others yet: a map that met it exactly would miss all others."""
    view, text = DecoderView(tiny_model("llama")), samples(60)
    batches = text.batches(20)
    inputs = [boundary(view, batch, Student(), 2) for batch in batches]
    mix_DD = torch.eye(inputs[0].shape[-1]) + 0.3 * torch.randn(
        2 * inputs[0].shape[-1:], generator=torch.Generator().manual_seed(5)
    )
    goals = [h_BTD @ mix_DD for h_BTD in inputs]
    for goal_BTD in goals:
        goal_BTD[:, 0] += 300 * goal_BTD.norm(dim=-1).median()
    start = student_with(view, "linear", Span(2, 4))
    (found,) = fit_replacements(FitJob(view, start, batches, known={4: goals})).layers
    assert found.n_kept == 1 and found.maps[0].n_sinks and found.maps[0].r2 > 0.5
    assert found.error_after < found.error_before


def test_the_papers_own_ratio_of_hadamard():
    """Mean over samples of mean |(y H)_k| / mean |(x H)_k|."""
    view, text = DecoderView(tiny_model("llama")), samples(40)
    start = student_with(view, "hadamard", Span(2, 3))
    found = fit_replacements(
        FitJob(view, start, text.batches(40), config=FitConfig(solve="ratio", sinks="counted", keep="always"))
    )
    (batch,) = text.batches(40)
    fitted = folds_of([batch])[0] > 0
    h_DD = rotation_matrix(view.hidden_size, like=torch.zeros((), dtype=torch.float64))
    x, y = ((boundary(view, batch, Student(), stop)[fitted].double() @ h_DD).abs().mean(1) for stop in (2, 3))
    expected = (y / x).mean(0) - 1
    (one,) = found.layers
    module = found.attached[0].module
    torch.testing.assert_close(module.delta.double(), expected, rtol=1e-5, atol=1e-6)
    assert one.maps[0].r2 < 1 and one.maps[0].form == "module"


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_an_entry_with_a_closed_form_says_which(name):
    kind, view = REPLACEMENTS[name], DecoderView(tiny_model("llama"))
    module = replacement_named(name).build(view, Span(1, 4))
    assert (kind.closed_form(module) is not None) == kind.has_closed_form == (closed_form_of(module) is not None)


def test_a_ratio_is_refused_where_the_form_has_none():
    view = DecoderView(tiny_model("llama"))
    with pytest.raises(CannotRefit, match="'free' has no values by ratio"):
        fit_replacements(
            FitJob(view, student_with(view, "free", Span(2, 3)), samples(12).batches(12), config=FitConfig(solve="ratio"))
        )


def test_a_student_without_a_closed_form_is_refused():
    view = DecoderView(tiny_model("llama"))
    description = replacement_named("layer").resolved(view)
    student = Student(attached=(Attached(Span(1, 3), description.build(view, Span(1, 3)), 1),))
    with pytest.raises(CannotRefit, match="linear, free, hadamard"):
        fit_replacements(FitJob(view, student, samples(12).batches(12)))


def test_padding_enters_no_observation():
    view = DecoderView(tiny_model("llama"))
    lengths_N = torch.randint(4, LENGTH, (40,), generator=torch.Generator().manual_seed(3))
    text = samples(lengths=lengths_N)
    ends = []
    for filler in (0, 7):
        ids_NT = torch.where(torch.arange(LENGTH) < lengths_N[:, None], text.ids_NT, filler)
        batch = Batch(ids_NT, (torch.arange(LENGTH) < lengths_N[:, None]).long())
        reading, folds = view.read(batch), folds_of([batch])
        goal = boundary(view, batch, Student(), 2)
        ends.append(LayerEnds([reading], [boundary(view, batch, Student(), 1)], [goal], folds))

    def error(one):
        return observe(one, lambda h_BTD, reading: (h_BTD, h_BTD), config=FitConfig(), no_sums=lambda: no_sums(32, 32))

    (_, first, sums), (_, second, others) = (error(one) for one in ends)
    assert first == second and all(torch.equal(a.hh_EE, b.hh_EE) for a, b in zip(sums, others, strict=True))


class Shift(StreamModule):
    """``x + b``."""

    kind = "shift"

    def __init__(self, hidden_size):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(hidden_size))

    def start(self, generator):
        torch.nn.init.zeros_(self.bias)

    def change(self, h_BTD):
        return self.bias.expand_as(h_BTD)


class ShiftReplacement(StreamReplacement):
    """``x + b``; no options."""

    name: ClassVar[str] = "shift"
    about: ClassVar[str] = "a constant"
    layouts: ClassVar[tuple[str, ...]] = ("code",)
    has_closed_form: ClassVar[bool] = True

    @classmethod
    def closed_form(cls, module):
        def mean(sums, ridge):
            change_ED = torch.zeros_like(sums.hr_ED)
            change_ED[-1] = 0.0 if math.isinf(ridge) else sums.hr_ED[-1] / sums.hh_EE[-1, -1]
            return change_ED

        return ClosedForm(lambda h_BTD: h_BTD, lambda change_ED: {"bias": change_ED[-1]}, bias=True, change=mean)

    def with_forms(self, forms):
        return self

    def module_options(self):
        return {}

    def most_parameters(self, shape):
        return shape.hidden


def test_a_toy_replacement_is_solved_from_what_its_entry_says(monkeypatch):
    """The mean of what the span adds, over the tokens of the fit; recipe and refusals know that it has a closed form."""
    monkeypatch.setitem(REPLACEMENTS, "shift", ShiftReplacement)
    assert load_recipe("default", {"replace": "shift", "repair": "solve"}).repair == "solve"
    with pytest.raises(ValueError, match="use --replace linear, free, hadamard, shift"):
        load_recipe("default", {"replace": "layer", "repair": "solve"})
    view, text = DecoderView(tiny_model("llama")), samples(40)
    start = Student(attached=(Attached(Span(2, 4), replacement_named("shift").build(view, Span(2, 4)), 2),))
    config = FitConfig(weights="plain", sinks="counted", keep="always", ridge=0.0)
    found = fit_replacements(FitJob(view, start, text.batches(40), config=config))
    (batch,) = text.batches(40)
    fitted = folds_of([batch])[0] > 0
    x, y = (boundary(view, batch, Student(), at)[fitted].double() for at in (2, 4))
    torch.testing.assert_close(found.attached[0].module.bias.double(), (y - x).mean((0, 1)), rtol=1e-5, atol=1e-6)
