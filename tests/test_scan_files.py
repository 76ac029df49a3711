"""Laws of the scan's files, printed table and picture."""

import io
import sys
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from shoal.measure.anatomy import Anatomy
from shoal.measure.scan import Scan
from shoal.show.chart_files import save_figures
from shoal.show.heat import Heat, best_starts, rescaled_rows
from shoal.show.plan_tables import best_span, best_spans
from shoal.words.records import Provenance
from shoal.words.types import Span, SpanTable

SOURCE = Provenance(
    model="m", model_hash="1", data="d", data_hash="2", n_samples=7, n_tokens=70, length=10, seed=3, dtype="float32"
)


def table(criterion="angular", tokens="last", *, n_layers=5, seed=0, higher=False):
    values = np.random.default_rng(seed).random((n_layers + 1, n_layers + 1))
    values[np.tril_indices(n_layers + 1)] = np.nan
    return SpanTable(criterion, tokens, values, values / 10, "pi rad", higher, 7)


def a_scan(*tables, n_layers=5):
    ends = tuple(float(one) for one in range(n_layers + 1))
    anatomy = Anatomy(
        norm_rest=ends, norm_rest_stderr=ends, norm_sink=ends, norm_sink_stderr=(float("nan"),) * len(ends),
        n_massive=(0,) * len(ends), n_sinks=7, n_tokens=70, n_zero=0, n_samples=7,
    )  # fmt: skip
    return Scan({one.name: one for one in tables}, anatomy, SOURCE)


def test_a_saved_scan_loads_bit_for_bit(tmp_path):
    parts = np.random.default_rng(9).random((3, 6, 6))
    before = a_scan(table(), replace(table("cosine", "rest", seed=1, higher=True), parts=parts))
    before.save(tmp_path)
    after = Scan.load(tmp_path)
    assert list(after.tables) == list(before.tables) and after.provenance == SOURCE and after.n_layers == 5
    assert repr(after.anatomy) == repr(before.anatomy)  # NaN is not equal to itself
    for name, one in before.tables.items():
        read = after[name]
        assert np.array_equal(read.values, one.values, equal_nan=True)
        assert np.array_equal(read.stderr, one.stderr, equal_nan=True)
        assert read.parts is None if one.parts is None else np.array_equal(read.parts, one.parts)
        assert (read.unit, read.higher_is_more_redundant, read.n_samples) == (one.unit, one.higher_is_more_redundant, 7)


def test_values_of_another_scan_are_refused(tmp_path):
    a_scan(table()).save(tmp_path / "a")
    a_scan(table(seed=5)).save(tmp_path / "b")
    (tmp_path / "a" / "scan.safetensors").write_bytes((tmp_path / "b" / "scan.safetensors").read_bytes())
    with pytest.raises(ValueError, match="scan again"):
        Scan.load(tmp_path / "a")


def test_an_unknown_table_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'angular/last'"):
        a_scan(table())["angle/last"]


@pytest.mark.parametrize("higher", [False, True])
def test_best_span_is_the_extreme_in_the_direction_of_the_score(higher):
    one = table(higher=higher)
    for n in range(1, 6):
        spans = [Span(start, start + n) for start in range(6 - n)]
        assert best_span(one, n) == (max if higher else min)(spans, key=lambda span: one[span])
    with pytest.raises(ValueError, match="1..5"):
        best_span(one, 6)


def test_equal_values_go_to_the_deepest_span_as_the_selectors_have_it():
    values = np.zeros((4, 4))
    assert best_span(SpanTable("euclidean", "rest", values, values, "norm", False, 2), 1) == Span(2, 3)


def test_the_printed_table_shows_value_and_error_of_the_best_span():
    one = table()
    console = Console(width=140, file=io.StringIO())
    console.print(best_spans(a_scan(one), names=["angular/last"]))
    text = console.file.getvalue()
    for n in range(1, 5):
        span = best_span(one, n)
        layers = str(span.start) if n == 1 else f"{span.start}..{span.stop - 1}"
        assert f"{layers}: {one[span]:.4g} ± {one.stderr[span.start, span.stop]:.2g}" in text


@pytest.mark.parametrize("higher", [False, True])
def test_rows_of_the_heat_map_run_from_the_best_span_at_0_to_the_worst_at_1(higher):
    one = table(higher=higher)
    rows = rescaled_rows(one)
    for n in range(1, 5):
        row = rows[n - 1, : 6 - n]
        assert row.min() == 0.0 and row.max() == 1.0 and row.argmin() == best_span(one, n).start
        assert np.isnan(rows[n - 1, 6 - n :]).all()
    assert rows[4, 0] == 0.0


def test_the_picture_is_the_same_file_twice_and_knows_the_best_of_every_row(tmp_path):
    pytest.importorskip("matplotlib")
    one = table()
    assert best_starts(one) == [best_span(one, n).start for n in range(1, 6)]
    first, second = (save_figures([Heat((one,))], tmp_path / name) for name in ("a", "b"))
    assert [path.name for path in first] == ["heatmap.svg", "heatmap.png"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert "angular (pi rad), last token" in Heat((one,)).title and first[1].read_bytes()[:4] == b"\x89PNG"


def test_without_matplotlib_nothing_is_drawn(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert save_figures([Heat((table(),))], tmp_path) == [] and not list(tmp_path.iterdir())
