"""Laws of the scale: folding equals scaling the stream, tied heads and the last norm stay right, other families are refused."""

import pytest
import torch
from families import FAMILIES, tiny_model
from test_fit_sweep import boundary, lacking, plan_without, samples

from shoal.checkpoint.in_memory import cut
from shoal.edits.student_of import student_of
from shoal.engine.student import Attached, Student
from shoal.engine.view import DecoderView
from shoal.fit import norm_scale as magnitude
from shoal.fit.fit_config import FitConfig
from shoal.fit.fit_job import FitJob
from shoal.fit.fit_plan import fit_plan
from shoal.fit.sites.site import CannotRefit
from shoal.fit.sums import folds_of
from shoal.fit.table import fit_of
from shoal.words.types import Batch, spans_of

ABSENT = {"olmo2": "something else to a stream of another scale"}


class Scaled(torch.nn.Module):
    def __init__(self, scale, returned):
        super().__init__()
        self.scale, self.returned = scale, returned

    def forward(self, h_BTD=None, *args, hidden_states=None, **kwargs):
        h_BTD = self.scale * (hidden_states if h_BTD is None else h_BTD)
        return (h_BTD, *[None] * (self.returned - 1)) if self.returned else h_BTD


def without_epsilon(family):
    """The one thing that breaks the indifference of a norm to the scale of what it reads."""
    model = tiny_model(family)
    for module in model.modules():
        for name in ("eps", "variance_epsilon"):
            if hasattr(module, name):
                setattr(module, name, 1e-14)
    return model


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_folding_equals_scaling_the_stream(family, monkeypatch):
    """Exact up to rounding where norms have no epsilon; tied heads included. Most norms compute in fp32 whatever they read."""
    view = DecoderView(without_epsilon(family))
    plan, text = plan_without(2, 4), samples(12)
    # Whatever the scale is, it must fold.
    monkeypatch.setattr("shoal.fit.norm_scale.mean_ratio", lambda *args, **options: 1.25)
    monkeypatch.setattr("shoal.fit.norm_scale._record", always_kept())
    if family in ABSENT:
        with pytest.raises(CannotRefit, match=rf"this {family} model adds {ABSENT[family]}"):
            fit_plan(view, plan, text, repair="magnitude", batch_size=12)
        return
    swept = fit_of("magnitude")(FitJob(view, lacking(2, 4), text.batches(12), config=FitConfig()), plan)
    assert set(swept.values) == {3, 5}
    batch = Batch(samples(3, seed=1).ids_NT)
    folded = view.logits(batch, student=Student(lacking(2, 4).removed, swept.values))
    modules = tuple(Attached(span, Scaled(1.25, view._n_returned), span.start) for span in spans_of((2, 4)))
    unfolded = view.logits(batch, student=Student(attached=modules))
    torch.testing.assert_close(folded, unfolded, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(folded, view.logits(batch, student=lacking(2, 4)), rtol=1e-4)


def always_kept():
    real = magnitude._record
    return lambda *args: real(*args).model_copy(update={"n_kept": 1})


def test_a_planted_scale_is_found_kept_and_stock():
    """The cut layer doubles the stream."""
    model = tiny_model("llama")
    view, text = DecoderView(model), samples(40)
    model.model.layers[2].forward = lambda hidden_states, *args, **kwargs: 2.0 * hidden_states
    fitted = fit_plan(view, plan_without(2), text, repair="magnitude", batch_size=20)
    (one,) = fitted.result.layers
    assert one.maps[0].scale == pytest.approx(2.0, rel=1e-5)
    assert one.error_after < 1e-8 < one.error_before
    student = student_of(view, fitted.plan, fitted.values)
    batch = Batch(samples(4, seed=1).ids_NT)
    torch.testing.assert_close(view.logits(batch, student=student), view.logits(batch), rtol=1e-3, atol=1e-3)
    stock = cut(view, student)
    with torch.no_grad():
        assert torch.equal(stock(input_ids=batch.ids_BT).logits, view.logits(batch, student=student))
    assert torch.equal(stock.model.embed_tokens.weight, model.model.embed_tokens.weight)


def test_a_cut_up_to_the_last_layer_has_nothing_to_scale():
    with pytest.raises(CannotRefit, match="final norm undoes any scale"):
        fit_plan(DecoderView(tiny_model("llama")), plan_without(4, 5), samples(12), repair="magnitude", batch_size=12)


def test_the_ratio_is_of_the_students_own_boundary():
    """Mean over samples of mean|y| / mean|x|, on the samples of the fit."""
    view, text = DecoderView(tiny_model("llama")), samples(40)
    swept = fit_of("magnitude")(FitJob(view, lacking(3), text.batches(40), config=FitConfig()), plan_without(3))
    (batch,) = text.batches(40)
    fitted = folds_of([batch])[0] > 0
    x, y = (boundary(view, batch, Student(), stop)[fitted].double().abs().mean((1, 2)) for stop in (3, 4))
    assert swept.layers[0].maps[0].scale == pytest.approx(float((y / x).mean()), rel=1e-6)
