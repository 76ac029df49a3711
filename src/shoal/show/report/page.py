"""The page: sections in order inside one self-contained HTML file, opened from disk, in light and dark, on paper and phones.

Nothing is fetched, ever: style and script stand in the file, and its content security policy lets nothing else load or run.
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from importlib import resources

from shoal import __version__
from shoal.show.chart import Chart
from shoal.show.headline import Fact, became, headline
from shoal.show.heat import Heat
from shoal.show.html import Html, join, table, tag
from shoal.show.report.layer_strip import strip
from shoal.show.report.run_data import Part, RunData, Section
from shoal.show.report.sections.answers_kept import tasks
from shoal.show.report.sections.how_fast import speed
from shoal.show.report.sections.how_it_healed import healing
from shoal.show.report.sections.how_it_learned import learning
from shoal.show.report.sections.how_it_searched import search
from shoal.show.report.sections.layer_by_layer import anatomy
from shoal.show.report.sections.proved_in_engines import engines
from shoal.show.report.sections.repair_gains import repair
from shoal.show.report.sections.share_by_share import ratios
from shoal.show.report.sections.what_is_zero import zeros
from shoal.show.report.sections.what_it_rests_on import provenance
from shoal.show.report.sections.what_they_write import written
from shoal.show.report.sections.what_was_lost import figures
from shoal.show.report.sections.which_spans import spans
from shoal.show.report.sections.why_these_layers import candidates
from shoal.show.svg import draw
from shoal.show.svg_heat import draw_heat
from shoal.show.table import Table

SECTIONS: tuple[Callable[[RunData], Section | None], ...] = (
    ratios, figures, tasks, written, speed, candidates, search, spans, anatomy, repair, zeros, learning, healing,
    engines, provenance,
)  # fmt: skip
"""In the order of the page. Each reads the values it needs and is None where they are not there."""

GENERATOR = "shoal report"
"""In the page's head: marks a file as one of ours, which a new report may replace."""


def sections(data: RunData) -> tuple[Section, ...]:
    """The sections this folder has something for."""
    return tuple(found for make in SECTIONS if (found := make(data)) is not None)


def page(data: RunData) -> str:
    """The whole file. The same values give the same bytes."""
    shown = sections(data)
    of_none = "cut by cut" if data.ratios else "healed" if data.healing else "layer by layer"
    what = became(data.plan) if data.plan else of_none
    body = (_top(shown), tag("main", _head(data, what), [_section(one) for one in shown], id="top"), _foot())
    return document(f"{data.name}, {what}", body)


def page_of(name: str, what: str, shown: Sequence[Section]) -> str:
    """A page of sections that are of no run folder."""
    head = tag("section", tag("p", "Shoal report", class_="kicker"), tag("h1", tag("bdi", name), f", {what}"), class_="hero")
    body = (_top(shown), tag("main", head, [_section(one) for one in shown], id="top"), _foot())
    return document(f"{name}, {what}", body)


def document(title: str, body: Sequence[Html]) -> str:
    """An HTML file with the style, the script and the policy that allows only these two."""
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        Html(f'<meta name="generator" content="{GENERATOR} {__version__}">'),
        Html('<meta name="color-scheme" content="light dark">'),
        tag("title", title),
        Html(f"<style>{style}</style>"),
    )
    parts = join("\n", [join(part, "\n") for part in body])
    return f'<!DOCTYPE html>\n<html lang="en">\n{head}\n<body>{parts}<script>{script}</script></body>\n</html>\n'


def _top(shown: Sequence[Section]) -> Html:
    links = [tag("li", tag("a", one.id.capitalize(), href=f"#{one.id}")) for one in shown]
    switch = tag("button", "Dark", type="button", id="scheme", aria_pressed="false", hidden=True)
    skip = tag("a", "Skip to the content", href="#top", class_="skip")
    return tag("header", skip, tag("nav", tag("ul", links), aria_label="Sections"), switch, class_="top")


def _head(data: RunData, what: str) -> Html:
    # Isolated: a name may hold marks that turn the direction of the text behind them.
    parts: list[Html] = [tag("p", "Shoal report", class_="kicker"), tag("h1", tag("bdi", data.name), f", {what}")]
    if data.missing:
        text = "This is a part of a report. Not in the folder: " + "; ".join(data.missing) + "."
        parts.append(tag("p", text, class_="missing", role="note"))
    if data.plan is None:
        return tag("section", parts, class_="hero", aria_label="Headline")
    said = headline(data.plan, data.evaluation, data.tasks[0], thinned=data.thinned)
    parts.append(strip(data.plan, _trained(data)))
    for name, facts in ((said.changed, said.removed), ("What it cost", said.cost), ("What it buys", said.gain)):
        if facts:
            tiles = tag("dl", [_tile(one) for one in facts], class_="tiles")
            parts.append(tag("div", tag("h2", name), tiles, class_="group"))
    return tag("section", parts, class_="hero", aria_label="Headline")


def _trained(data: RunData) -> str:
    """How a healing changed the layers that stay; empty where there was none, or where its start was best."""
    done = data.healing
    return f"{done.method}, {done.n_trainable:,} parameters" if done is not None and done.best_step else ""


def _tile(one: Fact) -> Html:
    return tag("div", tag("dt", one.label), tag("dd", one.value, class_="value"), tag("dd", one.note, class_="note"))


def _section(one: Section) -> Html:
    heading, source = tag("h2", one.title, id=f"{one.id}-title"), tag("p", f"From {one.source}", class_="source")
    return tag("section", heading, source, _parts(one.parts), id=one.id, aria_labelledby=f"{one.id}-title")


def _parts(parts: Sequence[Part]) -> Html:
    """Charts that follow one another share a row where there is room."""
    made: list[Html] = []
    row: list[Html] = []
    for part in (*parts, None):
        if isinstance(part, Chart):
            row.append(draw(part))
            continue
        if row:
            made.append(tag("div", row, class_="charts"))
            row = []
        if part is not None:
            made.append(table(part) if isinstance(part, Table) else draw_heat(part) if isinstance(part, Heat) else part)
    return join(made)


def _foot() -> Html:
    return tag(
        "footer", tag("p", f"Made by Shoal {__version__} from the files of the run folder; nothing on this page was fetched.")
    )


def _asset(name: str) -> str:
    return resources.files("shoal.show.report").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """The content security policy's name for an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
