"""One table, three renderers: no figure and no key is cut at any width, and nothing a stranger wrote acts as markup."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_reader import read_page, table_of
from rich.console import Console

from shoal.evaluate.intervals import Interval
from shoal.show import html, markdown
from shoal.show.table import Column, Table, numbers
from shoal.words import numbers as words

SOME = Interval(value=0.5, low=0.25, high=1.0)
FIGURES = Table(
    "Tasks [of] all kinds",
    (
        Column("task"), *numbers("accuracy, %", "kept, %", "stability, %", form=words.percents), *numbers("KL, nats per token"),
        *numbers("bytes", form=words.in_bytes), Column("about"),
    ),
    (
        ("cosine/rest", SOME, SOME, None, 0.125, 12_345, "a word or two that may fold where the terminal is narrow"),
        ("cosine/every", SOME, "n/a", SOME, 1234567.0, None, ""),
    ),
    notes=("note [b]",),
    breaks=(1,),
    strong=0,
)  # fmt: skip
HOSTILE = "[red]a[/x] | \x1b[31m `b` <i> \u202e end"


def printed(table, width=80):
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=False).print(table)
    return stream.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_no_figure_and_no_key_is_cut_at_any_width(width):
    text = printed(FIGURES, width)
    assert all(len(line) <= width for line in text.splitlines())
    for row in FIGURES.texts:
        for cell in row[:-1]:
            assert cell in text
    assert "note [b]" in text and "Tasks [of] all kinds" in text and "…" not in text
    flat = " ".join(text.split())
    for word in (*FIGURES.texts[0][-1].split(), *(word for column in FIGURES.columns for word in column.name.split())):
        assert word in flat


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(40, 160))
def test_every_column_is_somewhere(lengths, width):
    columns = (Column("key"), *numbers(*(f"c{j}" for j in range(len(lengths)))))
    cells = [f"{j}" * n for j, n in enumerate(lengths)]
    text = printed(Table("", columns, (("k", *cells),)), width)
    assert all(cell in text for cell in cells) and all(len(line) <= width for line in text.splitlines())


def test_the_renderers_show_the_same_cells():
    assert table_of(read_page(html.table(FIGURES)), FIGURES.caption)[1:] == FIGURES.texts
    lines = markdown.table(FIGURES).splitlines()
    assert [line.strip("| ").split(" | ")[0] for line in lines[2:4]] == [row[0] for row in FIGURES.texts]
    assert lines[1].count("---:") == 5 and lines[-1] == "note \\[b\\]"


def test_what_strangers_wrote_stays_text():
    table = Table(HOSTILE, (Column(HOSTILE), Column("b")), ((HOSTILE, HOSTILE),), notes=(HOSTILE,))
    text = printed(table, 200)
    assert text.count("[red]a[/x] | \ufffd[31m `b` <i> \ufffd end") == 5 and "\x1b" not in text
    (row,) = markdown.table(table).splitlines()[2:3]
    assert "\\[red\\]a\\[/x\\] \\|" in row and "&lt;i>" in row and "\\`b\\`" in row


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (words.number(12345.6), "12,346"),
        (words.number(0.123456), "0.1235"),
        (words.number(9999.4), "9999"),
        (words.number(9999.7), "10,000"),
        (words.short(2781.4), "2,781"),
        (words.short(-999.7), "-1,000"),
        (words.short(999.4), "999"),
        (words.short(0.12345), "0.123"),
        (words.short(3e9), "3e+09"),
        (words.percents(SOME), "50.0 (25.0..100.0)"),
        (words.ratio(SOME), "0.50 (0.25..1.00)"),
        (words.change(3, 4), "-25.0 %"),
        (words.change(3, 0), ""),
        (words.with_error(0.125, 0.015625), "0.125 ± 0.016"),
        (words.with_error(0.125, float("nan")), "0.125"),
        (words.with_error(float("nan"), 1.0), ""),
        (words.count(2_935_936), "2.936 M"),
        (words.in_bytes(1234e9), "1,234 GB"),
        (words.in_bytes(999.7e6), "1 GB"),
        (words.in_bytes(999_400), "999 kB"),
        (words.in_bytes(999.7e9), "1,000 GB"),
        (words.saturating_exp(1e4), float("inf")),
        (words.saturating_exp(0.0), 1.0),
    ],
)
def test_figures_for_people(found, text):
    assert found == text
