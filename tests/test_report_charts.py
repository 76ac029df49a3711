"""Charts put values where they belong: scales, ticks, markers and intervals, without a browser."""

import json
import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_reader import read_page

from shoal.show.chart import MARKERS, Band, Chart, Point, Rule, Series, limits, log_ticks, said, ticks
from shoal.show.colour import CIVIDIS, cividis
from shoal.show.html import Html, code, data_block, tag
from shoal.show.svg import Scale, draw

finite = st.floats(-1e4, 1e4)
positive = st.floats(1e-9, 1e9)


@given(finite, st.floats(1e-2, 1e9), st.booleans())
def test_ticks_are_few_round_and_inside(low, width, whole):
    high = low + width
    found = ticks(low, high, whole=whole)
    assert len(found) <= 8 and found == sorted(set(found))
    slack = 1e-6 * max(abs(low), abs(high), width)
    assert all(low - slack <= value <= high + slack for value in found)
    if whole and width > 2:
        assert all(value == int(value) for value in found)
    steps = {round((b - a) / width, 6) for a, b in zip(found, found[1:], strict=False)}
    assert len(steps) <= 1 or max(steps) - min(steps) < 1e-3


@given(positive, st.floats(1.01, 1e12))
def test_log_ticks_are_inside(low, ratio):
    found = log_ticks(low, low * ratio)
    assert 1 <= len(found) <= 9 and all(low * (1 - 1e-6) <= value <= low * ratio * (1 + 1e-6) for value in found)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=5), st.booleans())
def test_limits_hold_every_finite_value(values, log):
    low, high = limits(values, log=log)
    assert low < high
    for value in values:
        if math.isfinite(value) and abs(value) < 1e300 and (value > 1e-300 if log else True):
            assert low <= value <= high


@given(finite, st.floats(1e-3, 1e6), st.floats(0, 1))
def test_a_scale_is_linear(low, width, share):
    scale = Scale(low, low + width, 10.0, 110.0)
    assert scale(low + share * width) == pytest.approx(10 + 100 * share, abs=0.2)


def test_a_log_scale_gives_every_decade_the_same_room():
    scale = Scale(0.01, 100.0, 0.0, 400.0, log=True)
    assert [scale(v) for v in (0.01, 0.1, 1.0, 10.0, 100.0)] == [0.0, 100.0, 200.0, 300.0, 400.0]


CHART = Chart(
    "c", "title", "x", "y",
    (
        Series("one", (Point(0, 1.0, 0.5, 1.5, tip="first"), Point(1, math.nan), Point(2, 3.0, tip="last")), style=0),
        Series("two", tuple(Point(x, x / 2, tip=f"two {x}") for x in range(3)), style=1),
    ),
    rules=(Rule("y", 2.0, "middle"), Rule("x", 1.0, "here")), bands=(Band(0.5, 1.5, "band"),),
)  # fmt: skip


def test_points_stand_where_their_values_say():
    page = read_page(draw(CHART))
    circles = {one.attributes["data-tip"]: one.attributes for one in page.all("circle") if "data-tip" in one.attributes}
    assert set(circles) == {"first", "last"}, "what is not a number leaves a gap"
    low, high = CHART.y_range
    per_unit = (float(circles["first"]["cy"]) - float(circles["last"]["cy"])) / (3.0 - 1.0)
    assert per_unit > 0, "up is more"
    (rule,) = [one for one in page.of_class("rule") if one.attributes["y1"] == one.attributes["y2"]]
    assert float(rule.attributes["y1"]) == pytest.approx(float(circles["first"]["cy"]) - per_unit, abs=0.02)
    error = page.of_class("error")[0].attributes
    assert float(error["y1"]) - float(error["y2"]) == pytest.approx(per_unit, abs=0.02), "from 0.5 to 1.5"
    assert low < 0 and high > 3


def test_series_are_told_apart_without_colour():
    page = read_page(draw(CHART))
    marks = [one.name for one in page.of_class("point") if "data-tip" in one.attributes]
    assert marks == ["circle"] * 2 + ["polygon"] * 3
    assert [one.text for one in page.all("li")] == ["one", "two"] and len(set(MARKERS)) == len(MARKERS)


def test_a_series_of_strange_values_is_drawn():
    points = (
        Point(0, math.inf),
        Point(1, -1.0),
        Point(2, 1e-12, low=-1.0, high=1.0),
        Point(3, 5.0, low=math.nan, high=math.inf),
    )
    for log in (False, True):
        page = read_page(draw(Chart("c", "t", "x", "y", (Series("s", points),), log_y=log)))
        assert "nan" not in str([one.attributes for one in page.of_class("point")])
    empty = read_page(draw(Chart("c", "t", "x", "y", (Series("s", ()),))))
    assert empty.all("svg")


def test_rows_of_dots_keep_their_order_and_long_names_their_words():
    names = ("short", "a very long name of a task that does not fit beside the drawing")
    series = tuple(
        Series(f"s{k}", tuple(Point(10.0 * k + row, row, tip=f"{k}{row}") for row in range(2)), style=k) for k in range(2)
    )
    page = read_page(draw(Chart("d", "t", "x", "", series, rows=names)))
    assert [one.text for one in page.all("title")] == list(names)
    places = {one.attributes["data-tip"]: one.attributes for one in page.of_class("point") if "data-tip" in one.attributes}
    assert float(places["00"]["cy"]) < float(places["01"]["cy"]) and float(places["00"]["cx"]) < float(places["01"]["cx"])


def test_cividis_passes_through_its_samples():
    n = len(CIVIDIS) - 1
    assert [cividis(i / n) for i in range(n + 1)] == list(CIVIDIS)
    assert cividis(-1) == CIVIDIS[0] and cividis(2) == CIVIDIS[-1]


def test_cividis_is_that_of_matplotlib():
    """Every fifth colour exactly; in between lines, which cut the corner that cividis has in its blues by up to 4 of 255."""
    colormaps = pytest.importorskip("matplotlib").colormaps
    for i in range(256):
        theirs = [round(255 * part) for part in colormaps["cividis"](i)[:3]]
        ours = [int(cividis(i / 255)[k : k + 2], 16) for k in (1, 3, 5)]
        assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= (4 if i % 5 else 0)


def shown(text: str) -> str:
    """The text with a mark for what HTML cannot hold: control characters, halves of surrogate pairs, non-characters."""
    bad = {"\ufffe", "\uffff"}
    found = text.replace("\r\n", "\n")
    return "".join("\ufffd" if c in bad or (unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n") else c for c in found)


@given(st.text(st.characters(codec=None, categories=None), max_size=40))
def test_any_text_survives_as_text(text):
    (found,) = read_page(tag("p", text, title=text)).all("p")
    assert found.text == found.attributes["title"] == shown(text)
    assert all(isinstance(one, str) for one in found.children)


scalars = st.text() | st.floats(allow_nan=False) | st.none()


@given(st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=6))
def test_data_blocks_hold_any_json(content):
    (block,) = read_page(data_block(content)).all("script")
    assert json.loads(block.text) == content


def test_data_blocks_cannot_be_left():
    content = {"</script><b>": ["</ScRiPt >", "<!--<script>", "]]>", "&lt;", "\u2028"]}
    page = read_page(data_block(content))
    assert [one.name for one in page] == ["", "script"] and json.loads(page.all("script")[0].text) == content
    assert "<" not in page.all("script")[0].text


def test_markup_is_only_what_tag_made():
    assert tag("b", "<i>", Html("<br>"), None, 3, [2.5, "&"]) == "<b>&lt;i&gt;<br>32.5&amp;</b>"
    assert tag("br", hidden=True, title=None, id=False) == "<br hidden>"
    assert "<b>" not in code("<b>")


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (0.25, "0.25"), (20000.0, "20000"), (3e7, "3e+07"), (1e-5, "1e-05")])
def test_ticks_in_few_characters(value, text):
    assert said(value) == text
