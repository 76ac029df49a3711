"""The training loop: teacher and student on the same batch, no stored states, the best values kept.

Step 0 is measured like any other, so what is kept is never worse than the start by the measure that decides.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from shoal.decoder import Attached, DecoderView, Student
from shoal.replace.overlay import load_values
from shoal.text.samples import Samples
from shoal.train.checkpoint import MemberProgress, Progress, load_checkpoint, save_checkpoint
from shoal.train.config import TrainConfig
from shoal.train.data import Course, eval_interval, plan_course
from shoal.train.objectives import objective_named
from shoal.train.result import CurvePoint, TrainResult, save_curve
from shoal.train.schedule import learning_rate
from shoal.train.students import Start, Trainee, Trainees, accumulate, n_real_tokens
from shoal.types import Batch, stable_hash

CHECKPOINT = "checkpoint.safetensors"

Quality = Callable[[Student], float]
"""Measures a whole student on the selection text, lower is better: true KL to the teacher."""

Report = Callable[[int, int, float], None]
"""Called after every optimiser step: (steps done, steps in all, mean loss of the step)."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained replacement with its best values, and the student it makes."""

    result: TrainResult
    attached: Attached
    student: Student


def train_starts(
    view: DecoderView,
    starts: Sequence[Start],
    *,
    training: Samples,
    selection: Samples,
    config: TrainConfig,
    folder: Path | None = None,
    key: str = "",
    quality: Quality | None = None,
    progress: Report | None = None,
) -> tuple[Trained, ...]:
    """Train any number of replacements on one teacher stream.

    Args:
        starts: each is trained on its own loss, with its own optimiser; they only share the reading.
        training, selection: text to train on and to choose the best step on.
        folder: where checkpoint and curve are kept; a run found there with the same inputs is continued, bit for bit as if it
            had not been interrupted (CPU, same threads). None: nothing is written.
        key: identity of model and student (hash of the source, plan); part of what makes two runs the same.
        quality: decides the best step where given; otherwise the objective on ``selection`` does.
    Returns:
        One result per start, in order.
    Raises:
        ValueError: too little text, unknown objective, a loss that is not finite, a checkpoint of other inputs.
    """
    run = _Run(view, starts, course=plan_course(training, config), selection=selection, config=config, quality=quality)
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
        course: Course,
        selection: Samples,
        config: TrainConfig,
        quality: Quality | None,
    ) -> None:
        lr, min_lr = config.rates(view.hidden_size)
        config = config.model_copy(update={"lr": lr, "min_lr": min_lr})
        self.config, self.course, self.selection, self.quality = config, course, selection, quality
        self.peak, self.floor = lr, min_lr
        self.dtype = str(view.dtype)
        self.decided_by: Literal["quality", "validation"] = "validation" if quality is None else "quality"
        self.trainees = Trainees(view, starts, objective_named(config.objective), bfloat16=config.dtype == "bfloat16")
        self.members = self.trainees.members
        self.optimizers = [_optimizer(member, config) for member in self.members]
        self.best: list[dict[str, Tensor]] = [{} for _ in self.members]
        self.interval = eval_interval(
            config, n_steps=course.n_steps, n_tokens=course.samples.n_tokens, selection_tokens=selection.n_tokens
        )
        self.folder: Path | None = None
        self.whole = True  # False while parameters are being updated: such a state is not a step of the run

    def identify(self, key: str, folder: Path | None) -> None:
        """Hash what decides every bit of the run."""
        spans = [(m.start.span.start, m.start.span.stop, m.start.replacement.name) for m in self.members]
        texts = [[s.data_hash, s.n_samples, s.length, s.n_tokens] for s in (self.course.samples, self.selection)]
        full = stable_hash(key, self.dtype, spans, texts, self.config.model_dump(mode="json"), self.decided_by)
        self.progress = Progress(key=full, members=tuple(MemberProgress() for _ in self.members))
        self.folder = folder

    def resume(self) -> None:
        path = None if self.folder is None else self.folder / CHECKPOINT
        if path is not None and path.exists():
            self.progress, self.best = load_checkpoint(
                path, self.progress.key, members=self.members, optimizers=self.optimizers
            )

    def train(self, report: Report | None) -> None:
        self.started = time.monotonic() - self.progress.seconds
        n_steps = self.course.n_steps
        for step, pieces in self.course.steps(self.progress.step):
            self._measure_if_due(n_steps)
            loss = self._step(step, pieces)
            if report is not None:
                report(step + 1, n_steps, loss)
        self._measure_if_due(n_steps)

    def _step(self, step: int, pieces: Sequence[Batch]) -> float:
        """One optimiser step over the pieces of a batch; the gradient is that of the mean over all its real tokens."""
        self.trainees.zero_grad(set_to_none=True)
        losses = accumulate(self.trainees, pieces)
        tokens = sum(n_real_tokens(piece) for piece in pieces)
        norms = [float(torch.nn.utils.clip_grad_norm_(m.parameters(), self.config.clip)) for m in self.members]
        for value in [*losses.tolist(), *norms]:
            self._refuse_nonfinite(value, "training loss or gradient", step)
        self.whole = False
        rate = self._rate(step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        done = [
            m.model_copy(update={"loss_sum": m.loss_sum + loss, "norm_sum": m.norm_sum + norm})
            for m, loss, norm in zip(self.progress.members, losses.tolist(), norms, strict=True)
        ]
        update = {"step": step + 1, "tokens": self.progress.tokens + tokens, "members": tuple(done)}
        self.progress = self.progress.model_copy(update=update)
        self.whole = True
        return float(losses.mean())

    def _measure_if_due(self, n_steps: int) -> None:
        """Validate at step 0, every interval and at the end; keep the best values; checkpoint."""
        step = self.progress.step
        if self.progress.measured or (step % self.interval and step != n_steps):
            return
        self.trainees.deploy()
        validations = self.trainees.validation(self.selection.batches(self.config.micro_batch))
        qualities = [None if self.quality is None else self.quality(member.student) for member in self.members]
        members = []
        for index, (before, loss, quality) in enumerate(zip(self.progress.members, validations, qualities, strict=True)):
            measure = loss if quality is None else quality
            self._refuse_nonfinite(measure, "validation", step)
            change = {"curve": (*before.curve, self._point(before, loss, quality)), "loss_sum": 0.0, "norm_sum": 0.0}
            if before.best_measure is None or measure < before.best_measure:
                change.update(best_step=step, best_measure=measure)
                # Real copies: an alias would follow the training and make "best" mean "last".
                self.best[index] = {k: v.clone() for k, v in self.members[index].deployed.module.state_dict().items()}
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
        n_steps = self.course.n_steps
        return learning_rate(step, n_steps=n_steps, lr=self.peak, min_lr=self.floor, warmup=self.config.warmup)

    def checkpoint_if_whole(self) -> None:
        if self.folder is None or not self.whole or not self.progress.members[0].curve:
            return
        save_checkpoint(
            self.folder / CHECKPOINT, self.progress, members=self.members, optimizers=self.optimizers, best=self.best
        )
        for member, progress in zip(self.members, self.progress.members, strict=True):
            save_curve(self._curve_path(member), progress.curve)

    def _curve_path(self, member: Trainee) -> Path:
        assert self.folder is not None
        span = member.start.span
        return self.folder / ("curve.jsonl" if len(self.members) == 1 else f"curve.{span.start}-{span.stop}.jsonl")

    def finish(self) -> tuple[Trained, ...]:
        """Deploy the best values of every replacement."""
        trained = []
        for member, progress, best in zip(self.members, self.progress.members, self.best, strict=True):
            load_values(member.deployed.module, best, where="best values")
            trained.append(Trained(self._result(member, progress), member.deployed, member.student))
        return tuple(trained)

    def _result(self, member: Trainee, progress: MemberProgress) -> TrainResult:
        return TrainResult(
            start=member.start.span.start,
            stop=member.start.span.stop,
            replacement=member.start.replacement.name,
            decided_by=self.decided_by,
            best_step=progress.best_step,
            n_steps=self.course.n_steps,
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
            raise ValueError(f"{what} is {value} at step {step} of {self.course.n_steps} (lr {self.peak:g}); {advice}")


def _optimizer(member: Trainee, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only, since pulling norms and biases to zero has no meaning."""
    parameters = list(member.master.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, betas=config.betas)
