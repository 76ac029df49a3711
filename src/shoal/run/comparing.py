"""Several models on the same text and the same items; the first is the reference and stays open, the others follow in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shoal.engine.model_config import read_config
from shoal.engine.open import Opened, open_model
from shoal.engine.opening import Opening
from shoal.engine.source import check_source, resolve_source
from shoal.engine.view import DecoderView
from shoal.evaluate.comparison import Compared, Comparison, bits_per_byte, encoded, other_tokenizer
from shoal.evaluate.cost import cost
from shoal.evaluate.evaluation import Figures, closeness, token_stream, usual_stride
from shoal.evaluate.perplexity import n_batches, perplexity
from shoal.evaluate.tasks.answers import TaskAnswers
from shoal.evaluate.tasks.benchmark import compare_tasks, task_figures
from shoal.recipes.recipe import Recipe
from shoal.recipes.recipe_file import load_recipe
from shoal.run.asked_tasks import Tasks, answer_tasks
from shoal.run.folder import checkpoint_of
from shoal.run.job import LONGEST_DEFAULT, Inputs, open_inputs, refuse_unknown_tokens, window_of
from shoal.text.start import start_tokens
from shoal.words.progress import each_batch, told
from shoal.words.refusal import in_one_line


@in_one_line
def compare_models(
    models: Sequence[str],
    *,
    recipe: Recipe | None = None,
    tasks: Tasks | None = None,
    opening: Opening = Opening(),
) -> Comparison:
    """Measure models side by side.

    Args:
        models: folders, hub ids, or run folders (their ``model/``), at least two; the others are held against the first.
        recipe: text, its seed and length; the default recipe unless given. Its model is not used.
        tasks: opened by :func:`shoal.run.asked_tasks.open_tasks`.
    Raises:
        ValueError: fewer than two models, a length beyond the shortest window, and everything that opening models and text and
            scoring tasks can meet.
    """
    if isinstance(models, str):
        raise ValueError(f"compare_models takes a list of models, and got the text {models!r}; write [{models!r}, ...]")
    if len(models) < 2:
        raise ValueError(f"compare got {len(models)} model(s), needs at least 2; `shoal eval` measures one")
    sources = [checkpoint_of(name) for name in models]
    window = shortest_window(sources, models, trust_remote_code=opening.trust)
    given = load_recipe("default") if recipe is None else recipe
    inputs = open_inputs(_of_length(given, sources[0], window), opening.in_memory())

    def measure() -> Comparison:
        side = _Side(inputs, tasks or Tasks(), window)
        found = [side.first(models[0])]
        for name, source in zip(models[1:], sources[1:], strict=True):
            opened = open_model(source, inputs.opened.opening)
            found.append(side.other(name, opened))
        return Comparison(models=tuple(found), n_bytes=side.n_bytes, provenance=inputs.provenance(inputs.evaluation))

    with told(None):
        return inputs.workers.from_first(measure)


def shortest_window(sources: Sequence[str], names: Sequence[str], *, trust_remote_code: bool = False) -> int | None:
    """The shortest window of the models, in tokens, read from their configs; None where none states one."""
    windows = []
    for source in sources:
        path = resolve_source(source, trust_remote_code=trust_remote_code)
        check_source(path, trust_remote_code=trust_remote_code)
        window = window_of(read_config(path, trust_remote_code=trust_remote_code))
        if window is not None:
            windows.append(window)
    return min(windows, default=None)


def _of_length(recipe: Recipe, model: str, window: int | None) -> Recipe:
    """The recipe with a length that every model reads.

    Raises:
        ValueError: the length asked for is longer than the shortest window.
    """
    asked = recipe.text.length
    if asked is not None and window is not None and asked > window:
        raise ValueError(f"--length {asked} is longer than the shortest window of these models, {window}; give at most that")
    text = recipe.text.model_copy(update={"length": asked or min(window or LONGEST_DEFAULT, LONGEST_DEFAULT)})
    return recipe.model_copy(update={"model": model, "text": text})


class _Side:
    """What all models are measured on: the text as tokens of the first model, its characters, and the tasks."""

    def __init__(self, inputs: Inputs, tasks: Tasks, window: int | None) -> None:
        self.inputs, self.tasks, self.window = inputs, tasks, window
        self.tokenizer: Any = inputs.opened.need_tokenizer()
        self.batches = inputs.batches(inputs.evaluation)
        samples = inputs.evaluation
        rows = zip(samples.ids_NT.tolist(), samples.lengths_N.tolist(), strict=True)
        self.texts = [self.tokenizer.decode(row[:length], skip_special_tokens=True) for row, length in rows]
        self.n_bytes = sum(len(text.encode()) for text in self.texts)
        if not self.n_bytes:
            raise ValueError(
                f"the tokenizer of {inputs.opened.name} knows no word of this text, so there are no bytes to count bits of; "
                "give --text in a language it was made for"
            )
        self.answers: list[TaskAnswers] = []

    def first(self, name: str) -> Compared:
        self.answers = self._ask(self.inputs.view, self.tokenizer, who=name)
        return Compared(
            **self._alone(name, self.inputs.view, self._own_tokens(), self.inputs.evaluation.start),
            tasks=self._figures(self.answers),
        )

    def other(self, name: str, opened: Opened) -> Compared:
        view, tokenizer = DecoderView(opened.model), opened.need_tokenizer()
        why_not = other_tokenizer(self.tokenizer, tokenizer)
        tokens_T = self._own_tokens() if why_not is None else encoded(self.texts, tokenizer)
        start = self.inputs.evaluation.start if why_not is None else start_tokens(tokenizer)
        refuse_unknown_tokens(tokens_T, opened)
        ours, theirs = (one.shapes.get_output_embeddings().weight.shape[0] for one in (self.inputs.view, view))
        if why_not is None and ours != theirs:
            why_not = f"it has {theirs:,} logits, the first model {ours:,}"
        quality, by_position = None, None
        if why_not is None:
            what, n_batches = f"{name} against the first", len(self.batches)
            quality, by_position, _ = closeness(
                self.inputs.view,
                view,
                self.batches,
                after_batch=each_batch(what, n_batches),
            )
        answers = self._ask(view, tokenizer, who=name)
        return Compared(
            **self._alone(name, view, tokens_T, start),
            quality=quality,
            by_position=by_position,
            why_not=why_not,
            tasks=self._figures(answers),
            against_first=compare_tasks(self.answers, answers, seed=self.inputs.recipe.seed) if answers else None,
        )

    def _alone(self, name: str, view: Any, tokens_T: Any, start: Sequence[int]) -> dict[str, Any]:
        what, length = f"{name}, perplexity", self.inputs.length
        stride, batch_size = usual_stride(length, start), self.inputs.batch_size
        total = n_batches(len(tokens_T), window=length, stride=stride, batch_size=batch_size, n_start=len(start))
        found = perplexity(
            view,
            tokens_T,
            window=length,
            stride=stride,
            start=start,
            batch_size=batch_size,
            after_batch=each_batch(what, total),
        )
        figures = Figures(name=name, cost=cost(view, context=length), perplexity=found)
        return {"figures": figures, "bits_per_byte": bits_per_byte(found, self.n_bytes)}

    def _own_tokens(self) -> Any:
        return token_stream(self.batches, start=self.inputs.evaluation.start)

    def _ask(self, view: Any, tokenizer: Any, *, who: str) -> list[TaskAnswers]:
        if not self.tasks:
            return []
        return answer_tasks(view, self.tasks, tokenizer=tokenizer, window=self.window, who=who)

    def _figures(self, answers: Sequence[TaskAnswers]) -> Any:
        return tuple(task_figures(one, seed=self.inputs.recipe.seed) for one in answers)
