"""The Trainer of transformers with the objectives of Shoal, validation on the selection text, and the best step kept.

What is added to the Trainer: the loss; a validation at step 0 and every interval that measures NLL and KL; the trainable values
of the best validation, step 0 included; checkpoints that hold the trainable values alone; a stop on SIGTERM that leaves a
checkpoint. Optimiser, schedule, accumulation, clipping, precision and processes are the Trainer's.
"""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState

from shoal.train.heal.losses import HealLoss, measured, tokens_of
from shoal.train.heal.streams import run_model
from shoal.train.heal.teachers import Teacher
from shoal.train.heal.text_rows import TextRows, collate, counted
from shoal.words.progress import each

TRAINABLE_FILE, BEST_FILE = "trainable.safetensors", "best.safetensors"

StepValues = dict[str, Tensor]


class DivergedError(ValueError):
    """The loss or the validation is no longer a finite number."""


class HealTrainer(Trainer):
    """Trains the parameters that require gradients.

    Args:
        layers: the student's decoder layers.
        loss: what is trained for.
        teacher: None where nothing is compared with one.
        selection: the text of the validations.
        decided_by: ``kl`` or ``nll``.
        patience: validations without a new best before training stops; None: all steps are trained.
        watchers: called around steps by the Trainer, such as masks.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        arguments: TrainingArguments,
        training: TextRows,
        *,
        layers: Sequence[nn.Module],
        loss: HealLoss,
        teacher: Teacher | None,
        selection: TextRows,
        decided_by: str,
        patience: int | None = None,
        watchers: Sequence[TrainerCallback] = (),
    ) -> None:
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=training,
            eval_dataset=selection,
            data_collator=collate,
            callbacks=[*watchers, _Watch(self)],
        )
        self.remove_callback(PrinterCallback)
        self.layers, self.loss, self.teacher = list(layers), loss, teacher
        self.decided_by, self.patience = decided_by, patience
        self.validation = selection.batches(arguments.per_device_train_batch_size)
        self.best: StepValues = {}
        self.best_measure = math.inf
        self.stopping = False
        self.saved_step = -1
        self.seconds_of_validation = 0.0

    # -- the loss -------------------------------------------------------------------------------------------------------

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective of one piece of a batch, each part of it weighed by the piece's share of the tokens that it counts.

        With several processes gradients are averaged over them, so the shares are taken times their number.
        """
        assert not return_outputs and num_items_in_batch is not None
        answers = None
        if self.teacher is not None and self.loss.needs_teacher:
            answers = self.teacher.training(inputs, self.loss.teacher_boundaries)
        student = run_model(model, self.layers, inputs, self.loss.student_boundaries)
        shares_2 = tokens_of(inputs) / num_items_in_batch * self.args.world_size
        value = self.loss(student, answers, inputs, shares_2)
        if not value.requires_grad:
            raise ValueError(
                f"objective {self.loss} does not depend on what is trained, which lies behind it; use --boundaries every, an "
                "objective on logits, or another method"
            )
        return value

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """:func:`~shoal.train.heal.losses.tokens_of` all pieces of a batch, over all processes."""
        n = torch.stack([tokens_of(piece) for piece in batch_samples]).sum(0).float().to(device)
        return self.accelerator.gather(n[None]).sum(0) if self.args.world_size > 1 else n

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """In the order of the rows, which are shuffled already."""
        return torch.utils.data.SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    # -- validation -----------------------------------------------------------------------------------------------------

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """NLL and KL on the selection text; a new best keeps its values."""
        last = self.state.log_history[-1] if self.state.log_history else {}
        if last.get("step") == self.state.global_step and "eval_nll" in last:
            return last  # The Trainer asks once more when the text ends.
        started = time.monotonic()
        metrics = self._validated()
        measure = metrics[f"eval_{self.decided_by}"]
        if not math.isfinite(measure):
            raise DivergedError(
                f"the validation is {measure} at step {self.state.global_step}; give a lower --lr, or --lr auto"
            )
        if measure < self.best_measure:
            self.best_measure = measure
            self.best = {name: _local(value).detach().cpu().clone() for name, value in self.trainable()}
        self.seconds_of_validation += time.monotonic() - started
        self.log(metrics)
        if self.patience is not None and self._validations_since_best(self.state) >= self.patience:
            self.control.should_training_stop = True
        return metrics

    @torch.no_grad()
    def _validated(self) -> dict[str, float]:
        model = self.model_wrapped
        was_training = model.training
        model.eval()
        n_processes, rank = self.args.world_size, self.args.process_index
        sums = torch.zeros(3, dtype=torch.float64)
        # Every process runs as many forwards as the others: with sharded parameters a forward is a joint operation.
        for at in each("validate", range(0, len(self.validation), n_processes)):
            mine = at + rank
            batch = self._prepare_inputs(self.validation[min(mine, len(self.validation) - 1)])
            theirs = None if self.teacher is None else self.teacher.selection(batch)
            logits = run_model(model, self.layers, batch).logits_BTV
            nll, kl = measured(logits, theirs, batch["labels"])
            if mine < len(self.validation):
                sums += torch.stack([nll, kl if kl is not None else nll.new_zeros(()), counted(batch["labels"]).sum()]).cpu()
        if n_processes > 1:
            sums = self.accelerator.gather(sums[None].to(self.args.device)).sum(0).cpu()
        model.train(was_training)
        found = {"eval_nll": float(sums[0] / sums[2])}
        return found if self.teacher is None else {**found, "eval_kl": float(sums[1] / sums[2])}

    def has_ended_at(self, checkpoint: str | None) -> bool:
        """Whether patience ended the training at this checkpoint, whose best values and state are then taken over."""
        if checkpoint is None or self.patience is None:
            return False
        state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        if self._validations_since_best(state) < self.patience:
            return False
        self.best, self.state = load_file(Path(checkpoint) / self._best_file), state
        self._initial_global_step = state.global_step
        return True

    def _validations_since_best(self, state: TrainerState) -> int:
        measures = [entry[f"eval_{self.decided_by}"] for entry in state.log_history if f"eval_{self.decided_by}" in entry]
        return len(measures) - 1 - min(range(len(measures)), key=measures.__getitem__)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep what is logged in the state, which is saved with every checkpoint; refuse a loss that is not finite."""
        if not math.isfinite(logs.get("loss", 0.0)):
            raise DivergedError(f"the loss is {logs['loss']} at step {self.state.global_step}; give a lower --lr, or --lr auto")
        self.state.log_history.append({**logs, "step": self.state.global_step})

    # -- values ---------------------------------------------------------------------------------------------------------

    def trainable(self) -> Iterator[tuple[str, Tensor]]:
        """Names and parameters that are trained."""
        return ((name, value) for name, value in self.model.named_parameters() if value.requires_grad)

    @torch.no_grad()
    def adopt(self, values: StepValues) -> None:
        """Set the trained parameters."""
        for name, parameter in self.trainable():
            _local(parameter).copy_(values[name])

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The values as they are and the best so far; the Trainer's own files follow, its state last."""
        folder = Path(output_dir or self.args.output_dir)
        if not (self.is_fsdp_enabled or self.args.should_save):
            return
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.best, folder / self._best_file)
        if not self.args.should_save:
            return
        if not self.is_fsdp_enabled:  # With FSDP accelerate saves the shards beside this.
            save_file({name: value.detach().cpu().contiguous() for name, value in self.trainable()}, folder / TRAINABLE_FILE)
        for watcher in self.callback_handler.callbacks:
            if hasattr(watcher, "save_to"):
                watcher.save_to(folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.saved_step == self.state.global_step:
            return  # The Trainer saves once more when the text ends.
        self.saved_step = self.state.global_step
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.adopt(load_file(folder / TRAINABLE_FILE))
        self.best = load_file(folder / self._best_file)
        for watcher in self.callback_handler.callbacks:
            if hasattr(watcher, "load_from"):
                watcher.load_from(folder)

    @property
    def _best_file(self) -> str:
        """Sharded parameters have a file of their own for every process."""
        return f"{self.args.process_index}.{BEST_FILE}" if self.is_fsdp_enabled else BEST_FILE


class _Watch(TrainerCallback):
    """Validates the start, and turns a request to stop into a checkpoint and an end."""

    def __init__(self, trainer: HealTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        key = f"eval_{self.trainer.decided_by}"
        seen = [entry[key] for entry in state.log_history if key in entry]
        self.trainer.best_measure = min(seen, default=math.inf)
        if not seen:
            self.trainer.evaluate()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        asked = float(trainer.stopping)
        if args.world_size > 1:  # All processes stop behind the same step.
            asked = float(trainer.accelerator.gather(torch.tensor([asked], device=args.device)).max())
        if asked:
            trainer.stopping = control.should_save = control.should_training_stop = True


class StepProgress(TrainerCallback):
    """Tells somebody how many steps are done, from the beginning of the first one: the validation before it tells of itself."""

    def __init__(self, tell: Callable[[int, int], None]) -> None:
        self.tell = tell
        self._has_begun = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._has_begun:
            self.tell(state.global_step, state.max_steps)
        self._has_begun = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tell(state.global_step, state.max_steps)


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end, which the Trainer's state marks; None where there is none."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True):
        try:
            json.loads((path / TRAINER_STATE_NAME).read_text())
        except (OSError, ValueError):  # The process died while it wrote this one; the one before it still stands.
            continue
        return str(path)
    return None


@contextmanager
def stop_on_signal(trainer: HealTrainer) -> Iterator[None]:
    """While the block runs, SIGTERM and SIGINT ask the trainer to save and stop; a second one interrupts at once."""

    def ask(number: int, frame: Any) -> None:
        if trainer.stopping:
            raise KeyboardInterrupt
        trainer.stopping = True

    kinds = (signal.SIGTERM, signal.SIGINT)
    try:
        before = [signal.signal(kind, ask) for kind in kinds]
    except ValueError:  # Only the main thread hears signals, and this is another one.
        yield
        return
    try:
        yield
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


def _local(value: Any) -> Tensor:
    """The part of a parameter that lives in this process."""
    return value.to_local() if hasattr(value, "to_local") else value
