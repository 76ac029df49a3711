"""A closed-form repair: what every refitted layer gained on samples that no fit has seen."""

from __future__ import annotations

from shoal.fit.fit_result import FitResult, explained, what
from shoal.show.chart import Chart, Point, Series
from shoal.show.html import Column, Html, number_columns, table, tag
from shoal.show.report.run_data import RunData, Section


def repair(data: RunData) -> Section | None:
    found = data.repair
    if found is None:
        return None
    said = [tag("p", f"Repair: {found}.")]
    if found.data:
        said.append(tag("p", f"Fitted on {found.n_tokens:,} tokens of {found.data} (hash {found.data_hash}).", class_="note"))
    skipped = [tag("ul", [tag("li", reason) for reason in found.skipped])] if found.skipped else []
    chart = [_chart(found)] if found.layers else []
    return Section("repair", "The closed-form repair", "fit.json", (*said, *chart, _table(found), *skipped))


def _chart(found: FitResult) -> Chart:
    def points(when: str) -> tuple[Point, ...]:
        made = []
        for one in found.layers:
            value = one.error_before if when == "before" else one.error_after
            made.append(Point(one.layer, value, tip=f"layer {one.layer}, {when} the refit: {value:.4g}"))
        return tuple(made)

    series = (Series("before the refit", points("before"), style=1), Series("after it", points("after"), style=0))
    title = "Miss of the teacher's boundary on held-out samples"
    return Chart("repair", title, "layer", "squared miss / squared norm", series, log_y=True)


def _table(found: FitResult) -> Html:
    columns = [
        Column("layer"), Column("fitted to boundary"), Column("refitted"),
        *number_columns("R² of the change, folds left out", "ridge", "held-out error before", "after", "seconds"),
    ]  # fmt: skip
    rows = []
    for one in found.layers:
        names = [what(fit) for fit in one.maps]
        rows.append(
            [
                str(one.layer),
                str(one.target),
                ", ".join(names[: one.n_kept]) or "nothing",
                ", ".join(explained(fit) for fit in one.maps),
                ", ".join(f"{fit.ridge:.0e}" for fit in one.maps),
                f"{one.error_before:.4g}",
                f"{one.error_after:.4g}",
                f"{one.seconds:.1f}",
            ]
        )
    return table("Refitted layers, front to back", columns, rows, is_long=True)
