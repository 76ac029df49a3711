"""How the choice was searched for: the best set against sets run, and the scores of single units."""

from shoal.edits.plan import Plan
from shoal.measure.unit_score_record import UnitScores
from shoal.select.search.search_record import SearchRecord
from shoal.select.verdict import kl_said
from shoal.show.chart import Chart, Point, Series
from shoal.show.html import tag
from shoal.show.report.run_data import Part, RunData, Section
from shoal.words.numbers import number
from shoal.words.structure import describe_units


def search(data: RunData) -> Section | None:
    parts: list[Part] = []
    files: list[str] = []
    if data.search is not None:
        parts += [tag("p", _searched(data.search) + _outcome(data.search, data.plan)), _curve(data.search)]
        files.append("search.json")
    if data.scores is not None:
        parts += [tag("p", _scored(data.scores)), _scores(data.scores)]
        files.append("scores.json")
    return Section("search", "How the choice was searched for", " and ".join(files), tuple(parts)) if parts else None


def _searched(found: SearchRecord) -> str:
    return (
        f"{found.selector} by {found.metric}: {found.n} of {found.n_units} {found.units} that may go, "
        f"{found.n_evaluations:,} sets run{_on(found)}. Losses are of plain cuts, before any repair."
    )


def _outcome(found: SearchRecord, plan: Plan | None) -> str:
    """Who won in its place, where the set of the search was not chosen; else nothing."""
    if plan is None or not plan.candidates or found.selector in plan.candidates[0].proposed_by:
        return ""
    winner, *others = plan.candidates
    searched = next((one for one in others if found.selector in one.proposed_by), None)
    by = winner.proposed_by[0] if winner.proposed_by else "another"
    against = "" if searched is None or searched.kl is None else f", KL {kl_said(winner)} against {kl_said(searched)}"
    return f" Its set was not chosen; that of {by} lost less{against}: {describe_units(winner.units, plan.n_layers)}."


def _on(found: SearchRecord | UnitScores) -> str:
    """The text with its tokens, the items of tasks, or nothing where nothing was read."""
    if found.n_tokens:
        return f" on {found.n_tokens:,} tokens of {found.data}"
    return f" on {found.data}" if found.data else ""


def _curve(found: SearchRecord) -> Chart:
    """A step down at every improvement, flat to the end of the search."""
    points: list[Point] = []
    for evaluations, loss in found.curve:
        if points:
            points.append(Point(evaluations, points[-1].y))
        points.append(Point(evaluations, loss, tip=f"after {evaluations:,} sets: {number(loss)}"))
    if points:
        points.append(Point(found.n_evaluations, points[-1].y))
    series = (Series(found.selector, tuple(points)),)
    return Chart("search", "Best set so far against sets run", "sets run", found.metric, series)


def _scored(found: UnitScores) -> str:
    lower = "highest" if found.higher_is_more_redundant else "lowest"
    return f"{found.by}: {found.about}{_on(found)}; the {lower} goes first."


def _scores(found: UnitScores) -> Chart:
    points = []
    for row, (unit, value) in enumerate(found.values.items()):
        error = found.stderr.get(unit, 0.0)
        points.append(Point(value, row, low=value - error, high=value + error, tip=f"{unit}: {number(value)}"))
    series = (Series(found.by, tuple(points), is_line=False),)
    return Chart("scores", f"{found.by} of every unit", found.unit, "", series, rows=tuple(found.values), whole_x=False)
