"""Laws of the pairwise criteria on planted vectors: closed forms, bounds, exact zeros, spans as block sums."""

import math

import pytest
import torch

from shoal.measure.criteria import CRITERIA
from shoal.measure.geometry import span_ends, span_geometry


def scores(*states):
    """{criterion: {(start, stop): value}} of one token that passes through the given states."""
    x_ED = torch.tensor(states, dtype=torch.float64)
    deltas = x_ED.diff(dim=0)
    geometry = span_geometry((deltas @ deltas.T)[None], x_ED.norm(dim=-1)[:, None])
    starts, stops = span_ends(len(states) - 1)
    spans = list(zip(starts.tolist(), stops.tolist(), strict=True))
    values = {name: criterion.per_token(geometry)[:, 0].tolist() for name, criterion in CRITERIA.items()}
    return {name: dict(zip(spans, of_spans, strict=True)) for name, of_spans in values.items()}


@pytest.mark.parametrize("degrees", [1e-3, 0.05, 1.0, 60.0, 90.0, 150.0, 180.0])
def test_closed_forms_in_the_plane(degrees):
    angle = math.radians(degrees)
    got = scores([2.0, 0.0], [3 * math.cos(angle), 3 * math.sin(angle)])
    got = {name: values[0, 1] for name, values in got.items()}
    assert got["angular"] == pytest.approx(degrees / 180, rel=1e-6)  # The type fp64 keeps 1e-16 of the growth.
    assert got["cosine"] == pytest.approx(math.cos(angle), abs=1e-12)
    assert got["block_influence"] == pytest.approx(2 * math.sin(angle / 2) ** 2, abs=1e-12)
    assert got["euclidean"] == pytest.approx(math.sqrt(13 - 12 * math.cos(angle)))
    assert got["relative_magnitude"] == pytest.approx(math.sqrt(13 - 12 * math.cos(angle)) / 3)
    assert got["dot"] == pytest.approx(6 * math.cos(angle), abs=1e-12)


def test_spans_of_many_layers_see_only_their_ends():
    states = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    chain = scores(*states)
    for start in range(7):
        for stop in range(start + 1, 7):
            pair = scores(states[start], states[stop])
            for name in CRITERIA:
                assert chain[name][start, stop] == pytest.approx(pair[name][0, 1], rel=1e-9, abs=1e-12)


def test_layers_without_update_are_exactly_nothing_alone_and_together():
    first, second = [0.3, -1.7, 0.9], [0.1, 0.2, -5.3]
    got = scores(first, second, second, second, first)
    for start, stop in ((1, 2), (2, 3), (1, 3)):
        assert got["cosine"][start, stop] == 1.0
        for name in ("angular", "block_influence", "relative_magnitude", "euclidean"):
            assert got[name][start, stop] == 0.0
    assert got["angular"][0, 1] == got["angular"][0, 2] == got["angular"][0, 3] > 0.1


def test_directions_agree_with_redundancy():
    """A small turn must look more redundant than a large one to every criterion (equal lengths)."""
    small, large = (scores([1.0, 0.0], [math.cos(angle), math.sin(angle)]) for angle in (0.1, 0.5))
    for name, criterion in CRITERIA.items():
        assert (small[name][0, 1] > large[name][0, 1]) == criterion.higher_is_more_redundant, name


def test_rounding_never_leaves_the_range():
    """Opposite directions, and a large update that is undone, in fp32 products: sums that should be 4 or 0 may pass them."""
    x_TD = torch.randn(400, 64, generator=torch.Generator().manual_seed(0))
    back_TD, far_TD, further_TD = -1.7 * x_TD, 1e3 * x_TD.roll(1, 0), 1e3 * x_TD.roll(2, 0)
    states_ETD = torch.stack([x_TD, back_TD, back_TD + far_TD, back_TD + far_TD + further_TD, back_TD])
    deltas_TED = states_ETD.diff(dim=0).transpose(0, 1)
    geometry = span_geometry(torch.bmm(deltas_TED, deltas_TED.mT), states_ETD.double().norm(dim=-1))
    for name, (low, high) in {"cosine": (-1, 1), "angular": (0, 1), "block_influence": (0, 2), "euclidean": (0, 1e9)}.items():
        values = CRITERIA[name].per_token(geometry)
        assert values.isfinite().all() and values.min() >= low and values.max() <= high, name
