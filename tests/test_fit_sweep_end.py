"""Laws of where a sweep ends: never while later layers gain, never in front of another cut, and what it left is not run."""

import math

import pytest
import torch
from families import VOCAB, tiny_model

import shoal.fit.sweep_end
from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.fit.fit_config import FitConfig
from shoal.fit.fit_job import FitJob
from shoal.fit.fit_result import LayerFit
from shoal.fit.sites.of_layer import Sites
from shoal.fit.sweep import sweep_layers
from shoal.fit.sweep_end import SweepEnd
from shoal.text.samples import Samples
from shoal.words.types import Unit

N_LAYERS, DOWN = 10, "mlp.down_proj.weight"


def batches(n=60):
    ids_NT = torch.randint(3, VOCAB, (n, 12), generator=torch.Generator().manual_seed(0))
    return Samples(ids_NT, torch.full((n,), 12), "training", "random ids", "hash", 0).batches(20)


WHOLE = FitConfig()


def swept(*, without, config=WHOLE, off=(), damaged=()):
    """Layers ``damaged`` have lost most of their MLP's output map, which a refit of that map gives back."""
    view = DecoderView(tiny_model("llama", n_layers=N_LAYERS))
    maps = {one: view.model.model.layers[one].mlp.down_proj.weight.data for one in damaged}
    for value in maps.values():
        value.mul_(30.0)  # Otherwise a random layer adds next to nothing to the stream.
    for one in without if damaged else ():  # What is cut does nothing, so that the damage is all there is to repair.
        view.model.model.layers[one].self_attn.o_proj.weight.data.zero_()
        view.model.model.layers[one].mlp.down_proj.weight.data.zero_()
    kept = [layer for layer in range(N_LAYERS) if layer not in without]
    ends = dict(zip(kept, [*kept[1:], N_LAYERS], strict=True))
    targets = {layer: end for layer, end in ends.items() if layer >= min(without) - 1}
    removed = frozenset({*(Unit("layer", layer) for layer in without), *(Unit("attn", layer) for layer in off)})
    passed = []
    own = {one: {DOWN: 0.1 * value} for one, value in maps.items()}
    job = FitJob(view, Student(removed=removed, overrides=own), batches(), config, after_layer=passed.append)
    return sweep_layers(job, targets=targets, sites=Sites(("mlp",))), passed


def fitted(found):
    return [one.layer for one in found.layers]


STILL = FitConfig(ridge=math.inf)
"""No layer changes, so none gains."""


@pytest.mark.parametrize(
    ("without", "off", "visited", "ended"),
    [
        ((2, 3), (), [1, 4, 5], 5),
        ((2, 6), (), [1, 3, 4, 5, 7, 8], 8),
        ((2,), (7,), [1, 3, 4, 7, 8, 9], None),
        ((2,), (6,), [1, 3, 4, 6, 7, 8], 8),
        ((7,), (), [6, 8, 9], None),
    ],
    ids=["one cut", "two cuts", "a sublayer near the end", "a sublayer", "nothing is left"],
)
def test_two_layers_without_a_gain_end_it_and_every_cut_begins_anew(without, off, visited, ended):
    found, passed = swept(without=without, off=off, config=STILL)
    assert fitted(found) == visited and found.ended_behind == ended
    assert max(passed) <= visited[-1], "layers behind the end are not run"


def test_what_the_papers_always_keep_goes_to_the_last_layer():
    found, _ = swept(without=(2, 3), config=FitConfig(ridge=math.inf, keep="always"))
    assert fitted(found) == [1, 4, 5, 6, 7, 8, 9] and found.ended_behind is None


def test_where_later_layers_gain_every_bit_is_that_of_the_whole_sweep(monkeypatch):
    planted = {"without": (2, 3), "damaged": range(4, N_LAYERS)}
    found, _ = swept(**planted)
    assert all(one.error_after < 0.5 * one.error_before for one in found.layers[1:]) and found.ended_behind is None
    monkeypatch.setattr(shoal.fit.sweep_end, "WORTH", -math.inf)
    whole, _ = swept(**planted)
    assert fitted(found) == fitted(whole) == [1, 4, 5, 6, 7, 8, 9]
    for layer, own in whole.values.items():
        assert all(torch.equal(value, found.values[layer][name]) for name, value in own.items())


def gain_of(layer, gain):
    return LayerFit(
        layer=layer, target=layer + 1, error_before=0.5, error_after=0.5 * (1 - gain), maps=(), n_kept=0, seconds=0.0
    )


@pytest.mark.parametrize(
    ("gains", "last"),
    [
        ([0.2, 0.05, 0.03, 0.014, 0.007, 0.001, 0.0, 0.004], 7),  # 1.1 % with three left, then 0.4 % with two
        ([0.0, 0.1, 0.0, 0.1, 0.0, 0.1, 0.0, 0.1], 9),
        ([0.0, 0.0, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3], 3),
        ([0.003] * 8, 3),
        ([0.004 + 0.002 * at for at in range(8)], 8),
    ],
)
def test_it_goes_on_while_what_is_left_at_the_rate_of_the_last_two_is_worth_it(gains, last):
    """Layer 1 stands before the cut, 2..9 behind it. n layers that gain g each leave (1 - g)^n."""
    end = SweepEnd(range(1, 10), {1}, FitConfig())
    end.add(gain_of(1, 0.6))
    assert not end.is_over(1)
    for layer, gain in enumerate(gains, 2):
        assert not end.passes(layer)
        end.add(gain_of(layer, gain))
        if end.is_over(layer):
            break
    assert layer == last
