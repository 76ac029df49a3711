"""What the figures rest on, and how to get them again."""

from shoal.show.headline import source_name
from shoal.show.html import Html, code, details, tag
from shoal.show.report.run_data import Part, RunData, Section
from shoal.show.table import Column, Table, numbers
from shoal.words.numbers import short, tenths, whole


def provenance(data: RunData) -> Section | None:
    facts = data.facts
    parts: list[Part] = []
    if facts.again:
        parts += [tag("p", "This makes the run and this page again:"), code(facts.again)]
    parts += [_inputs(data)]
    if facts.seconds:
        columns = (Column("stage"), *numbers("seconds", form=tenths))
        parts.append(Table("Wall time of the stages", columns, tuple(facts.seconds.items())))
    if facts.versions:
        versions = ", ".join(f"{name} {version}" for name, version in sorted(facts.versions.items()))
        parts.append(tag("p", f"Versions: {versions}.", class_="note"))
    if data.verification is not None:
        parts.append(_verified(data))
    if facts.recipe:
        parts.append(details("The whole recipe", code(facts.recipe)))
    return Section("provenance", "What it rests on", "run.json, recipe.yaml and the files above", tuple(parts))


def _inputs(data: RunData) -> Table:
    """One column per file that holds figures, one row per fact."""
    columns: dict[str, dict[str, str]] = {}
    for file, one in data.provenances.items():
        columns[file] = {
            "model": source_name(one.model),
            "model hash": one.model_hash,
            "text": one.data,
            "text hash": one.data_hash,
            "samples": whole(one.n_samples),
            "tokens": whole(one.n_tokens),
            "tokens per sample": whole(one.length),
            "seed": str(one.seed),
            "dtype": one.dtype,
        }
    for curve in data.curves:
        if curve.result is not None:
            done, config = curve.result, curve.result.config
            columns[f"training of {curve.name}"] = {
                "text": done.data, "text hash": done.data_hash, "tokens": whole(done.n_tokens), "seed": str(config.seed),
                "dtype": config.dtype,
            }  # fmt: skip
    if data.repair is not None:
        fit = data.repair
        columns["fit.json"] = {
            "text": fit.data, "text hash": fit.data_hash, "samples": whole(fit.n_samples), "tokens": whole(fit.n_tokens),
        }  # fmt: skip
    if data.healing is not None:
        healing = data.healing
        columns["heal.json"] = {
            "text": healing.data, "text hash": healing.data_hash, "tokens": whole(healing.n_tokens),
            "seed": str(healing.config.seed),
        }  # fmt: skip
    if data.plan is not None:
        columns = {"plan.json": {"model": source_name(data.plan.source), "model hash": data.plan.source_hash}, **columns}
    names = ("model", "model hash", "text", "text hash", "samples", "tokens", "tokens per sample", "seed", "dtype")
    rows = tuple((name, *(one.get(name) for one in columns.values())) for name in names)
    return Table("Models and texts", (Column(""), *map(Column, columns)), rows)


def _verified(data: RunData) -> Html:
    found = data.verification
    assert found is not None
    compared = ""
    if found.logit_difference is not None:
        allowed = short(found.logit_tolerance or 0.0)
        compared = f"logits differ by at most {short(found.logit_difference)} from the student's (allowed {allowed}), "
    text = (
        f"The checkpoint was opened again and checked: {found.n_tensors} tensors, {compared}"
        f"with cache by {short(found.cache_difference)} from without (allowed {short(found.cache_tolerance)})."
    )
    return tag("p", text, class_="note")
