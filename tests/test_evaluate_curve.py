"""Curves over the removed share: planted cliffs are found where they are, smooth curves have none, the rest is closed forms."""

import math

import numpy as np
import pytest

from shoal.cli.curve import parse_keep
from shoal.evaluate.curve.cliff import FEWEST, cliff_of
from shoal.evaluate.curve.largest_cut import largest_cut, sentence
from shoal.evaluate.curve.ratio_curve import RatioCurve, RatioCurves, RatioPoint, curve_of, is_at_chance
from shoal.evaluate.tasks.answers import TaskFacts
from shoal.measure.oracle import Quality
from shoal.run.curve.over_ratios import Keeping, conclude
from shoal.show.curve_views import cliff_lines, curves_table, smooth_lines
from shoal.words.records import Provenance
from shoal.words.structure import Size

SHARES = np.linspace(0, 0.5, 11)
SMOOTH = {
    "line": lambda x: 2 * x,
    "square": lambda x: 4 * x**2,
    "cube": lambda x: 10 * x**3,
    "exponential": lambda x: 0.02 * np.expm1(9 * x),
    "saturating": lambda x: 2 - 2 * np.exp(-6 * x),
}
BROKEN = {
    "bend": lambda x: 0.5 * x + 9 * np.maximum(0, x - 0.22),
    "step": lambda x: 0.2 * x + 1.5 * (x > 0.22),
    "step to a plateau": lambda x: np.where(x > 0.22, 1.4, 0.1 * x),
}


def curve(values_NP, share_P=SHARES):
    rng = np.random.default_rng(7)
    drawn = values_NP[rng.integers(0, len(values_NP), (200, len(values_NP)))].mean(1)
    mean = values_NP.mean(0)
    return RatioCurve("kl", tuple(range(len(share_P))), share_P, mean, drawn, np.exp(-mean), np.exp(-drawn))


def noisy(shape, *, seed, share_P=SHARES, n=48):
    """Samples that are harder or easier as a whole, and noise of every cut's own; the teacher has none."""
    rng = np.random.default_rng(seed)
    loss = shape(share_P)
    own = rng.normal(size=(n, len(share_P))) * (share_P > 0)
    return curve(loss * (1 + 0.3 * rng.normal(size=(n, 1))) + (0.1 * loss + 0.02) * own, share_P)


@pytest.mark.parametrize("shape", BROKEN)
@pytest.mark.parametrize("seed", range(4))
def test_a_planted_cliff_is_found_inside_its_interval(shape, seed):
    found = cliff_of(noisy(BROKEN[shape], seed=seed), method="m")
    assert found.found and found.support >= found.level and found.rise > 0.3
    assert found.low <= found.last < found.first <= found.high
    assert found.low <= 0.22 <= found.high
    assert (found.last_n, found.first_n) == (round(found.last * 20), round(found.first * 20))


@pytest.mark.parametrize("shape", BROKEN)
def test_without_noise_the_cliff_is_the_planted_gap(shape):
    found = cliff_of(curve(np.stack([BROKEN[shape](SHARES)] * 3)), method="m")
    assert (found.last, found.first) == pytest.approx((0.2, 0.25)) and (found.low, found.high) == (found.last, found.first)


def test_the_rise_of_a_step_is_its_height():
    found = cliff_of(curve(np.stack([BROKEN["step"](SHARES)] * 3)), method="m")
    assert found.rise == pytest.approx(1.5)


@pytest.mark.parametrize("shape", SMOOTH)
def test_a_smooth_curve_has_no_cliff(shape):
    exact = cliff_of(curve(np.stack([SMOOTH[shape](SHARES)] * 3)), method="m")
    assert not exact.found and exact.last is None and "smooth" in exact.why_not
    n_found = sum(cliff_of(noisy(SMOOTH[shape], seed=seed), method="m").found for seed in range(20))
    assert n_found <= 1  # The level is 95 %.


def test_an_improvement_is_no_cliff():
    assert not cliff_of(curve(np.stack([-BROKEN["step"](SHARES)] * 3)), method="m").found


def test_too_few_points_and_infinite_losses_are_said():
    few = np.linspace(0, 0.5, FEWEST - 1)
    found = cliff_of(curve(np.stack([BROKEN["step"](few)] * 3), few), method="m")
    assert not found.found and f"{FEWEST - 1} points" in found.why_not
    destroyed = np.stack([np.where(SHARES > 0.2, np.inf, SHARES)] * 3)
    with np.errstate(invalid="ignore"):
        assert "5 points" in cliff_of(curve(destroyed), method="m").why_not


# -- the record ------------------------------------------------------------------------------------------------------------

TOKENS = (10, 20, 10)
NLL = (20.0, 50.0, 30.0)  # 100 nats in 40 tokens


def point(method, n, *, kl=0.0, nll=NLL, right=None):
    mean = sum(nll) / 40
    quality = Quality(
        kl=kl, kl_stderr=0.0, agreement=1.0, nll=mean, perplexity=math.exp(mean), n_tokens=40, n_samples=3
    )  # fmt: skip
    return RatioPoint(
        method=method, n_net=n, share=n / 20, layers_out=tuple(range(n)), size=Size(layers=20 - n, parameters=100 - n),
        quality=quality, kl=tuple(kl * t for t in TOKENS), nll=nll, right={} if right is None else {"quiz": right},
    )  # fmt: skip


def curves(points, *, right=None, chance=0.0):
    task = TaskFacts(task="quiz", form="choice", data_hash="h", n_items=len(right or ()), n_truncated=0, chance=chance)
    return RatioCurves(
        drop="0..50%", counts=tuple(sorted({one.n_net for one in points})), recipes={"none": {}}, n_tokens=TOKENS,
        before=Size(layers=20, parameters=100), tasks=() if right is None else (task,),
        teacher=point("teacher", 0, right=right), points=tuple(points), n_resamples=200,
        provenance=Provenance(
            model="m", model_hash="h", data="d", data_hash="h", n_samples=3, n_tokens=43, length=20, seed=0, dtype="float32"
        ),
    )  # fmt: skip


def test_losses_and_what_is_kept_have_closed_forms():
    right = (True,) * 8 + (False,) * 2
    worse = tuple(one + 0.1 * t for one, t in zip(NLL, TOKENS, strict=True))
    made = curves([point("none", 2, kl=0.05, nll=worse, right=(True,) * 6 + (False,) * 4)], right=right)
    text, kl, quiz = (curve_of(made, method="none", of=of) for of in ("perplexity", "kl", "quiz"))
    assert text.loss_P == pytest.approx([2.5, 2.6]) and text.retained_P == pytest.approx([1, math.exp(-0.1)])
    assert kl.loss_P == pytest.approx([0, 0.05]) and kl.retained_P == pytest.approx([1, math.exp(-0.05)])
    assert quiz.loss_P == pytest.approx([0.2, 0.4]) and quiz.retained_P == pytest.approx([1, 0.75])
    # 0.1 nats more on every token of every sample: no resample says anything else
    assert text.retained_RP[:, 1] == pytest.approx(math.exp(-0.1)) and (text.retained_RP[:, 0] == 1).all()
    low, high = quiz.retained(1).low, quiz.retained(1).high
    assert 0 < low < 0.75 < high <= 1, "no item is won, so no resample keeps more than everything"


def test_the_record_survives_json_and_draws_the_same_intervals():
    made = conclude(curves([point("none", n, kl=n / 10) for n in range(1, 8)]), keep=Keeping(0.9, "kl"))
    read = RatioCurves.from_json(made.to_json())
    assert read == made and read.is_complete and conclude(read, keep=Keeping(0.9, "kl")) == made
    assert len(curves_table(made).rows) == 8 and (cliff_lines(made) or smooth_lines(made))


def test_the_largest_cut_is_the_last_that_keeps_enough():
    made = curves([point("none", n, kl=kl) for n, kl in ((1, 0.01), (2, 0.2), (3, 0.04), (4, 0.3))])
    kept = largest_cut(curve_of(made, method="none", of="kl"), method="none", keep=0.95)
    assert kept.likely == kept.certain == kept.possible, "every token loses the same, so the interval is a point"
    assert kept.likely.n_net == 3 and kept.likely.retained.value == pytest.approx(math.exp(-0.04))
    assert "3 layers (15.0 %): 96.1 (" in sentence(kept)
    none = largest_cut(curve_of(made, method="none", of="kl"), method="none", keep=0.999)
    assert none.likely.n_net == 0 and "no measured cut" in sentence(none)


def test_what_noise_allows_is_told_apart_from_what_is_certain():
    right = (True,) * 40
    lost = [point("none", n, right=(False,) * wrong + (True,) * (40 - wrong)) for n, wrong in ((1, 0), (2, 1), (3, 3), (4, 20))]
    kept = largest_cut(curve_of(curves(lost, right=right), method="none", of="quiz"), method="none", keep=0.95)
    assert [one.n_net for one in (kept.certain, kept.likely, kept.possible)] == [1, 2, 3]
    assert "certain at 95 % for 1 layer" in sentence(kept) and "not excluded up to 3 layers" in sentence(kept)


def test_a_teacher_that_guesses_says_nothing():
    right = (True, False) * 10
    made = curves([point("none", n, right=(True,) * 5 + (False,) * 15) for n in range(1, 8)], right=right, chance=0.5)
    assert is_at_chance(made, "quiz") and not is_at_chance(made, "kl")
    found = conclude(made, keep=Keeping(0.5, "quiz"))
    assert "at chance" in next(one for one in found.cliffs if one.of == "quiz").why_not
    assert "at chance" in sentence(found.kept[0])
    nothing = curves([point("none", 1, right=(False,) * 20)], right=(False,) * 20)
    with pytest.raises(ValueError, match="no item of 'quiz' right"):
        largest_cut(curve_of(nothing, method="none", of="quiz"), method="none", keep=0.5)


@pytest.mark.parametrize(("text", "value"), [("95%", 0.95), ("0.95", 0.95), ("100 %", 1.0), ("99.5%", 0.995)])
def test_keep_reads_shares(text, value):
    assert parse_keep(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "0%", "101%", "95", "-5%", "most", "nan"])
def test_keep_refuses_the_rest(text):
    with pytest.raises(ValueError, match="--keep"):
        parse_keep(text)


def test_unknown_methods_and_measures_name_the_known_ones():
    made = curves([point("none", 1)])
    with pytest.raises(ValueError, match="known: none"):
        curve_of(made, method="nothing", of="kl")
    with pytest.raises(ValueError, match="known: kl, perplexity"):
        curve_of(made, method="none", of="lambada")
