"""What the figures rest on, and how to get them again."""

from __future__ import annotations

from shoal.show.headline import source_name
from shoal.show.html import Column, Html, code, details, number_columns, table, tag
from shoal.show.report.run_data import RunData, Section


def provenance(data: RunData) -> Section | None:
    facts = data.facts
    parts = []
    if facts.again:
        parts += [tag("p", "This makes the run and this page again:"), code(facts.again)]
    parts += [_inputs(data)]
    if facts.seconds:
        rows = [[stage, f"{seconds:,.1f}"] for stage, seconds in facts.seconds.items()]
        parts.append(table("Wall time of the stages", [Column("stage"), *number_columns("seconds")], rows))
    if facts.versions:
        versions = ", ".join(f"{name} {version}" for name, version in sorted(facts.versions.items()))
        parts.append(tag("p", f"Versions: {versions}.", class_="note"))
    if data.verification is not None:
        parts.append(_verified(data))
    if facts.recipe:
        parts.append(details("The whole recipe", code(facts.recipe)))
    return Section("provenance", "What it rests on", "run.json, recipe.yaml and the files above", tuple(parts))


def _inputs(data: RunData) -> Html:
    """One column per file that holds figures, one row per fact."""
    columns: dict[str, dict[str, str]] = {}
    for file, one in data.provenances.items():
        columns[file] = {
            "model": source_name(one.model),
            "model hash": one.model_hash,
            "text": one.data,
            "text hash": one.data_hash,
            "samples": f"{one.n_samples:,}",
            "tokens": f"{one.n_tokens:,}",
            "tokens per sample": f"{one.length:,}",
            "seed": str(one.seed),
            "dtype": one.dtype,
        }
    for curve in data.curves:
        if curve.result is not None:
            done, config = curve.result, curve.result.config
            columns[f"training of {curve.name}"] = {
                "text": done.data, "text hash": done.data_hash, "tokens": f"{done.n_tokens:,}", "seed": str(config.seed),
                "dtype": config.dtype,
            }  # fmt: skip
    if data.repair is not None:
        fit = data.repair
        columns["fit.json"] = {
            "text": fit.data, "text hash": fit.data_hash, "samples": f"{fit.n_samples:,}", "tokens": f"{fit.n_tokens:,}",
        }  # fmt: skip
    if data.plan is not None:
        columns = {"plan.json": {"model": source_name(data.plan.source), "model hash": data.plan.source_hash}, **columns}
    names = ("model", "model hash", "text", "text hash", "samples", "tokens", "tokens per sample", "seed", "dtype")
    rows = [[name, *(one.get(name, "") for one in columns.values())] for name in names]
    return table("Models and texts", [Column(""), *map(Column, columns)], rows)


def _verified(data: RunData) -> Html:
    found = data.verification
    assert found is not None
    compared = ""
    if found.logit_difference is not None:
        compared = (
            f"logits differ by at most {found.logit_difference:.3g} from the student's (allowed {found.logit_tolerance:.3g}), "
        )
    text = (
        f"The checkpoint was opened again and checked: {found.n_tensors} tensors, {compared}"
        f"with cache by {found.cache_difference:.3g} from without (allowed {found.cache_tolerance:.3g})."
    )
    return tag("p", text, class_="note")
