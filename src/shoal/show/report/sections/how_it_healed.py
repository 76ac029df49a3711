"""How the whole student was trained behind the cut: objective, KL and NLL on selection, learning rate, speed, merge; or why
it was not."""

import math
from collections.abc import Callable

from shoal.show.before_after import before_after, drift_table
from shoal.show.chart import Chart, Point, Rule, Series
from shoal.show.html import tag
from shoal.show.report.run_data import Part, RunData, Section
from shoal.show.table import Column, Table, numbers
from shoal.train.heal.result import HealPoint, HealTraining, Merging
from shoal.words.numbers import number, short, whole


def healing(data: RunData) -> Section | None:
    done = data.healing
    if done is None:
        why = tag("p", f"Not healed: {data.not_healed}.")
        return Section("healing", "Why it was not healed", "not_healed.txt", (why,)) if data.not_healed else None
    parts: list[Part] = [tag("p", f"Healed: {done}."), tag("p", _said(done))]
    parts += [tag("p", f"Teacher: {one}.") for one in (done.quantised, done.cached) if one is not None]
    if data.merging is not None and data.merging.trials:
        parts.append(tag("p", _merged(done, data.merging)))
    files = "heal.json, merge.json"
    if data.before is not None and data.evaluation is not None:
        parts.append(before_after(data.before, data.evaluation))
        files += ", before.json, evaluation.json"
    if data.drift is not None:
        parts.append(drift_table(data.drift))
        files += ", drift.json"
    parts.append(_chart(done, "loss", "Objective on the training text", "objective", lambda p: p.loss))
    if done.start.kl is not None:
        parts.append(_chart(done, "kl", "KL to the teacher on selection", "KL, nats per token", lambda p: p.kl))
    parts.append(_chart(done, "nll", "Loss of the text on selection", "NLL, nats per token", lambda p: p.nll))
    parts.append(_table(done))
    return Section("healing", "How it healed", files, tuple(parts))


def _said(done: HealTraining) -> str:
    """Share of the gap closed, speed and memory."""
    first, kept = (one.measure(done.decided_by) for one in (done.start, done.best))
    closed = f"{100 * (1 - kept / first):.1f} % of the KL on selection is gone; " if done.decided_by == "kl" and first else ""
    share = 100 * done.n_trainable / done.n_parameters
    return (
        f"{closed}{share:.2f} % of the parameters were trained, at {done.tokens_per_second:,.0f} tokens per second; the "
        f"process held {done.peak_bytes / 1e9:.2f} GB at most."
    )


def _merged(done: HealTraining, merging: Merging) -> str:
    tried = "; ".join(f"{one.way} {one.lost:+.5f}" for one in merging.trials)
    return f"Merged: {merging.way}. Change of the {done.decided_by} by each way, nats per token: {tried}."


def _chart(done: HealTraining, stem: str, title: str, y_label: str, value: Callable[[HealPoint], float | None]) -> Chart:
    points = []
    for point in done.curve:
        found = value(point)
        y = math.nan if found is None else found
        points.append(Point(point.tokens, y, tip=f"step {point.step}, {point.tokens:,} tokens: {number(y)}"))
    rules = (Rule("x", done.best.tokens, "kept"),)
    return Chart(f"healing-{stem}", title, "training tokens", y_label, (Series(y_label, tuple(points), style=0),), rules=rules)


def _table(done: HealTraining) -> Table:
    columns = (
        Column("step"), *numbers("tokens", form=whole), *numbers("learning rate", form=short),
        *numbers("objective", "NLL", "KL"),
    )  # fmt: skip
    rows = []
    for p in done.curve:
        step = f"{p.step} (kept)" if p.step == done.best_step else str(p.step)
        rows.append((step, p.tokens, p.lr, p.loss, p.nll, p.kl))
    return Table("healing: learning curve", columns, tuple(rows), is_long=True)
