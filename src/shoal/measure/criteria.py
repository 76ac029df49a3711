"""Criteria that compare the two ends of a span, token by token. A new one is a function and a line in ``CRITERIA``.

Each maps the geometry of all spans to (S, T) float64 values; the scan averages them over tokens of a sample, then samples.
For several layers all of them compare x_l with x_m (m = l + n), not the layers inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from shoal.measure.geometry import SpanGeometry

TOKENS: tuple[str, ...] = ("last", "rest", "every", "sink")
"""``last`` real token; ``rest``: all but padding and sinks; ``every``: all but padding; ``sink``, as in ``sinks.py``."""


@dataclass(frozen=True)
class Criterion:
    """A score of a span.

    Attributes:
        unit: unit of the values, for people.
        higher_is_more_redundant: direction.
        source: where it comes from.
        per_token: (S, T) values from the geometry of S spans at T tokens.
    """

    unit: str
    higher_is_more_redundant: bool
    source: str
    per_token: Callable[[SpanGeometry], Tensor]


def cosine(geometry: SpanGeometry) -> Tensor:
    """cos(x_l, x_m) in [-1, 1]; exactly 1 where the span changes nothing."""
    return 1.0 - geometry.chord2 / 2


def angular(geometry: SpanGeometry) -> Tensor:
    """Angle between x_l and x_m in units of pi, in [0, 1]: 2 asin(chord / 2) / pi, accurate down to 0."""
    return geometry.chord2.sqrt().mul_(0.5).asin().mul_(2 / math.pi)


def block_influence(geometry: SpanGeometry) -> Tensor:
    """1 - cos(x_l, x_m) in [0, 2]. The paper scores single layers; here any span."""
    return geometry.chord2 / 2


def relative_magnitude(geometry: SpanGeometry) -> Tensor:
    """‖x_m - x_l‖ / ‖x_m‖. For one layer the paper's ‖f(x)‖ / ‖x + f(x)‖; for a span f is its whole change."""
    return geometry.dist / geometry.norm_stop


def euclidean(geometry: SpanGeometry) -> Tensor:
    """‖x_m - x_l‖. Streams grow with depth, so it favours early spans."""
    return geometry.dist


def dot(geometry: SpanGeometry) -> Tensor:
    """<x_l, x_m>. Streams grow with depth, so it favours late spans."""
    return geometry.dot


CRITERIA: dict[str, Criterion] = {
    "cosine": Criterion("cos", True, "LLM-Streamline, arXiv 2403.19135", cosine),
    "angular": Criterion("pi rad", False, "UIDL, arXiv 2403.17887, eq. 6-7", angular),
    "block_influence": Criterion("1 - cos", False, "ShortGPT, arXiv 2403.03853", block_influence),
    "relative_magnitude": Criterion("ratio", False, "ShortGPT, arXiv 2403.03853, section 4.3", relative_magnitude),
    "euclidean": Criterion("norm", False, "discussed by LLM-Streamline's authors, arXiv 2403.19135", euclidean),
    "dot": Criterion("norm squared", True, "discussed by LLM-Streamline's authors, arXiv 2403.19135", dot),
}
