"""Weights set to zero: their share by layer and by map, and what that does for speed."""

from shoal.prune.thin_result import ThinResult, speed_said
from shoal.show import zero_tables
from shoal.show.chart import Chart, Point, Rule, Series
from shoal.show.html import tag
from shoal.show.report.run_data import Part, RunData, Section
from shoal.words.numbers import percent


def zeros(data: RunData) -> Section | None:
    found = data.thinned
    if found is None:
        return None
    parts: list[Part] = [tag("p", f"{found}. {speed_said(found.config)}")]
    if found.data:
        parts.append(tag("p", f"Chosen on {found.n_tokens:,} tokens of {found.data} (hash {found.data_hash}).", class_="note"))
    return Section(
        "zeros",
        "Weights set to zero",
        "prune.json",
        (*parts, _chart(found), zero_tables.by_role(found), zero_tables.by_layer(found)),
    )


def _chart(found: ThinResult) -> Chart:
    points = tuple(
        Point(layer, 100 * one.share, tip=f"layer {layer}: {percent(one.share)} % of {one.n_weights:,} weights")
        for layer, one in found.by_layer().items()
    )
    rule = Rule("y", 100 * found.total.share, "all")
    return Chart("zeros", "Zeros in the maps of every layer", "layer", "zeros, %", (Series("zeros", points),), rules=(rule,))
