"""What new layers start as: the table of initialisations that ``Insert`` and the command read. Plain data, free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shoal.words.entries import Entries, by_name

Where = Literal["spread", "shallow", "deep", "range"]
"""Behind which layers: evenly among all, in the first half, in the second, or a range of layers once more as a whole."""


@dataclass(frozen=True)
class Init:
    """One start of new layers.

    Attributes:
        about: one line for people.
        where: the places it is put at unless told.
        weights: whose: the layer's own that it is like (``source``, nothing is stored beside the plan), a ``blend`` of its two
            neighbours (follows from the source), or ``predicted`` (computed once, and stored beside the plan).
        is_silent: its output maps start as zero, so it adds nothing to the stream: step 0 is the source.
        paper: arXiv number.
    """

    name: str
    about: str
    where: Where
    weights: Literal["source", "blend", "predicted"] = "source"
    is_silent: bool = False
    paper: str = ""

    @property
    def is_between(self) -> bool:
        """Whether it needs a layer on either side."""
        return self.weights != "source"

    @property
    def makes_values(self) -> bool:
        """Whether its layers hold numbers that the source does not store: blends, predictions, zeros."""
        return self.is_between or self.is_silent


INITS: Entries[Init] = by_name(
    "init",
    Init("identity", "a copy with zero output maps: step 0 is the source", "spread", is_silent=True, paper="2401.02415"),
    Init("copy", "the layer once more", "range", paper="2312.15166"),
    Init("mean", "the mean of the two neighbours", "spread", "blend"),
    Init("interpolate", "on the line between the two neighbours, at equal distances", "spread", "blend"),
    Init("slayer", "the neighbours' mean with zero output maps", "shallow", "blend", is_silent=True, paper="2410.02330"),
    Init("lesa", "predicted from the neighbours in the singular basis of all layers", "deep", "predicted", paper="2502.13794"),
)
