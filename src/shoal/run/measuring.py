"""Measuring on the evaluation slice: a model on its own, or against a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal.recipes.recipe import Recipe
from shoal.run.asked_tasks import Tasks, answer_tasks, tasks_against_teacher
from shoal.run.job import Inputs, open_inputs, window_of
from shoal.words.progress import Progress, silent

if TYPE_CHECKING:
    from shoal.engine.open import Opened
    from shoal.engine.student import Student
    from shoal.engine.view import DecoderView
    from shoal.evaluate.evaluation import Evaluation, Measured
    from shoal.evaluate.generate import Generation
    from shoal.evaluate.speed import Speed
    from shoal.evaluate.tasks.benchmark import TaskFigures
    from shoal.measure.oracle import Quality

N_PROMPTS = 3
MOST_NEW_TOKENS = 32
LONGEST_TIMED_PROMPT = 512


def evaluate_alone(
    recipe: Recipe,
    *,
    tasks: Tasks | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Measured:
    """Perplexity and cost of ``recipe.model`` on the evaluation slice, and its accuracy on tasks.

    Raises:
        ValueError: everything that opening models and text and scoring tasks can meet.
    """
    from shoal.evaluate.cost import cost
    from shoal.evaluate.evaluation import Figures, Measured, token_stream, usual_stride
    from shoal.evaluate.perplexity import perplexity
    from shoal.evaluate.tasks.benchmark import task_figures

    inputs = open_inputs(recipe, device=device, dtype=dtype, trust_remote_code=trust_remote_code)

    def ask() -> tuple[TaskFigures, ...]:
        tokenizer, window = inputs.opened.need_tokenizer(), window_of(inputs.view.config)
        answers = answer_tasks(inputs.view, tasks or Tasks(), tokenizer=tokenizer, window=window, progress=progress)
        return tuple(task_figures(one, seed=recipe.seed) for one in answers)

    scored = inputs.workers.from_first(ask) if tasks else ()  # first: a task may hold an item that cannot be scored
    start = inputs.evaluation.start
    found = perplexity(
        inputs.view,
        token_stream(inputs.batches(inputs.evaluation), start=start),
        window=inputs.length,
        stride=usual_stride(inputs.length, start),
        start=start,
        batch_size=inputs.batch_size,
        workers=inputs.workers,
    )
    figures = Figures(name=inputs.opened.name, cost=cost(inputs.view, context=inputs.length), perplexity=found)
    return Measured(model=figures, tasks=scored, provenance=inputs.provenance(inputs.evaluation))


def evaluate_pair(
    recipe: Recipe,
    student: str,
    *,
    tasks: Tasks | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Evaluation:
    """A saved student against the teacher ``recipe.model``.

    Args:
        tasks: opened by :func:`shoal.run.asked_tasks.open_tasks`; asked of both models.
    Raises:
        ValueError: other tokens or a shorter window than the text needs, and everything that opening models and text can meet.
    """
    from shoal.engine.open import open_model
    from shoal.engine.view import DecoderView

    inputs = open_inputs(recipe, device=device, dtype=dtype, resident="all", trust_remote_code=trust_remote_code)
    other = open_model(student, dtype=dtype, device=inputs.workers.device(device), trust_remote_code=trust_remote_code)
    view = DecoderView(other.model)
    _refuse_other_tokens(inputs, other, view)
    # tasks first: one may hold an item that cannot be scored
    scored = inputs.workers.from_first(lambda: tasks_against_teacher(inputs, view, tasks, progress=progress)) if tasks else None
    return against_teacher(inputs, view, progress=progress).model_copy(update={"tasks": scored})


def _refuse_other_tokens(inputs: Inputs, student: Opened, view: DecoderView) -> None:
    """Raises ValueError where the student cannot read the teacher's samples as the teacher does."""
    from shoal.evaluate.comparison import other_tokenizer
    from shoal.evaluate.evaluation import refuse_other_vocabulary

    # a student saved without a tokenizer reads the teacher's
    why = student.tokenizer and other_tokenizer(inputs.opened.need_tokenizer(), student.tokenizer)
    if why:
        raise ValueError(
            f"{student.name} cannot be held against {inputs.opened.name}: {why}; give the teacher it was made from, "
            "or see both side by side with `shoal compare`"
        )
    refuse_other_vocabulary(inputs.view, view)
    window = window_of(view.config)
    if window is not None and inputs.length > window:
        raise ValueError(
            f"samples of {inputs.length} tokens are longer than the window of {student.name}; give --length {window} or less"
        )


def against_teacher(
    inputs: Inputs, student: DecoderView | Student, *, plain: Quality | None = None, progress: Progress = silent
) -> Evaluation:
    """Everything that is measured: quality and cost; of a student that is a model of its own also generations and speed.

    Args:
        plain: quality of the same cut without repair, for the table.
    """
    from shoal.engine.student import Student
    from shoal.evaluate.evaluation import compare

    batches = inputs.batches(inputs.evaluation)
    written: tuple[Generation, ...] = ()
    timed: Speed | None = None
    if not isinstance(student, Student):  # by one process: the others would slow it down
        written, timed = inputs.workers.from_first(lambda: _run_models(inputs, student, progress))
    return compare(
        inputs.view,
        student,
        batches,
        provenance=inputs.provenance(inputs.evaluation),
        start=inputs.evaluation.start,
        generated=written,
        timed=timed,
        plain=plain,
        progress=lambda done, total: progress("evaluate", done, total),
        workers=inputs.workers,
    )


def _run_models(inputs: Inputs, student: DecoderView, progress: Progress) -> tuple[tuple[Generation, ...], Speed]:
    """Both models as their users run them: what they write and how fast."""
    from shoal.evaluate.generate import generations
    from shoal.evaluate.speed import speed

    n_new = max(1, min(MOST_NEW_TOKENS, inputs.length // 4))
    progress("generate", 0, 1)
    written = generations(
        inputs.view.model,
        student.model,
        tokenizer=inputs.opened.need_tokenizer(),
        prompts=prompts(inputs),
        max_new_tokens=n_new,
    )
    progress("generate", 1, 1)
    progress("measure speed", 0, 1)
    timed = speed(
        inputs.view, student, prompt_length=max(1, min(LONGEST_TIMED_PROMPT, inputs.length - n_new)), new_tokens=n_new
    )
    progress("measure speed", 1, 1)
    return written, timed


def prompts(inputs: Inputs) -> list[str]:
    """Openings of evaluation samples, as text."""
    n_tokens = max(1, min(24, inputs.length // 4))
    rows = inputs.evaluation.ids_NT[:N_PROMPTS, :n_tokens]
    tokenizer: Any = inputs.opened.need_tokenizer()
    texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]
    return [text for text in texts if text]
