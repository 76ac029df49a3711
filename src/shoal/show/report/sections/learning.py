"""How the replacements learned: the objective and the true KL on text that is not trained on, by tokens read."""

from __future__ import annotations

import math
from collections.abc import Callable

from shoal.show.chart import Chart, Point, Rule, Series
from shoal.show.html import Column, Html, number_columns, table, tag
from shoal.show.report.run_data import LearningCurve, RunData, Section
from shoal.train.train_result import CurvePoint


def learning(data: RunData) -> Section | None:
    curves = [one for one in data.curves if one.points]
    if not curves:
        return None
    parts: list[Html | Chart] = []
    for one in curves:
        result = one.result
        parts.append(tag("p", f"Trained: {result}." if result else f"{one.name}: training has not finished."))
        objective = result.objective if result else "objective"
        stem = f"training-{one.stem}"
        parts.append(
            _chart(one, f"{stem}-objective", f"{one.name}: {objective} on selection", "validation", lambda p: p.validation)
        )
        if any(point.quality is not None for point in one.points):
            parts.append(
                _chart(one, f"{stem}-kl", f"{one.name}: KL of the whole student", "KL, nats per token", lambda p: p.quality)
            )
        parts.append(_table(one))
    return Section("training", "How the repair learned", "train.json or fit.json, train/*/curve.jsonl", tuple(parts))


def _chart(one: LearningCurve, name: str, title: str, y_label: str, value: Callable[[CurvePoint], float | None]) -> Chart:
    points = []
    for point in one.points:
        found = value(point)
        y = math.nan if found is None else found
        points.append(Point(point.tokens, y, tip=f"step {point.step}, {point.tokens:,} tokens: {y:.4g}"))
    rules = (Rule("x", one.result.best.tokens, "kept"),) if one.result else ()
    series = (Series(y_label, tuple(points), style=0),)
    return Chart(name, title, "training tokens", y_label, series, rules=rules)


def _table(one: LearningCurve) -> Html:
    names = ("tokens", "learning rate", "training loss", "gradient norm", "validation", "KL", "seconds")
    rows = [
        [
            f"{point.step}{' (kept)' if one.result and one.result.best_step == point.step else ''}",
            f"{point.tokens:,}",
            f"{point.lr:.3g}",
            _optional(point.loss),
            _optional(point.grad_norm),
            f"{point.validation:.4g}",
            _optional(point.quality),
            f"{point.seconds:.1f}",
        ]
        for point in one.points
    ]
    return table(f"{one.name}: learning curve", [Column("step"), *number_columns(*names)], rows, is_long=True)


def _optional(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
