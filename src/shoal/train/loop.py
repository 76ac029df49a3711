"""The training loop: teacher and student on the same batch, no stored states, the best values kept.

Step 0 is measured like any other, so what is kept is never worse than the start by the measure that decides.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from shoal.engine.student import Student
from shoal.engine.view import DecoderView
from shoal.engine.workers import ALONE, Workers
from shoal.text.samples import Samples
from shoal.train.config import TrainConfig
from shoal.train.course import Course, eval_interval, plan_courses
from shoal.train.data_parallel import data_parallel
from shoal.train.joint import Trainees, accumulate
from shoal.train.objectives import n_real_tokens, weighted_sum
from shoal.train.parts import Start, Trainee
from shoal.train.progress_file import MemberProgress, TrainingProgress, load_checkpoint, read_progress, save_checkpoint
from shoal.train.schedule import learning_rate
from shoal.train.train_result import CurvePoint, TrainResult, save_curve
from shoal.words.records import stable_hash
from shoal.words.types import Batch

CHECKPOINT = "checkpoint.safetensors"

Judge = Callable[[Student], float]
"""Measures a whole student on the selection text, lower is better: true KL to the teacher."""

Report = Callable[[int, int, float], None]
"""Called after every optimiser step: (steps done, steps in all, mean loss of the step)."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A student with the best values of its trained parts, and those values under the names that a plan's have."""

    result: TrainResult
    student: Student
    values: dict[str, Tensor]


def train_starts(
    view: DecoderView,
    starts: Sequence[Start],
    *,
    training: Samples,
    selection: Samples,
    config: TrainConfig,
    folder: Path | None = None,
    key: str = "",
    quality: Judge | None = None,
    progress: Report | None = None,
    workers: Workers = ALONE,
) -> tuple[Trained, ...]:
    """Train any number of students on one teacher stream.

    Args:
        starts: each is trained on its own loss, with its own optimiser; they only share the reading. Refits and replacements
            of one student are trained together, gradients running through all of them.
        training, selection: text to train on and to choose the best step on.
        folder: where checkpoint and curve are kept; a run found there with the same inputs is continued, bit for bit as if it
            had not been interrupted (CPU, same threads). None: nothing is written.
        key: identity of model and student (hash of the source, plan); part of what makes two runs the same.
        quality: decides the best step where given; otherwise the last stage's objective on ``selection`` does.
        workers: who share every step; all of them take the same steps and return the same values, those of one process up to
            the order of sums. The first one alone writes.
    Returns:
        One result per start, in order.
    Raises:
        ValueError: nothing to train, too little text, unknown objective, a loss that is not finite, a checkpoint of other
            inputs.
    """
    courses = plan_courses(training, config)
    run = _Run(view, starts, courses=courses, selection=selection, config=config, quality=quality, workers=workers)
    run.identify(key, folder)
    try:
        run.resume()
        run.train(progress)
    except KeyboardInterrupt:
        run.checkpoint_if_whole()
        raise
    return run.finish()


class _Run:
    """State of one call of :func:`train_starts`."""

    def __init__(
        self,
        view: DecoderView,
        starts: Sequence[Start],
        *,
        courses: Sequence[Course],
        selection: Samples,
        config: TrainConfig,
        quality: Judge | None,
        workers: Workers,
    ) -> None:
        self.workers, self.residency = workers, view.residency
        self.config = config = config.with_rates(view.hidden_size)
        self.courses, self.selection, self.quality = courses, selection, quality
        self.objectives = [weighted_sum(stage.objective) for stage in config.schedule()]
        self.dtype = str(view.dtype)
        self.decided_by: Literal["quality", "validation"] = "validation" if quality is None else "quality"
        self.trainees = Trainees(view, starts, self.objectives[0], bfloat16=config.dtype == "bfloat16")
        for objective in self.objectives:
            self.trainees.refuse_absent_layers(objective)
        self.parallel = data_parallel(self.trainees, workers, device=view.device)
        self.members = self.trainees.members
        self.best: list[dict[str, Tensor]] = [{} for _ in self.members]
        self.interval = eval_interval(
            config.eval_every, n_steps=self.n_steps, n_tokens=self.n_tokens, selection_tokens=selection.n_tokens
        )
        self.folder: Path | None = None
        self.whole = True  # False while parameters are being updated: such a state is not a step of the run
        self._enter(0)

    @property
    def n_steps(self) -> int:
        """Of all stages."""
        return self.courses[-1].end

    @property
    def n_tokens(self) -> int:
        """Of all stages."""
        return sum(course.samples.n_tokens for course in self.courses)

    def _enter(self, stage: int) -> None:
        """Begin a stage: its objective, and optimisers that remember nothing of the one before."""
        self.stage, self.course, self.objective = stage, self.courses[stage], self.objectives[stage]
        self.trainees.objective = self.objective
        self.optimizers = [_optimizer(member, self.config) for member in self.members]

    def identify(self, key: str, folder: Path | None) -> None:
        """Hash what decides every bit of the run."""
        parts = [[str(part) for part in member.parts] for member in self.members]
        samples = [course.samples for course in self.courses]
        texts = [[s.data_hash, s.n_samples, s.length, s.n_tokens] for s in (*samples, self.selection)]
        full = stable_hash(key, self.dtype, parts, texts, self.config.model_dump(mode="json"), self.decided_by)
        self.progress = TrainingProgress(key=full, members=tuple(MemberProgress() for _ in self.members))
        self.folder = folder

    def resume(self) -> None:
        path = None if self.folder is None else self.folder / CHECKPOINT
        if path is None or not self.workers.from_first(path.exists):
            return
        # At the very end of a stage its optimisers are still the ones that were saved.
        step = read_progress(path, self.progress.key).step
        self._enter(next(i for i, course in enumerate(self.courses) if step <= course.end))
        self.progress, self.best = load_checkpoint(path, self.progress.key, members=self.members, optimizers=self.optimizers)

    def train(self, report: Report | None) -> None:
        self.started = time.monotonic() - self.progress.seconds
        for stage in range(self.stage, len(self.courses)):
            if stage != self.stage:
                self._enter(stage)
            steps = self.course.steps(self.progress.step - self.course.first_step, self.workers)
            for step, pieces in self.trainees.ahead(steps):
                self._measure_if_due()
                loss = self._step(step, pieces)
                if report is not None:
                    report(self.progress.step, self.n_steps, loss)
            self._measure_if_due()

    def _settle(self) -> None:
        """Steps read no layers: of those on disk only what they run is held."""
        self.residency.settle(self.trainees.layers_of_a_step(self.objective))

    def _step(self, step: int, pieces: Sequence[Batch]) -> float:
        """One optimiser step of the stage; ``pieces`` are this worker's, the gradient is that of the whole batch."""
        self._settle()
        whole = self.course.step(step)
        losses = accumulate(self.parallel, pieces, self.objective, of=whole, workers=self.workers)
        tokens = sum(n_real_tokens(piece) for piece in whole)
        norms = [float(torch.nn.utils.clip_grad_norm_(m.parameters(), self.config.clip)) for m in self.members]
        for value in [*losses.tolist(), *norms]:
            self._refuse_nonfinite(value, "training loss or gradient", self.progress.step)
        self._settle()  # Gradients stay; what they were computed from goes before the moments come.
        self.whole = False
        rate = self._rate(self.progress.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        # Gradients go now, so that they are not there while a whole student is measured.
        self.trainees.zero_grad(set_to_none=True)
        done = [
            m.model_copy(update={"loss_sum": m.loss_sum + loss, "norm_sum": m.norm_sum + norm})
            for m, loss, norm in zip(self.progress.members, losses.tolist(), norms, strict=True)
        ]
        update = {"step": self.progress.step + 1, "tokens": self.progress.tokens + tokens, "members": tuple(done)}
        self.progress = self.progress.model_copy(update=update)
        self.whole = True
        return float(losses.mean())

    def _measure_if_due(self) -> None:
        """Validate at step 0, every interval and at the end of each stage; keep the best values; checkpoint."""
        step = self.progress.step
        if self.progress.measured or (step % self.interval and all(step != course.end for course in self.courses)):
            return
        self._settle()
        self.trainees.deploy()
        batches = self.selection.batches(self.config.micro_batch)
        validations = self.trainees.validation(batches, self.objectives[-1], workers=self.workers)
        qualities = [None if self.quality is None else self.quality(member.deployed) for member in self.members]
        members = []
        for index, (before, loss, quality) in enumerate(zip(self.progress.members, validations, qualities, strict=True)):
            measure = loss if quality is None else quality
            self._refuse_nonfinite(measure, "validation", step)
            change = {"curve": (*before.curve, self._point(before, loss, quality)), "loss_sum": 0.0, "norm_sum": 0.0}
            if before.best_measure is None or measure < before.best_measure:
                change.update(best_step=step, best_measure=measure)
                # Real copies: an alias would follow the training and make "best" mean "last".
                self.best[index] = self.members[index].values()
            members.append(before.model_copy(update=change))
        seconds = time.monotonic() - self.started
        self.progress = self.progress.model_copy(update={"members": tuple(members), "seconds": seconds})
        self.checkpoint_if_whole()

    def _point(self, before: MemberProgress, validation: float, quality: float | None) -> CurvePoint:
        step = self.progress.step
        since = step - before.curve[-1].step if before.curve else 0
        return CurvePoint(
            step=step,
            tokens=self.progress.tokens,
            lr=self._rate(max(step - 1, 0)),
            loss=before.loss_sum / since if since else None,
            grad_norm=before.norm_sum / since if since else None,
            validation=validation,
            quality=quality,
            seconds=round(time.monotonic() - self.started, 3),
        )

    def _rate(self, step: int) -> float:
        """Of the run's step ``step``, by its stage's own warm-up and cosine."""
        number, course = next((i, course) for i, course in enumerate(self.courses) if step < course.end)
        lr, min_lr = self.config.stages[number].lr, self.config.stages[number].min_lr
        assert lr is not None and min_lr is not None  # The method with_rates has set them.
        at = step - course.first_step
        return learning_rate(at, n_steps=course.n_steps, lr=lr, min_lr=min_lr, warmup=self.config.warmup)

    def checkpoint_if_whole(self) -> None:
        if self.folder is None or not self.whole or not self.progress.members[0].curve or not self.workers.is_first:
            return
        save_checkpoint(
            self.folder / CHECKPOINT, self.progress, members=self.members, optimizers=self.optimizers, best=self.best
        )
        for index, progress in enumerate(self.progress.members):
            name = "curve.jsonl" if len(self.members) == 1 else f"curve.{index}.jsonl"
            save_curve(self.folder / name, progress.curve)

    def finish(self) -> tuple[Trained, ...]:
        """Deploy the best values of every student."""
        trained = []
        for member, progress, best in zip(self.members, self.progress.members, self.best, strict=True):
            member.adopt(best)
            trained.append(Trained(self._result(member, progress), member.deployed, best))
        return tuple(trained)

    def _result(self, member: Trainee, progress: MemberProgress) -> TrainResult:
        return TrainResult(
            start=member.first,
            stop=member.targets[-1],
            trained=tuple(str(part) for part in member.parts),
            objective=", then ".join(str(objective) for objective in self.objectives),
            decided_by=self.decided_by,
            best_step=progress.best_step,
            n_steps=self.n_steps,
            n_tokens=self.progress.tokens,
            n_parameters=sum(parameter.numel() for parameter in member.parameters()),
            seconds=round(self.progress.seconds, 3),
            data=self.course.samples.data,
            data_hash=self.course.samples.data_hash,
            config=self.config,
            curve=progress.curve,
        )

    def _refuse_nonfinite(self, value: float, what: str, step: int) -> None:
        if not math.isfinite(value):
            advice = "lower train.lr" if self.config.dtype == "float32" else "lower train.lr, or set train.dtype to float32"
            if not step:
                advice = "training has not begun: check the weights, or open the model in float32 or bfloat16"
            lr = self.config.stages[self.stage].lr
            raise ValueError(f"{what} is {value} at step {step} of {self.n_steps} (lr {lr:g}); {advice}")


def _optimizer(member: Trainee, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only, since pulling norms and biases to zero has no meaning.

    Fused: one reading of every tensor and no temporaries, where the other forms take two of the largest tensor, or of all.
    """
    parameters = list(member.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, betas=config.betas, fused=True)
