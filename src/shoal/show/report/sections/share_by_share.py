"""Quality against the removed share: a curve per measure, its cliffs, and the largest cut that keeps what was asked for."""

from shoal.evaluate.curve.largest_cut import sentence
from shoal.evaluate.intervals import LEVEL
from shoal.show.curve_views import cliff_lines, curves_charts, curves_table, smooth_lines
from shoal.show.html import bullets, tag
from shoal.show.report.run_data import Part, RunData, Section


def ratios(data: RunData) -> Section | None:
    found = data.ratios
    if found is None or not found.points:
        return None
    source = found.provenance
    intro = (
        f"Every cut is made and measured on {source.data}, {source.n_samples:,} samples, {sum(found.n_tokens):,} predicted "
        f"tokens. Intervals: {100 * LEVEL:g} %, {found.n_resamples:,} resamples of samples or items, the same for all cuts. "
        "Shaded: where a curve breaks."
    )
    lines = bullets([f"{line}." for line in (*(sentence(one) for one in found.kept), *cliff_lines(found))])
    parts: list[Part] = [tag("p", intro), *([lines] if lines else []), *curves_charts(found), curves_table(found)]
    parts += [tag("p", f"{line}.") for line in smooth_lines(found)]
    return Section("ratios", "Quality against the removed share", "curve.json", tuple(parts))
