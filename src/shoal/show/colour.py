"""Colours that do not need colour vision: cividis for values, the palette of Okabe and Ito for series, markers for both.

Cividis (Nuñez, Anderton and Renslow, PLoS ONE 2018) is even in lightness and made for colour-vision deficiency; the samples
below are every fifth of its 256 colours, and values in between are linear.
"""

CIVIDIS = (
    "#00224e", "#002656", "#002a5f", "#002d68", "#003070", "#083370", "#163770", "#203a6f", "#273e6e", "#2e416d",
    "#34456c", "#3a486c", "#3f4c6c", "#444f6c", "#49536c", "#4e566c", "#535a6d", "#575d6d", "#5c616e", "#60646f",
    "#656870", "#696b71", "#6d6f72", "#727274", "#767676", "#7a7a78", "#7e7d78", "#838179", "#888578", "#8d8878",
    "#928c78", "#969077", "#9b9476", "#a09875", "#a59c74", "#aaa073", "#afa471", "#b5a86f", "#baac6d", "#bfb06b",
    "#c4b468", "#c9b965", "#cfbd62", "#d4c15f", "#dac65b", "#dfca57", "#e5cf52", "#ead34c", "#f0d846", "#f6dd3f",
    "#fce236", "#fee838",
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
