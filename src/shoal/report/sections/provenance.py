"""What the figures rest on, and how to get them again."""

from __future__ import annotations

from shoal.export import source_name
from shoal.report.data import RunData, Section
from shoal.report.html import Column, Html, code, details, number_columns, table, tag


def provenance(data: RunData) -> Section | None:
    facts = data.facts
    parts = []
    if facts.again:
        parts += [tag("p", "This makes the run and this page again:"), code(facts.again)]
    parts += [_inputs(data), _costs(data)]
    if data.verification is not None:
        parts.append(_verified(data))
    if facts.recipe:
        parts.append(details("The whole recipe", code(facts.recipe)))
    return Section("provenance", "What it rests on", "run.json, recipe.yaml and the files above", tuple(parts))


def _inputs(data: RunData) -> Html:
    columns = [
        Column("file"), Column("model"), Column("model hash"), Column("text"), Column("text hash"),
        *number_columns("samples", "tokens", "length", "seed"), Column("dtype"),
    ]  # fmt: skip
    rows = [
        [
            file, source_name(one.model), one.model_hash, one.data, one.data_hash,
            f"{one.n_samples:,}", f"{one.n_tokens:,}", str(one.length), str(one.seed), one.dtype,
        ] for file, one in data.provenances.items()
    ]  # fmt: skip
    trained = [one.result for one in data.curves if one.result]
    rows += [
        ["fit.json", data.name, data.plan.source_hash if data.plan else "", one.data, one.data_hash, "", f"{one.n_tokens:,}", "",
         str(one.config.seed), one.config.dtype]
        for one in trained
    ]  # fmt: skip
    if data.repair is not None:
        one = data.repair
        rows.append(["fit.json", data.name, data.plan.source_hash if data.plan else "", one.data, one.data_hash,
                     f"{one.n_samples:,}", f"{one.n_tokens:,}", "", "", ""])  # fmt: skip
    return table("Models and texts", columns, rows)


def _costs(data: RunData) -> Html:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(data.facts.versions.items()))
    rows = [[stage, f"{seconds:,.1f}"] for stage, seconds in data.facts.seconds.items()]
    shown = table("Wall time of the stages", [Column("stage"), *number_columns("seconds")], rows) if rows else None
    return tag("div", shown, tag("p", f"Versions: {versions}.", class_="note") if versions else None)


def _verified(data: RunData) -> Html:
    found = data.verification
    assert found is not None
    compared = ""
    if found.logit_difference is not None:
        compared = f"logits differ by at most {found.logit_difference:.3g} from the student's (allowed {found.logit_tolerance:.3g}), "
    text = (
        f"The checkpoint was opened again and checked: {found.n_tensors} tensors, {compared}"
        f"with cache by {found.cache_difference:.3g} from without (allowed {found.cache_tolerance:.3g})."
    )
    return tag("p", text, class_="note")
