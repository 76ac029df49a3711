"""The layers one by one: the norm of the stream at every boundary, what every layer changes, and where sinks are."""

import math
from collections.abc import Sequence

from shoal.measure.anatomy import Anatomy
from shoal.measure.scan import Scan
from shoal.show.chart import Band, Chart, Point, Series
from shoal.show.html import tag
from shoal.show.report.run_data import Part, RunData, Section
from shoal.show.table import Column, Table, numbers
from shoal.words.numbers import whole, with_error
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
    parts: list[Part] = [tag("p", intro), *charts, _table(scan, influence)]
    return Section("layers", "The layers one by one", "scan.json, scan.safetensors", tuple(parts))


def _norms(found: Anatomy, removed: Sequence[Span]) -> Chart:
    rest = _series(
        "tokens that are not sinks", 0, "tokens that are not sinks, boundary", found.norm_rest, found.norm_rest_stderr
    )
    sinks = _series("sinks", 1, "sinks, boundary", found.norm_sink, found.norm_sink_stderr)
    title = "Length of the residual stream"
    return Chart("norms", title, "boundary", "mean norm", (rest, sinks), bands=_bands(removed, 0.0), log_y=True)


def _influence(influence: SpanTable, removed: Sequence[Span]) -> Chart:
    pairs = [_of_layer(influence, layer) for layer in range(influence.n_layers)]
    series = _series("block influence", 2, "layer", *zip(*pairs, strict=True))
    title = "Block influence: 1 − cos of what enters and leaves"
    return Chart("block-influence", title, "layer", "block influence", (series,), bands=_bands(removed, -0.5), log_y=True)


def _series(name: str, style: int, what: str, values: Sequence[float], errors: Sequence[float]) -> Series:
    """Values over layers or boundaries, each between its standard errors where they are known."""
    points = []
    for x, (value, error) in enumerate(zip(values, errors, strict=True)):
        low, high = (value - error, value + error) if math.isfinite(error) else (None, None)
        points.append(Point(x, value, low=low, high=high, tip=f"{what} {x}: {with_error(value, error)}"))
    return Series(name, tuple(points), style=style)


def _bands(removed: Sequence[Span], shift: float) -> tuple[Band, ...]:
    return tuple(Band(s.start + shift, s.stop + shift, "removed" if i == 0 else "") for i, s in enumerate(removed))


def _table(scan: Scan, influence: SpanTable | None) -> Table:
    found, rows = scan.anatomy, []
    for boundary in range(len(found.norm_rest)):
        changed = None
        if influence is not None and boundary < influence.n_layers:
            changed = with_error(*_of_layer(influence, boundary))
        rest = with_error(found.norm_rest[boundary], found.norm_rest_stderr[boundary])
        sink = with_error(found.norm_sink[boundary], found.norm_sink_stderr[boundary])
        rows.append((str(boundary), rest, sink, found.n_massive[boundary], changed))
    columns = (
        Column("boundary"), *numbers("norm", "norm of sinks"), *numbers("massive tokens", form=whole),
        *numbers("block influence of the layer"),
    )  # fmt: skip
    caption = "Stream and layers, mean ± standard error over samples; the layer is the one the boundary enters"
    return Table(caption, columns, tuple(rows), is_long=True)


def _of_layer(influence: SpanTable, layer: int) -> tuple[float, float]:
    return influence[Span(layer, layer + 1)], float(influence.stderr[layer, layer + 1])
