"""How the replacements learned: the objective and the true KL on text that is not trained on, by tokens read."""

import math
from collections.abc import Callable

from shoal.show.chart import Chart, Point, Rule, Series
from shoal.show.html import tag
from shoal.show.report.run_data import LearningCurve, Part, RunData, Section
from shoal.show.table import Column, Table, numbers
from shoal.train.train_result import CurvePoint
from shoal.words.numbers import number, short, tenths, whole


def learning(data: RunData) -> Section | None:
    curves = [one for one in data.curves if one.points]
    if not curves:
        return None
    parts: list[Part] = []
    for one in curves:
        result = one.result
        parts.append(tag("p", f"Trained: {result}." if result else f"{one.name}: training has not finished."))
        title = f"{one.name}: {result.objective if result else 'objective'} on selection"
        parts.append(_chart(one, "objective", title, "validation", lambda p: p.validation))
        if any(point.quality is not None for point in one.points):
            parts.append(_chart(one, "kl", f"{one.name}: KL of the whole student", "KL, nats per token", lambda p: p.quality))
        parts.append(_table(one))
    return Section("training", "How the repair learned", "train.json or fit.json, train/*/curve.jsonl", tuple(parts))


def _chart(one: LearningCurve, stem: str, title: str, y_label: str, value: Callable[[CurvePoint], float | None]) -> Chart:
    points = []
    for point in one.points:
        found = value(point)
        y = math.nan if found is None else found
        points.append(Point(point.tokens, y, tip=f"step {point.step}, {point.tokens:,} tokens: {number(y)}"))
    rules = (Rule("x", one.result.best.tokens, "kept"),) if one.result else ()
    series = (Series(y_label, tuple(points), style=0),)
    return Chart(f"training-{one.stem}-{stem}", title, "training tokens", y_label, series, rules=rules)


def _table(one: LearningCurve) -> Table:
    columns = (
        Column("step"), *numbers("tokens", form=whole), *numbers("learning rate", form=short),
        *numbers("training loss", "gradient norm", "validation", "KL"), *numbers("seconds", form=tenths),
    )  # fmt: skip
    best, rows = one.result.best_step if one.result else None, []
    for p in one.points:
        step = f"{p.step} (kept)" if p.step == best else str(p.step)
        rows.append((step, p.tokens, p.lr, p.loss, p.grad_norm, p.validation, p.quality, p.seconds))
    return Table(f"{one.name}: learning curve", columns, tuple(rows), is_long=True)
