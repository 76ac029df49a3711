"""A closed-form repair: what every refitted layer gained on samples that no fit has seen."""

from shoal.fit.fit_result import FitResult
from shoal.show import plan_tables
from shoal.show.chart import Chart, Point, Series
from shoal.show.html import tag
from shoal.show.report.run_data import RunData, Section
from shoal.words.numbers import number


def repair(data: RunData) -> Section | None:
    found = data.repair
    if found is None:
        return None
    said = [tag("p", f"Repair: {found}.")]
    if found.data:
        said.append(tag("p", f"Fitted on {found.n_tokens:,} tokens of {found.data} (hash {found.data_hash}).", class_="note"))
    chart = [_chart(found)] if found.layers else []
    return Section("repair", "The closed-form repair", "fit.json", (*said, *chart, plan_tables.repair(found)))


def _chart(found: FitResult) -> Chart:
    def series(name: str, when: str, errors: list[float], style: int) -> Series:
        both = zip(found.layers, errors, strict=True)
        points = (Point(one.layer, e, tip=f"layer {one.layer}, {when} the refit: {number(e)}") for one, e in both)
        return Series(name, tuple(points), style=style)

    before = series("before the refit", "before", [one.error_before for one in found.layers], 1)
    after = series("after it", "after", [one.error_after for one in found.layers], 0)
    title = "Miss of the teacher's boundary on held-out samples"
    return Chart("repair", title, "layer", "squared miss / squared norm", (before, after), log_y=True)
