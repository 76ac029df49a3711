"""Criteria compared over corpora: what each would remove, how far they agree, and what each choice costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from shoal.engine.workers import join
from shoal.recipes.recipe import Recipe, merge
from shoal.run.job import Inputs, open_inputs
from shoal.run.stages.stages import choosing, oracle, why_not
from shoal.words.progress import Progress, silent
from shoal.words.types import Span, SpanTable

if TYPE_CHECKING:
    from shoal.evaluate.criteria import CriteriaComparison, CriteriaShape
    from shoal.measure.oracle import Oracle, Quality
    from shoal.select.request import Picked, Tables, Wanted

DEFAULT_CRITERIA = ("cosine/rest", "cosine/every", "angular/last", "block_influence/rest")
PERPLEXITY = "perplexity/rest"


def compare_criteria(
    recipe: Recipe,
    texts: Sequence[str] = (),
    *,
    device: str = "cpu",
    dtype: str | None = None,
    resident: str = "auto",
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> CriteriaComparison:
    """Choose ``recipe.drop`` layers by every criterion on every text, as a span and one by one.

    The criterion ``perplexity`` is the cut model's own, on the calibration text: of every single layer left out, and of every
    span of that length; the others read one scan. The cost of every choice is measured on every text's evaluation slice.

    Args:
        texts: sources, each a corpus of its own; the recipe's text as one corpus unless given.
        device, dtype, resident, progress: as for :func:`~shoal.run.compress.compress`.
    Raises:
        ValueError: one line for anything the user can mend.
    """
    from shoal.engine.student import student_without
    from shoal.evaluate.criteria import CriteriaComparison, CriterionChoice
    from shoal.select.budget import parse_budget, resolve
    from shoal.select.choose import wanted_by
    from shoal.select.model_size import NOTHING, model_size
    from shoal.select.request import most_layers
    from shoal.select.table import SELECTORS

    if join().size > 1:
        raise ValueError("criteria are compared in one process; start it without a launcher")
    options: dict[str, Any] = dict(device=device, dtype=dtype, resident=resident, trust_remote_code=trust_remote_code)
    recipes = [_on(recipe, text) for text in texts] or [recipe]
    base = open_inputs(recipes[0], **options)
    corpora = [base, *(_other_text(base, one) for one in recipes[1:])]
    size = model_size(base.view)
    wanted = wanted_by(choosing(recipe, base.view), size, refuse=lambda kept: why_not(base, kept))
    n_most = most_layers(SELECTORS["span"], wanted)
    cut = resolve(parse_budget(recipe.drop), size, put_back=NOTHING, removable=wanted.removable, n_most=n_most)
    wanted = replace(wanted, n=cut.n)
    chosen: list[tuple[str, int, CriteriaShape, Picked]] = []
    for corpus, inputs in enumerate(corpora):
        tables = _tables(inputs, wanted, what=f"text {corpus + 1}", progress=progress)
        shapes: tuple[CriteriaShape, ...] = ("span", "lowest")
        for by in (*DEFAULT_CRITERIA, PERPLEXITY):
            for shape in shapes:
                picked = next(SELECTORS[shape].pick(tables, replace(wanted, by=by)), None)
                if picked is None:
                    raise ValueError(f"{shape} {by}: no {cut.n} layers can go; remove fewer or protect fewer")
                chosen.append((by, corpus, shape, picked))
    different = list(dict.fromkeys(picked.layers for *_, picked in chosen))
    costs: list[dict[tuple[int, ...], Quality]] = []
    teacher = []
    for corpus, inputs in enumerate(corpora):
        judge = oracle(inputs, inputs.evaluation, what=f"text {corpus + 1}: measure", progress=progress)
        whole, *found = judge.measure([student_without(()), *(student_without(layers) for layers in different)])
        costs.append(dict(zip(different, found, strict=True)))
        teacher.append(whole.perplexity)
    return CriteriaComparison(
        n=cut.n,
        n_layers=size.n_layers,
        read=tuple(inputs.provenance(inputs.calibration) for inputs in corpora),
        measured=tuple(inputs.provenance(inputs.evaluation) for inputs in corpora),
        teacher_perplexity=tuple(teacher),
        choices=tuple(
            CriterionChoice(
                criterion="perplexity" if by == PERPLEXITY else by,
                corpus=corpus,
                shape=shape,
                layers=picked.layers,
                score=picked.score,
                kl=tuple(one[picked.layers].kl for one in costs),
                perplexity=tuple(one[picked.layers].perplexity for one in costs),
            )
            for by, corpus, shape, picked in chosen
        ),
    )


def _on(recipe: Recipe, text: str) -> Recipe:
    return Recipe.model_validate(merge(recipe.model_dump(), {"text": {"sources": (text,)}}))


def _other_text(base: Inputs, recipe: Recipe) -> Inputs:
    """The same model on another text."""
    from shoal.text import open_corpus

    corpus = open_corpus(recipe.text.sources[0], base.opened.need_tokenizer(), seed=recipe.seed, field=recipe.text.field)
    return replace(base, recipe=recipe, corpus=corpus)


def _tables(inputs: Inputs, wanted: Wanted, *, what: str, progress: Progress) -> Tables:
    """All tables of a scan, and the perplexity of cut models."""
    from shoal.measure.scan import scan

    batches = inputs.batches(inputs.calibration)
    found = scan(
        inputs.view,
        batches,
        provenance=inputs.provenance(inputs.calibration),
        after_batch=lambda batch: progress(f"{what}: scan", batch.index + 1, len(batches)),
    )
    judge = oracle(inputs, inputs.calibration, what=f"{what}: cut models", progress=progress)
    return {**found.tables, PERPLEXITY: perplexity_table(judge, wanted)}


def perplexity_table(judge: Oracle, wanted: Wanted) -> SpanTable:
    """Mean NLL (nats per token) of the model without each layer, and without each span of ``wanted.n``; NaN for other spans.

    Its exponential is the perplexity, in the same order. Only cuts that are allowed are run, all in one pass.
    """
    from shoal.engine.student import student_without

    n_layers = wanted.n_layers
    spans = [Span(start, start + n) for n in sorted({1, wanted.n}) for start in range(n_layers - n + 1)]
    spans = [span for span in spans if wanted.reason_against(tuple(span.layers)) is None]
    values = np.full((n_layers + 1, n_layers + 1), np.nan)
    measured = judge.measure([student_without(tuple(span.layers)) for span in spans])
    for span, quality in zip(spans, measured, strict=True):
        values[span.start, span.stop] = quality.nll
    return SpanTable(
        criterion="perplexity",
        tokens="rest",
        values=values,
        stderr=np.full_like(values, np.nan),
        unit="nats per token",
        higher_is_more_redundant=False,
        n_samples=measured[0].n_samples if measured else 0,
    )
