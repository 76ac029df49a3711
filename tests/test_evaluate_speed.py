"""Speed: the arithmetic of medians and ratios is exact; the models run as asked; no assertion on the clock."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch
from families import every_family, tiny_model

import shoal.evaluate.speed as speed_module
from shoal.checkpoint.in_memory import cut
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.evaluate.peak_memory import peak_bytes
from shoal.evaluate.speed import AtDepth, Rates, Speed, at_depths, fit_layer_time, in_turns, median_interval, median_iqr, speed
from shoal.words.types import Unit


def made(teacher, student):
    rest = dict(batch_size=1, prompt_length=4, new_tokens=2, device="cpu", dtype="float32", n_threads=1)
    ours, theirs = (Rates(prefill=one, decode=tuple(10 * v for v in one)) for one in (teacher, student))
    return Speed(teacher=ours, student=theirs, teacher_layers=16, student_layers=12, **rest)


def test_ratios_are_student_over_teacher_round_by_round():
    both = made((10.0, 20.0, 40.0), (20.0, 30.0, 120.0))
    assert both.ratios("prefill") == both.ratios("decode") == (2.0, 1.5, 3.0)
    assert both.bound_of_layers == both.bound("decode") == 16 / 12, "no depths: nothing but layers is known"
    assert both.first_token_seconds(both.teacher) == 4 / 20.0


def test_median_and_interquartile_range():
    assert median_iqr([5.0]) == (5.0, 0.0)
    assert median_iqr([4.0, 1.0, 3.0, 2.0, 5.0]) == (3.0, 2.0)


NOT_HALVED: set[str] = set()


@pytest.mark.parametrize("family", every_family())
def test_runs_on_every_family_and_survives_json(family):
    teacher, student = (DecoderView(tiny_model(family, n_layers=n)) for n in (4, 3))
    got = speed(teacher, student, batch_size=2, prompt_length=5, new_tokens=3, rounds=2, warmup=0)
    assert (got.teacher_layers, got.student_layers, got.device) == (4, 3, "cpu")
    for rates in (got.teacher, got.student):
        assert len(rates.prefill) == len(rates.decode) == 2 and min(*rates.prefill, *rates.decode) > 0
        assert rates.peak_bytes > 0
    assert [one.layers for one in got.depths] == [1, 2] or family in NOT_HALVED
    assert got.bound("decode") > 0
    assert Speed.from_json(got.to_json()) == got


def test_rounds_take_turns_swap_order_and_count_what_they_ran(monkeypatch):
    teacher, student = (DecoderView(tiny_model("llama", n_layers=n)) for n in (3, 2))
    order, shapes = [], []
    for name, view in (("teacher", teacher), ("student", student)):
        forward = view.model.forward

        def spy(*args, name=name, forward=forward, **kwargs):
            order.append(name)
            shapes.append(tuple(kwargs["input_ids"].shape))
            return forward(*args, **kwargs)

        monkeypatch.setattr(view.model, "forward", spy)
    monkeypatch.setattr(sys.modules["shoal.evaluate.speed"], "at_depths", lambda view: {})
    clock = iter(range(1000))
    monkeypatch.setattr(sys.modules["shoal.evaluate.speed"], "_now", lambda device: float(next(clock)))
    got = speed(teacher, student, batch_size=2, prompt_length=5, new_tokens=3, rounds=2, warmup=1)
    per_round = ["teacher"] * 4 + ["student"] * 4 + ["student"] * 4 + ["teacher"] * 4
    assert order == per_round + per_round[:8] + ["teacher"] * 2 + ["student"] * 2, "three rounds, and the peaks"
    assert shapes[:4] == [(2, 5)] + [(2, 1)] * 3, "one prefill, then one token a step"
    assert got.teacher.prefill == (10.0, 10.0) and got.student.decode == (6.0, 6.0), "2 samples x 5 tokens and x 3 per tick"


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 0), ("prompt_length", 0), ("new_tokens", 0), ("rounds", 0), ("warmup", -1)]
)
def test_impossible_counts_are_refused(name, value):
    view = DecoderView(tiny_model("llama", n_layers=2))
    with pytest.raises(ValueError, match=f"{name}={value} needs at least"):
        speed(view, view, **{name: value})


def test_models_on_two_devices_are_refused():
    view = DecoderView(tiny_model("llama", n_layers=2))
    elsewhere = SimpleNamespace(device=torch.device("cuda", 0))
    with pytest.raises(ValueError, match="put both on one device"):
        speed(view, elsewhere)


def test_two_dtypes_are_both_named():
    teacher, student = (DecoderView(tiny_model("llama", n_layers=2)) for _ in range(2))
    student.model.to(torch.bfloat16)
    rest = dict(prompt_length=2, new_tokens=1, rounds=1, warmup=0)
    assert speed(teacher, teacher, **rest).dtype == "float32"
    assert speed(teacher, student, **rest).dtype == "float32 and bfloat16"


# -- the bound -------------------------------------------------------------------------------------------------------------


def test_the_line_of_layer_times_is_recovered():
    found = fit_layer_time([(n, 3.0 + 0.5 * n) for n in (1, 8, 16)])
    assert (found.around, found.per_layer) == (pytest.approx(3.0), pytest.approx(0.5)) and found.seconds(4) == pytest.approx(
        5.0
    )
    through_zero = fit_layer_time([(n, 2.0 * n - 1) for n in (1, 8)])
    assert through_zero.around == 0 and through_zero.per_layer == pytest.approx((1 + 8 * 15) / 65)


def test_the_bound_has_its_closed_form_and_the_student_takes_no_part():
    times = {1: 4.0, 8: 11.0, 16: 19.0}  # The times are t0 = 3 and t1 = 1.

    def rates(seconds):
        return dict(prefill=(8 / seconds,) * 3, decode=(2 / seconds,) * 3)

    depths = tuple(AtDepth(layers=n, rates=Rates(**rates(times[n]))) for n in (1, 8))
    for student_seconds in (15.0, 1.0):
        both = Speed(
            teacher=Rates(**rates(times[16])), student=Rates(**rates(student_seconds)), depths=depths, teacher_layers=16,
            student_layers=12, batch_size=2, prompt_length=4, new_tokens=2, device="cpu", dtype="float32", n_threads=1,
        )  # fmt: skip
        assert both.bound("prefill") == both.bound("decode") == pytest.approx(19 / 15)
        assert both.layer_time("decode").around == pytest.approx(3.0)
        assert both.bound("decode") < both.bound_of_layers
        assert both.ratio("decode").value == pytest.approx(19 / student_seconds)


def test_the_median_lies_between_order_statistics_of_the_sign_test():
    values = [float(v) for v in (5, 1, 9, 3, 7, 2, 8, 4, 6)]
    found = median_interval(values)
    assert (found.value, found.low, found.high) == (5.0, 2.0, 8.0)
    assert found.level == pytest.approx(1 - 2 * (1 + 9) / 2**9)
    few = median_interval([1.0, 2.0, 3.0])
    assert (few.low, few.high, few.level) == (1.0, 3.0, 0.75), "three values cannot promise 95 %, and say so"
    assert median_interval([4.0]).level == 0.0


def test_the_interval_covers_the_median_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    draws, median = torch.rand(4000, 9, generator=generator).exp(), math.exp(0.5)
    hits = sum(one.low <= median <= one.high for one in map(median_interval, draws.tolist()))
    assert hits / 4000 == pytest.approx(0.961, abs=0.01)  # The tolerance is three standard errors of the simulation.


def test_a_model_against_itself_is_as_fast_as_itself(monkeypatch):
    """On a clock of forwards alone: every ratio is 1, so the interval contains it."""
    view = DecoderView(tiny_model("llama", n_layers=4))
    clock = iter(range(10_000))
    monkeypatch.setattr(sys.modules["shoal.evaluate.speed"], "_now", lambda device: float(next(clock)))
    got = speed(view, view, prompt_length=4, new_tokens=2, rounds=3, warmup=0)
    for phase in ("prefill", "decode"):
        ratio = got.ratio(phase)
        assert ratio.low <= 1 <= ratio.high and got.bound(phase) == 1


def test_shallow_teachers_are_its_first_layers_and_share_its_weights():
    view = DecoderView(tiny_model("llama", n_layers=6))
    found = at_depths(view)
    assert list(found) == [1, 3]
    for n, model in found.items():
        assert model.config.num_hidden_layers == n
        assert model.model.layers[0].mlp.up_proj.weight is view.model.model.layers[0].mlp.up_proj.weight


# -- peak memory -----------------------------------------------------------------------------------------------------------


def test_peak_bytes_has_a_closed_form():
    x = torch.zeros(1000)

    def run():
        a = x + 1  # 4000
        b = a * 2  # 8000
        del a  # 4000
        c = torch.cat([b, b])  # 12000
        d = c.view(2, 1000).t()  # A view adds nothing.
        del b
        return d.sum()

    assert peak_bytes(run, held=[x], device=torch.device("cpu")) == 12_000
    assert peak_bytes(lambda: x.view(10, 100).t(), held=[x], device=torch.device("cpu")) == 0
    assert peak_bytes(lambda: x.view(10, 100).t(), held=[], device=torch.device("cpu")) == 4000


def test_a_longer_prompt_and_more_layers_hold_more():
    view = DecoderView(tiny_model("llama", n_layers=6))
    shallow = cut(view, Student(removed=frozenset({Unit("layer", 3), Unit("layer", 4)})))
    short, long = (
        [one.peak_bytes for one in in_turns([view.model, shallow], prompt_length=n, new_tokens=1, rounds=1, warmup=0)]
        for n in (4, 32)
    )
    assert short[0] < long[0] and short[1] < long[1] and short[1] < short[0] and long[1] < long[0]


def test_rounds_are_as_many_as_the_seconds_have_room_for(monkeypatch):
    """Planted: a round of the teacher takes a second and one of all 2.5; the warm-up and the memory take one each."""
    clock = iter(range(1000))
    monkeypatch.setattr(speed_module.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(speed_module, "_steps", lambda *args: iter([None]))
    model = DecoderView(tiny_model("llama", n_layers=2)).model
    found = {seconds: speed_module.rounds_within(seconds, model) for seconds in (0.5, 5, 8.4, 8.6, 13.6, 23.6, 1000)}
    assert found == {0.5: 0, 5: 0, 8.4: 0, 8.6: 1, 13.6: 3, 23.6: 7, 1000: 9}
    assert all(1 + (n + 2) * speed_module.ROUND_OF_ALL <= seconds for seconds, n in found.items() if n)


@pytest.mark.parametrize("seconds", [0.5, 8.5, 85.0])
def test_the_question_how_many_rounds_fit_costs_a_part_of_the_seconds(seconds, monkeypatch):
    """Planted: a prompt and each token take a second, so a round takes 33; it is given up when it can no longer fit."""
    clock, steps = iter(range(1000)), []
    monkeypatch.setattr(speed_module.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(speed_module, "_steps", lambda *args: (steps.append(n) for n in range(33)))
    model = DecoderView(tiny_model("llama", n_layers=2)).model
    assert speed_module.rounds_within(seconds, model) == 0
    assert len(steps) <= 1 + seconds / 8.5
