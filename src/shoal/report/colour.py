"""Colours that do not need colour vision: cividis for values, the palette of Okabe and Ito for series, markers for both.

Cividis (Nuñez, Anderton and Renslow, PLoS ONE 2018) is even in lightness and made for colour-vision deficiency; the samples
below are every sixteenth of its 256 colours, and values in between are linear.
"""

from __future__ import annotations

CIVIDIS = (
    "#00224e", "#002e6a", "#1a386f", "#32436d", "#434e6c", "#535a6d", "#61656f", "#6f7073", "#7d7c78", "#8c8878", "#9b9476",
    "#aba072", "#bcae6c", "#cdbb63", "#dec958", "#f0d846", "#fee838",
)  # fmt: skip

SERIES = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#a6761d", "#6a6a6a")
"""On white paper; the page has lighter ones for dark screens in page.css."""


def cividis(value: float) -> str:
    """The colour of a value in [0, 1], as ``#rrggbb``: 0 is dark blue, 1 is yellow."""
    place = min(max(value, 0.0), 1.0) * (len(CIVIDIS) - 1)
    index = min(int(place), len(CIVIDIS) - 2)
    share = place - index
    ends = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in CIVIDIS[index : index + 2]]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(*ends, strict=True))
