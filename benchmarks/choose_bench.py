"""A model with its texts, and what is shared by its cells: each is measured when a cell first asks for it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from choose_cells import Cell


class Bench:
    """A model with its texts; what is shared by its cells is measured when a cell first asks for it."""

    def __init__(self, model: str, text: str, options: argparse.Namespace, repaired: dict[str, dict[str, Any]]) -> None:
        self.options = options
        self.text = {"sources": [text] if text else [], "length": options.length}
        self.model = model
        self.repaired = repaired  # losses of sets that are known, by their units
        self.scored: dict[tuple[str, Any], tuple[dict[str, Any], float, int]] = {}

    @cached_property
    def inputs(self) -> Any:
        from shoal.engine.opening import Opening
        from shoal.recipes.recipe_file import load_recipe
        from shoal.run.job import open_inputs, window_of

        def opened(length: int | None) -> Any:
            text = {**self.text, "length": length}
            search = {"tokens": self.options.tokens, "evaluations": self.options.evaluations}
            recipe = load_recipe("default", {"model": self.model, "text": text, "search": search})
            return open_inputs(recipe, Opening(resident="all"))

        found = opened(None)
        window = window_of(found.view.config) or self.options.length
        return opened(min(window, self.options.length))

    @cached_property
    def searched(self) -> Any:
        samples = self.inputs.calibration
        return samples.take(max(1, min(samples.n_samples, self.options.tokens // samples.length)))

    @cached_property
    def judge(self) -> Any:
        """Of the evaluation slice."""
        from shoal.measure.oracle import Oracle

        samples = self.inputs.evaluation
        return Oracle(self.inputs.view, self.inputs.batches(samples.take(max(1, self.options.judged // samples.length))))

    @cached_property
    def judge_searched(self) -> Any:
        """Of the text that every way reads, apart from the ways themselves: what it measured is known to none of them."""
        from shoal.select.request import Request

        units = Request(n_layers=self.size.n_layers, n=1, units="sublayers").free_units
        layers = Request(n_layers=self.size.n_layers, n=1).free_units
        return self.value(sorted({*units, *layers}))

    @cached_property
    def fitting(self) -> Any:
        samples = self.inputs.fitting
        return samples.take(max(20, min(samples.n_samples, self.options.fit_tokens // samples.length)))

    @cached_property
    def size(self) -> Any:
        from shoal.select.model_size import model_size

        return model_size(self.inputs.view)

    @cached_property
    def tables(self) -> tuple[dict[str, Any], float]:
        """Scores of spans by one pass over the search text, and its seconds."""
        from shoal.engine.passes import run_pass
        from shoal.measure.gram import GramObserver

        batches, started = self.inputs.batches(self.searched), time.process_time()
        gram = GramObserver(self.inputs.view.n_layers)
        run_pass(self.inputs.view, batches, observers=[gram])
        return {table.name: table for table in gram.tables()}, time.process_time() - started

    def value(self, units: Sequence[Any], metric: str = "kl", limit: int | None = None) -> Any:
        from shoal.measure.removals import removal_function

        return removal_function(self.inputs.view, self.inputs.batches(self.searched), units, metric=metric, limit=limit)

    def value_by_answers(self, units: Sequence[Any]) -> Any:
        """v(S) by the last items of the task to choose by."""
        from shoal.evaluate.tasks.task_files import load_task
        from shoal.evaluate.tasks.task_loss import task_function
        from shoal.run.job import window_of

        task, n = load_task(self.options.search_task), self.options.search_items
        is_judged = any(one.resolve() == self.options.search_task.resolve() for one in self.options.task)
        if is_judged and self.options.items + n > len(task.items):
            raise ValueError(f"the last {n} items of {task.name} are judged on, too; give fewer --search-items or --items")
        task = replace(task, items=task.items[-n:])
        tokenizer, window = self.inputs.opened.need_tokenizer(), window_of(self.inputs.view.config)
        return task_function(self.inputs.view, [task], units, tokenizer=tokenizer, window=window)

    def n_layers_out(self, ratio: int) -> int:
        from fractions import Fraction

        from shoal.select.budget import Budget, resolve
        from shoal.select.model_size import NOTHING

        free = range(1, self.size.n_layers - 1)
        budget = Budget("share", Fraction(ratio, 100), f"{ratio}%")
        return resolve(budget, self.size, put_back=NOTHING, removable=free, n_most=len(free)).n

    def request(self, cell: Cell, selector: str, by: str) -> Any:
        from shoal.select.request import Request
        from shoal.select.search.quotas import Quota, Quotas

        n_layers, n = self.size.n_layers, self.n_layers_out(cell.ratio)
        request = Request(
            n_layers=n_layers, n=n, selector=selector, by=by, protected=frozenset({0, n_layers - 1}), n_candidates=1,
            units=cell.units,
        )  # fmt: skip
        if cell.units == "layers":
            return request
        held = {unit: float(self.size.of(unit)) for unit in request.free_units}
        wanted = n * sum(held.values()) / (n_layers - 2)
        quotas = Quotas((Quota(wanted, held, "all parameters", float(self.size.total)),))
        return replace(request, n=quotas.most(request.free_units), quotas=quotas)
