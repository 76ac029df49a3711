"""The layers one by one: the norm of the stream at every boundary, what every layer changes, and where sinks are."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shoal.measure.anatomy import Anatomy
from shoal.measure.scan import Scan
from shoal.show.chart import Band, Chart, Point, Series
from shoal.show.html import Column, Html, number_columns, table, tag
from shoal.show.report.run_data import RunData, Section
from shoal.words.types import Span, SpanTable, spans_of

INFLUENCE = "block_influence/rest"


def anatomy(data: RunData) -> Section | None:
    if data.scan is None:
        return None
    found, scan = data.scan.anatomy, data.scan
    removed = spans_of(data.plan.removed_layers) if data.plan else ()
    intro = (
        "A boundary is the residual stream entering a layer; the last one is what leaves the last layer, before the final "
        "norm. Sinks (the first token of a sample, and tokens of more than 20 times the median norm) are kept apart: "
        f"{found.n_sinks:,} of {found.n_tokens:,} tokens."
    )
    influence = scan.tables.get(INFLUENCE)
    charts = [_norms(found, removed)]
    if influence is not None:
        charts.append(_influence(influence, removed))
    return Section(
        "layers", "The layers one by one", "scan.json, scan.safetensors", (tag("p", intro), *charts, _table(scan, influence))
    )


def _norms(found: Anatomy, removed: Sequence[Span]) -> Chart:
    kinds = (
        ("tokens that are not sinks", found.norm_rest, found.norm_rest_stderr),
        ("sinks", found.norm_sink, found.norm_sink_stderr),
    )
    series = []
    for style, (name, means, errors) in enumerate(kinds):
        both = enumerate(zip(means, errors, strict=True))
        series.append(Series(name, tuple(_point(f"{name}, boundary", i, *one) for i, one in both), style=style))
    bands = tuple(Band(span.start, span.stop, "removed" if i == 0 else "") for i, span in enumerate(removed))
    title = "Length of the residual stream"
    return Chart("norms", title, "boundary", "mean norm", tuple(series), bands=bands, log_y=True)


def _influence(influence: SpanTable, removed: Sequence[Span]) -> Chart:
    points = []
    for layer in range(influence.n_layers):
        value, error = _of_layer(influence, layer)
        points.append(_point("layer", layer, value, error))
    bands = tuple(Band(s.start - 0.5, s.stop - 0.5, "removed" if i == 0 else "") for i, s in enumerate(removed))
    title = "Block influence: 1 − cos of what enters and leaves"
    series = (Series("block influence", tuple(points), style=2),)
    return Chart("block-influence", title, "layer", "block influence", series, bands=bands, log_y=True)


def _table(scan: Scan, influence: SpanTable | None) -> Html:
    found = scan.anatomy
    columns = [Column("boundary"), *number_columns("norm", "norm of sinks", "massive tokens", "block influence of the layer")]
    rows = []
    for boundary in range(len(found.norm_rest)):
        value = ""
        if influence is not None and boundary < influence.n_layers:
            value = _with_error(*_of_layer(influence, boundary))
        norms = [
            _with_error(means[boundary], errors[boundary])
            for means, errors in ((found.norm_rest, found.norm_rest_stderr), (found.norm_sink, found.norm_sink_stderr))
        ]
        rows.append([str(boundary), *norms, f"{found.n_massive[boundary]:,}", value])
    return table(
        "Stream and layers, mean ± standard error over samples; the layer is the one the boundary enters",
        columns,
        rows,
        is_long=True,
    )


def _of_layer(influence: SpanTable, layer: int) -> tuple[float, float]:
    return influence[Span(layer, layer + 1)], float(influence.stderr[layer, layer + 1])


def _point(what: str, x: float, value: float, error: float) -> Point:
    known = math.isfinite(error)
    low, high = (value - error, value + error) if known else (None, None)
    return Point(x, value, low=low, high=high, tip=f"{what} {x:g}: {_with_error(value, error)}")


def _with_error(value: float, error: float) -> str:
    if not math.isfinite(value):
        return ""
    return f"{value:.4g} ± {error:.2g}" if math.isfinite(error) else f"{value:.4g}"
