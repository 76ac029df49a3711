"""Teacher and student side by side: every figure of the evaluation."""

from shoal.evaluate.evaluation import Evaluation
from shoal.show import figure_tables
from shoal.show.chart import Chart, Point, Series
from shoal.show.html import tag
from shoal.show.report.run_data import Part, RunData, Section
from shoal.words.numbers import number


def figures(data: RunData) -> Section | None:
    found = data.evaluation
    if found is None:
        return None
    source = found.provenance
    note = f"On {source.text_said}, which nothing was chosen on. {figure_tables.figures_note(found)}"
    parts = (tag("p", note), figure_tables.figures(found), *_positions(found))
    return Section("figures", "What was lost, what was won", "evaluation.json", parts)


def _positions(found: Evaluation) -> tuple[Part, ...]:
    """KL, acceptance and agreement by position: does the loss grow with the context?"""
    if found.by_position is None or len(found.by_position.octaves) < 2:
        return ()
    names = tuple(figure_tables.octave(one) for one in found.by_position.octaves)
    points = tuple(
        Point(one.kl, row, tip=f"position {name}: KL {number(one.kl)}")
        for row, (one, name) in enumerate(zip(found.by_position.octaves, names, strict=True))
    )
    series = (Series("KL", points, is_line=False),)
    chart = Chart("positions", "KL by position in the sample", "KL, nats per token", "position", series, rows=names)
    return chart, figure_tables.positions(found.by_position)
