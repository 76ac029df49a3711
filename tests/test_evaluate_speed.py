"""Speed: the arithmetic of medians and ratios is exact; the models run as asked; no assertion on the clock."""

import sys
from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES, tiny_model

from shoal.decoder import DecoderView
from shoal.evaluate.speed import Rates, Speed, median_iqr, speed


def made(teacher, student):
    rest = dict(batch_size=1, prompt_length=4, new_tokens=2, device="cpu", dtype="float32", n_threads=1)
    ours, theirs = (Rates(prefill=one, decode=tuple(10 * v for v in one)) for one in (teacher, student))
    return Speed(teacher=ours, student=theirs, teacher_layers=16, student_layers=12, **rest)


def test_ratios_are_student_over_teacher_round_by_round():
    both = made((10.0, 20.0, 40.0), (20.0, 30.0, 120.0))
    assert both.prefill_ratios == both.decode_ratios == (2.0, 1.5, 3.0)
    assert both.bound == 16 / 12


def test_median_and_interquartile_range():
    assert median_iqr([5.0]) == (5.0, 0.0)
    assert median_iqr([4.0, 1.0, 3.0, 2.0, 5.0]) == (3.0, 2.0)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_runs_on_every_family_and_survives_json(family):
    teacher, student = (DecoderView(tiny_model(family, n_layers=n)) for n in (4, 3))
    got = speed(teacher, student, batch_size=2, prompt_length=5, new_tokens=3, rounds=2, warmup=0)
    assert (got.teacher_layers, got.student_layers, got.device) == (4, 3, "cpu")
    for rates in (got.teacher, got.student):
        assert len(rates.prefill) == len(rates.decode) == 2 and min(*rates.prefill, *rates.decode) > 0
        assert rates.peak_bytes is None, "peak memory is measured on CUDA only"
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
    clock = iter(range(1000))
    monkeypatch.setattr(sys.modules["shoal.evaluate.speed"], "_now", lambda device: float(next(clock)))
    got = speed(teacher, student, batch_size=2, prompt_length=5, new_tokens=3, rounds=2, warmup=1)
    per_round = ["teacher"] * 4 + ["student"] * 4 + ["student"] * 4 + ["teacher"] * 4
    assert order == per_round + per_round[:8], "three rounds, the first a warm-up"
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
