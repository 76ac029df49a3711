"""One healing in memory: prepare a model, train it, leave it with the values of the best step."""

import dataclasses
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shoal.engine.families import find_layers, text_config
from shoal.engine.opening import Opening
from shoal.engine.wide_products import widen
from shoal.engine.workers import join
from shoal.train.course import eval_interval
from shoal.train.heal.config import DEFAULT_HEAL_TOKENS, HealConfig
from shoal.train.heal.cut_place import CutPlace
from shoal.train.heal.damage import damage_by_layer
from shoal.train.heal.lora import adapter_ranks
from shoal.train.heal.losses import HealLoss, objective_of
from shoal.train.heal.masks import KeepZeros, Masks, mask_adapters, zero_masks
from shoal.train.heal.qlora import n_parameters_of
from shoal.train.heal.ranks import RANKS, RankEvidence
from shoal.train.heal.result import CacheFigures, HealPoint, HealTraining
from shoal.train.heal.streams import Streams, run_model
from shoal.train.heal.table import TRAINABLE, Trainable
from shoal.train.heal.teacher_cache import CachedTeacher, cut_off, fill_cache
from shoal.train.heal.teachers import Teacher
from shoal.train.heal.text_rows import TextRows
from shoal.words.records import stable_hash

N_SEEN = 8  # So many batches of the selection text serve figures of which the first digits are enough.

Tell = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a student is healed with.

    Attributes:
        training: in the order of the text; shuffled here.
        selection: decides which step is kept.
        teacher: None where there is none.
        cut: where the student was cut; None where that is not known.
    """

    training: TextRows
    selection: TextRows
    teacher: Teacher | None = None
    cut: CutPlace | None = None

    def loss(self, config: HealConfig) -> HealLoss:
        """The objective with its boundaries.

        Raises:
            ValueError: it reads hidden states and nobody knows where the student was cut; and as :func:`objective_of`.
        """
        found = objective_of(config, has_teacher=self.teacher is not None)
        if "boundary" not in found.needs:
            return HealLoss(found)
        if self.cut is None:
            raise ValueError(
                f"objective {str(found)!r} compares hidden states, so it has to know which layers were kept; give --plan FILE"
            )
        return HealLoss(found, self.cut.pairs(config.boundaries))

    def decided_by(self, config: HealConfig) -> str:
        """The measure on the selection text that chooses: ``kl`` where the objective compares with a teacher, else ``nll``."""
        return "kl" if self.loss(config).needs_teacher else "nll"

    def evidence(self, config: HealConfig, model: Any, layers: Sequence[nn.Module]) -> RankEvidence:
        """What the rank schedule looks at, of a student in memory that nothing was added to.

        Raises:
            ValueError: the schedule needs the cut or a teacher and there is none; the cut is of a student with another number
                of layers.
        """
        n_layers, schedule = len(layers), RANKS.named(config.ranks)
        if self.cut is not None and self.cut.n_layers != n_layers:
            raise ValueError(
                f"the plan leaves {self.cut.n_layers} layers and the student has {n_layers}; give the plan it came from"
            )
        if schedule.needs_cut and self.cut is None:
            raise ValueError(f"ranks {config.ranks!r} have to know which layers were kept; give --plan FILE")
        if not schedule.needs_scores:
            return RankEvidence(n_layers, self.cut)
        if self.teacher is None:
            raise ValueError(f"ranks {config.ranks!r} compare with a teacher; give --teacher, or other --ranks")
        assert self.cut is not None
        batches = self.selection.batches(config.micro_batch)[:N_SEEN]
        batches = [{name: value.to(model.device) for name, value in batch.items()} for batch in batches]
        return RankEvidence(n_layers, self.cut, damage_by_layer(model, layers, self.cut, self.teacher, batches))


@dataclass(frozen=True, eq=False)
class Pupil:
    """A student that is ready to be trained.

    Attributes:
        model: as its method trains it; exactly its trained parameters require gradients, and they are in fp32.
        layers: its decoder layers.
        n_parameters: of the student, tied ones once, without what the method added.
        ranks: of each layer's adapters; empty where there are none.
        in_bf16: it computes in bf16, as its checkpoint is unless another dtype is asked for.
        dtypes: of the checkpoint's parameters, by name.
        masks: of the weights that stay zero; empty where none has to.
        evidence: what the ranks of adapters came from.
    """

    model: Any
    method: Trainable
    layers: list[nn.Module]
    hidden_size: int
    n_parameters: int
    ranks: tuple[int, ...]
    in_bf16: bool
    dtypes: Mapping[str, torch.dtype]
    masks: Masks
    evidence: RankEvidence

    @property
    def n_trainable(self) -> int:
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


def open_pupil(path: Path, config: HealConfig, lesson: Lesson, opening: Opening = Opening()) -> Pupil:
    """Open a checkpoint as its method needs it, and prepare it.

    Args:
        opening: its dtype, where it is float32 or bfloat16, is what the student computes in, as its teacher does.
    Raises:
        ValueError: as :func:`prepare`; a checkpoint that cannot be opened.
        ImportError: the method needs a library that is not installed.
    """
    method = TRAINABLE.named(config.method)
    return prepare(method.open(path, opening), config, lesson, computes_in=opening.dtype)


def prepare(
    model: Any, config: HealConfig, lesson: Lesson, *, computes_in: str | None = None, evidence: RankEvidence | None = None
) -> Pupil:
    """Make a model in memory ready for a method, which changes it.

    Args:
        computes_in: float32, bfloat16, or else the model's own dtype, which weights in 4 bits always compute in.
        evidence: of another pupil whose values this one takes; None: the model is looked at.
    Raises:
        ValueError: anything the method refuses; a method that finds nothing to train.
    """
    method = TRAINABLE.named(config.method)
    layers, n_parameters = list(find_layers(model)[1]), n_parameters_of(model)
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    # Trained parameters are in fp32, and a layer whose other parameters stay in fp16 multiplies one with the other.
    is_mixed = model.dtype == torch.float16 and not method.has_adapters
    if (computes_in == "float32" and not method.is_quantised) or is_mixed:
        model = model.float()
    in_bf16 = model.dtype == torch.bfloat16 or computes_in == "bfloat16"
    masks = zero_masks(model) if config.keep_zeros else {}
    torch.manual_seed(config.seed)
    evidence = lesson.evidence(config, model, layers) if evidence is None else evidence
    made = method.prepare(model, config, evidence)
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # The steps of training are smaller than the last digit of bf16.
    if in_bf16:
        widen(made, computes_in=torch.bfloat16)
    if masks and method.has_adapters:
        mask_adapters(made, masks)
    if not any(parameter.requires_grad for parameter in made.parameters()):
        raise ValueError(
            f"method {config.method} with these options trains nothing of this {model.config.model_type!r} model; use "
            "--method lora"
        )
    width = text_config(model.config).hidden_size
    return Pupil(made, method, layers, width, n_parameters, adapter_ranks(layers), in_bf16, dtypes, masks, evidence)


def train(
    pupil: Pupil, config: HealConfig, lesson: Lesson, folder: Path, *, device: str = "cpu", tell: Tell | None = None
) -> HealTraining:
    """Train a student in place; at the end it has the values of the best validation.

    Args:
        config: its ``lr`` may be ``auto``.
        folder: of the trainer's checkpoints; what an earlier run with the same inputs left is continued.
        tell: called with (steps done, steps in all).
    Raises:
        ValueError: too little text; the loss diverged.
        KeyboardInterrupt: SIGTERM or SIGINT came; a checkpoint was left.
    """
    from shoal.train.heal.arguments import n_processes
    from shoal.train.heal.rates import best_rate, find_rate

    cached, training = None, lesson.training
    config = config.settled(samples_of(config, training), training.n_tokens / len(training), n_processes())
    if config.teacher_cache is not None:
        lesson, cached = with_cache(pupil, config, lesson, folder / "teacher", device=device, tell=tell)
    if config.lr != "auto":
        return train_at(pupil, config, lesson, folder, device=device, tell=tell, cached=cached)
    rates = find_rate(pupil, config, lesson, folder, device=device, tell=tell)
    chosen = config.model_copy(update={"lr": best_rate(rates)})
    done = train_at(pupil, chosen, lesson, folder, device=device, tell=tell, cached=cached)
    return done.model_copy(update={"config": config, "rates": rates})


def train_at(
    pupil: Pupil,
    config: HealConfig,
    lesson: Lesson,
    folder: Path,
    *,
    device: str,
    tell: Tell | None = None,
    cached: CacheFigures | None = None,
) -> HealTraining:
    """As :func:`train`, at one learning rate: the stated one, or the method's own."""
    from shoal.train.heal.arguments import arguments
    from shoal.train.heal.trainer import HealTrainer, last_whole_checkpoint, stop_on_signal

    join().on_first(lambda: None)  # The call opens the connections of a job, which are closed again when its processes end.
    loss = lesson.loss(config)
    n_steps = steps_of(config, lesson.training)
    rows = lesson.training.shuffled(config.seed, n_steps * config.n_batch)
    decided_by = lesson.decided_by(config)
    n_selection = lesson.selection.n_tokens
    interval = eval_interval(config.eval_every, n_steps=n_steps, n_tokens=rows.n_tokens, selection_tokens=n_selection)
    lr = config.lr if isinstance(config.lr, float) else pupil.method.learning_rate(pupil.hidden_size)
    config_of_model = vars(pupil.model.config)
    uses_cache = config_of_model.get("use_cache")
    trainer = HealTrainer(
        pupil.model,
        arguments(config, folder, lr=lr, n_steps=n_steps, interval=interval, device=device, in_bf16=pupil.in_bf16),
        rows,
        layers=pupil.layers,
        loss=loss,
        teacher=lesson.teacher,
        selection=lesson.selection,
        decided_by=decided_by,
        patience=config.patience,
        watchers=watchers_of(pupil, config, tell),
    )
    config_of_model["use_cache"] = uses_cache  # The Trainer switches it off, and the config is that of the checkpoint.
    if uses_cache is None:  # A model with images has the setting in the part of its decoder.
        del config_of_model["use_cache"]
    started = time.monotonic()
    checkpoint = last_whole_checkpoint(folder)
    if not trainer.has_ended_at(checkpoint):
        with stop_on_signal(trainer):
            trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.stopping:
        raise KeyboardInterrupt
    seconds = time.monotonic() - started - trainer.seconds_of_validation
    trainer.adopt(trainer.best)
    pupil.model.eval()
    done, before = trainer.state.global_step, trainer._initial_global_step
    n_tokens = rows.first(done * config.n_batch).n_tokens
    curve = curve_of(trainer.state.log_history, rows, config.n_batch)
    return HealTraining(
        method=config.method,
        objective=str(loss),
        decided_by=decided_by,
        best_step=min(curve, key=lambda point: (point.measure(decided_by), point.step)).step,
        n_steps=done,
        n_tokens=n_tokens,
        n_trainable=pupil.n_trainable,
        n_parameters=pupil.n_parameters,
        lr=lr,
        tokens_per_second=round((n_tokens - rows.first(before * config.n_batch).n_tokens) / max(seconds, 1e-9), 1),
        peak_bytes=peak_bytes(device),
        data=rows.data,
        data_hash=rows.data_hash,
        config=config,
        curve=curve,
        ranks=pupil.ranks,
        cached=cached,
    )


def with_cache(
    pupil: Pupil, config: HealConfig, lesson: Lesson, folder: Path, *, device: str, tell: Tell | None
) -> tuple[Lesson, CacheFigures]:
    """The lesson with a teacher that answers from disk, and what its answers leave out.

    Raises:
        ValueError: the objective reads no logits, or hidden states; more tokens than the vocabulary has.
    """
    loss, teacher, k = lesson.loss(config), lesson.teacher, config.teacher_cache
    assert teacher is not None and k is not None
    rows = lesson.training.shuffled(config.seed, steps_of(config, lesson.training) * config.n_batch)
    first = {name: value.to(device) for name, value in lesson.selection.batches(config.micro_batch)[0].items()}
    n_vocabulary = teacher.selection(first).shape[-1]

    def fill() -> None:
        key = stable_hash(rows.data_hash, config.seed, len(rows), k)
        fill_cache(folder, teacher, rows, k=k, n_vocabulary=n_vocabulary, key=key, device=device, tell=tell)

    join().on_first(fill)
    reader = CachedTeacher(folder, teacher, n_vocabulary=n_vocabulary)
    batches = [{n: v.to(device) for n, v in one.items()} for one in lesson.selection.batches(config.micro_batch)[:N_SEEN]]

    @torch.no_grad()
    def errors() -> tuple[float, float]:
        pairs = []
        for batch in batches:
            student, full = run_model(pupil.model, pupil.layers, batch), Streams(teacher.selection(batch), {})
            pairs.append([float(loss(student, answers, batch)) for answers in (full, cut_off(full, k))])
        whole, kept = (sum(one) / len(pairs) for one in zip(*pairs, strict=True))
        return whole, kept

    whole, kept = errors()
    figures = CacheFigures(k=k, n_bytes=reader.n_bytes, objective=whole, objective_cached=kept)
    return dataclasses.replace(lesson, teacher=reader), figures


def watchers_of(pupil: Pupil, config: HealConfig, tell: Tell | None) -> list[Any]:
    """What acts around the Trainer's steps: masks, pruned adapters, progress."""
    from shoal.train.heal.moving_zeros import MoveZeros
    from shoal.train.heal.pruned_adapters import PruneAdapters
    from shoal.train.heal.trainer import StepProgress

    found: list[Any] = [] if tell is None else [StepProgress(tell)]
    if pupil.masks and not pupil.method.has_adapters:
        found.append(KeepZeros(pupil.model, pupil.masks))
    if config.regrow:
        every, growth = config.regrow_every, config.regrow_in
        found.append(MoveZeros(pupil.model, pupil.masks, share=config.regrow, every=every, growth=growth))
    if config.pruned and pupil.method.has_adapters:
        found.append(PruneAdapters(pupil.model, share=config.pruned, every=config.prune_every, decay=config.prune_decay))
    return found


def samples_of(config: HealConfig, training: TextRows) -> float:
    """Samples of one pass over the tokens that are asked for.

    Raises:
        ValueError: the text holds fewer tokens.
    """
    wanted = min(DEFAULT_HEAL_TOKENS, training.n_tokens) if config.tokens is None else config.tokens
    if wanted > training.n_tokens:
        raise ValueError(
            f"tokens={wanted} needs more text: the training samples of {training.data} hold {training.n_tokens} tokens; "
            "give more text, or fewer tokens"
        )
    return wanted * len(training) / training.n_tokens


def steps_of(config: HealConfig, training: TextRows) -> int:
    """Whole optimiser steps of that pass; ``config`` is settled.

    Raises:
        ValueError: the text holds fewer tokens, or less than one step.
    """
    wanted = samples_of(config, training)
    n_steps = min(round(wanted / config.n_batch), len(training) // config.n_batch)
    if n_steps < 1:
        per_sample = training.n_tokens / len(training)
        raise ValueError(
            f"the tokens or the text are less than one step of {config.n_batch} samples of {per_sample:.0f} tokens; give more, "
            "or a smaller --batch"
        )
    return n_steps


def curve_of(log: Sequence[Mapping[str, Any]], rows: TextRows, batch: int) -> tuple[HealPoint, ...]:
    """The validations of a trainer's log, each with the mean loss of the steps since the one before."""
    points: list[HealPoint] = []
    losses: list[float] = []
    lr = 0.0
    for entry in log:
        if "loss" in entry:
            losses.append(entry["loss"])
            lr = entry["learning_rate"]
        if "eval_nll" in entry:
            step = int(entry["step"])
            points.append(
                HealPoint(
                    step=step,
                    tokens=rows.first(step * batch).n_tokens,
                    lr=lr,
                    loss=sum(losses) / len(losses) if losses else None,
                    nll=entry["eval_nll"],
                    kl=entry.get("eval_kl"),
                )
            )
            losses = []
    return tuple(points)


def peak_bytes(device: str) -> int:
    """Most memory that this process held: on its card where it used one, else at all."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
