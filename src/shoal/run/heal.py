"""Healing as stages: a checkpoint in, a checkpoint out; trained, merged, verified, measured against the teacher.

``heal.json`` and ``heal.safetensors`` (the trained values) in the run folder; ``adapter/`` where there are adapters; ``model/``
and ``merge.json``; ``heal/`` holds the Trainer's own checkpoints while it runs.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.recipes.recipe import Recipe, TextChoice
from shoal.run.compress import open_folder
from shoal.run.folder import RunFolder
from shoal.run.job import Inputs, open_inputs, window_of
from shoal.run.stages.polish import claim
from shoal.train.heal.config import HealConfig
from shoal.train.heal.quiet import quiet_training
from shoal.words.progress import Progress, silent
from shoal.words.records import Record, stable_hash, write_atomically

if TYPE_CHECKING:
    from shoal.edits.plan import Plan
    from shoal.evaluate.evaluation import Evaluation
    from shoal.measure.oracle import Quality
    from shoal.text.samples import Samples
    from shoal.train.heal.cut_place import CutPlace
    from shoal.train.heal.result import HealTraining, Merging
    from shoal.train.heal.text_rows import TextRows
    from shoal.train.heal.train import Lesson, Pupil

HEALED = "heal.safetensors"
FOR_MERGING = ("merge", "most_lost")
PROMPT_TOKENS = 8  # of given text before what the teacher writes; a quarter of a sample that is shorter than 32
MOST_CHATS, MOST_CHATS_TO_SELECT = 10**6, 64


class HealRequest(Record):
    """What ``shoal heal`` does, besides the machine; ``heal.request.json`` of its run folder.

    Attributes:
        student: hub id, checkpoint folder or run folder (its ``model/``).
        teacher: the reference; None: train on text alone.
        plan: file with the plan that made the student; None where nothing reads it.
    """

    student: str
    teacher: str | None = None
    plan: str | None = None
    text: TextChoice = TextChoice()
    heal: HealConfig = HealConfig()
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Healed:
    """What a healing left; every value is also a file of ``folder``.

    Attributes:
        model: the healed checkpoint; None where the merge was refused or not asked for, and ``adapter`` is the result.
        before, evaluation: the student before and after healing against its teacher, on the evaluation slice; None without a
            teacher.
    """

    folder: Path
    model: Path | None
    adapter: Path | None
    training: HealTraining
    merging: Merging
    before: Quality | None
    evaluation: Evaluation | None

    @property
    def repaired(self) -> float | None:
        """Share of the damage, KL to the teacher, that healing took away; below 0 where it made it worse."""
        if self.before is None or self.evaluation is None or not self.before.kl:
            return None
        return 1 - self.evaluation.quality.kl / self.before.kl


def heal(
    request: HealRequest,
    out: str | Path,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    command: str = "",
    progress: Progress = silent,
) -> Healed:
    """Heal a checkpoint.

    Args:
        out: run folder: new, empty, or left by an earlier run, which is continued.
        device, dtype: where the models run, and in which precision the teacher does; the student keeps its checkpoint's.
        overwrite: stages that stand with other inputs may be replaced.
        command: recorded in ``run.json`` and on the card.
        progress: called with (what, done, total).
    Raises:
        ValueError: one line for anything the user can mend.
        ImportError: an extra that is not installed, named.
    """
    from shoal.run.comparing import checkpoint_of

    student = checkpoint_of(request.student)
    refuse_inside(Path(out), student)
    folder = open_folder(Path(out), command=command, overwrite=overwrite)
    inputs = open_inputs(
        Recipe(model=request.teacher or student, text=request.text, seed=request.seed),
        device=device,
        dtype=dtype,
        resident="all",
        trust_remote_code=trust_remote_code,
    )
    with quiet_training():
        bench = HealBench(inputs, request, student, trust_remote_code=trust_remote_code)
        inputs.workers.on_first(lambda: request.save(folder / "heal.request.json"))
        return heal_stages(bench, folder, command=command, progress=progress)


def refuse_inside(out: Path, student: str) -> None:
    """Raises ValueError where the run folder would lie inside the student's checkpoint, or be the run that it is part of."""
    source = Path(student)
    if source.is_dir() and (out.resolve().is_relative_to(source.resolve()) or source.resolve().is_relative_to(out.resolve())):
        raise ValueError(f"--out {out} and the student {source} overlap; choose a folder outside it")


def refuse_other_words(inputs: Inputs, student: Path) -> None:
    """Raises ValueError where the student does not read the teacher's tokens, or not samples of their length."""
    from shoal.checkpoint.rewrite import read_config
    from shoal.engine.families import text_config
    from shoal.engine.open import load_tokenizer
    from shoal.evaluate.comparison import other_tokenizer

    config, tokenizer = text_config(read_config(student)), load_tokenizer(student)
    ours, theirs = config.vocab_size, text_config(inputs.view.config).vocab_size
    why = f"it has {ours} tokens, the teacher {theirs}" if ours != theirs else None
    if why is None and tokenizer is not None:  # a student saved without a tokenizer reads the teacher's
        why = other_tokenizer(inputs.opened.need_tokenizer(), tokenizer)
    if why:
        raise ValueError(f"{student} cannot be healed by {inputs.opened.name}: {why}; give the teacher it was made from")
    window = window_of(config)
    if window is not None and inputs.length > window:
        raise ValueError(
            f"samples of {inputs.length} tokens are longer than the student's window; give --length {window} or less"
        )


def refuse_unknown(config: HealConfig, *, has_teacher: bool) -> None:
    """Raises ValueError for a method, schedule, objective or merge that there is not, before anything is opened."""
    with quiet_training():
        from shoal.train.heal.losses import objective_of
        from shoal.train.heal.merge import merge_named
        from shoal.train.heal.ranks import schedule_named
        from shoal.train.heal.table import trainable_named

    trainable_named(config.method)
    schedule_named(config.ranks)
    objective_of(config, has_teacher=has_teacher)
    merge_named(config.merge, is_quantised=trainable_named(config.method).is_quantised)


class HealBench:
    """A student, its teacher and the texts, opened when they are first needed."""

    def __init__(self, inputs: Inputs, request: HealRequest, student: str, *, trust_remote_code: bool) -> None:
        from shoal.engine.open import refuse_quantised
        from shoal.engine.source import check_source, fingerprint, resolve_source

        self.inputs, self.request, self.config = inputs, request, request.heal
        self.trust_remote_code = trust_remote_code
        self.path = resolve_source(student, trust_remote_code=trust_remote_code)
        check_source(self.path, trust_remote_code=trust_remote_code)
        refuse_quantised(self.path)
        refuse_unknown(self.config, has_teacher=request.teacher is not None)
        refuse_other_words(inputs, self.path)
        self.fingerprint = fingerprint(self.path)
        self.device = str(inputs.view.device)

    @cached_property
    def given(self) -> Samples:
        """The training text as it was given."""
        return self.inputs.training_for(self.config.tokens)

    @cached_property
    def cut(self) -> CutPlace | None:
        """Where the student was cut, by its plan."""
        if self.request.plan is None:
            return None
        from shoal.edits.plan import Plan

        return cut_of(Plan.load(Path(self.request.plan)), self.path, n_teacher_layers=self.inputs.view.n_layers)

    @cached_property
    def judge(self) -> Lesson:
        """Teacher and selection text; it stands for the training text, too, which only training reads."""
        from shoal.train.heal.teachers import RunningTeacher
        from shoal.train.heal.text_rows import TextRows
        from shoal.train.heal.train import Lesson

        teacher = RunningTeacher(self.inputs.view.model) if self.request.teacher else None
        answers = self.config.predict == "answers"
        selection = self._chats("selection") if answers else TextRows.of(self.inputs.selection)
        return Lesson(selection, selection, teacher, self.cut)

    def lesson(self, work: Path, progress: Progress) -> Lesson:
        """As ``judge``, with the training text; ``work`` holds text that the teacher writes."""
        from shoal.train.heal.teacher_text import write_text
        from shoal.train.heal.text_rows import TextRows

        if self.config.predict == "answers":
            return replace(self.judge, training=self._chats("training"))
        given = TextRows.of(self.given)
        if self.config.source == "given":
            return replace(self.judge, training=given)
        if self.request.teacher is None:
            raise ValueError("source teacher needs a teacher that writes; give --teacher, or use --source given")
        model, n_prompt = self.inputs.view.model, max(1, min(PROMPT_TOKENS, self.inputs.length // 4))

        def write() -> TextRows:
            return write_text(
                work / "written",
                model,
                given,
                n_prompt=n_prompt,
                temperature=self.config.temperature,
                seed=self.config.seed,
                key=self.inputs.model_key,
                tell=lambda done, total: progress("write", done, total),
            )

        return replace(self.judge, training=self.inputs.workers.from_first(write))

    def _chats(self, name: str) -> TextRows:
        """Conversations of a slice: as many as the selection text has samples, or all there are to train on."""
        from shoal.train.heal.chats import chat_rows

        inputs, n = self.inputs, MOST_CHATS if name == "training" else MOST_CHATS_TO_SELECT
        sources = list(inputs.recipe.text.sources)
        if not sources:
            raise ValueError("predicting answers needs conversations; give rows with messages by --text")
        tokenizer = inputs.opened.need_tokenizer()
        return inputs.workers.from_first(
            lambda: chat_rows(
                sources, tokenizer, name, n=n, length=inputs.length, field=inputs.recipe.text.field, seed=inputs.recipe.seed
            )
        )

    @cached_property
    def pupil(self) -> Pupil:
        """The student, ready to be trained."""
        from shoal.train.heal.train import open_pupil

        return open_pupil(self.path, self.config, self.judge, device=self.device, trust_remote_code=self.trust_remote_code)

    @property
    def key(self) -> str:
        """Identity of the training: student, teacher, cut, texts and options; how it is merged afterwards is no part of it."""
        how = self.config.model_dump(mode="json", exclude=set(FOR_MERGING))
        cut = None if self.cut is None else self.cut.stands_for
        teacher = self.inputs.model_key if self.request.teacher else None
        texts = (self.given.data_hash, self.inputs.selection.data_hash)
        return stable_hash("heal", self.fingerprint, teacher, cut, texts, how)


def cut_of(plan: Plan, student: Path, *, n_teacher_layers: int) -> CutPlace:
    """Where a plan cut its source, as the student's layers lie in it.

    Raises:
        ValueError: the plan is of another teacher, or of a student with another number of layers.
    """
    from shoal.checkpoint.rewrite import read_config
    from shoal.engine.families import text_config
    from shoal.train.heal.cut_place import CutPlace

    if plan.n_layers != n_teacher_layers:
        raise ValueError(
            f"the plan cuts a model of {plan.n_layers} layers, the teacher has {n_teacher_layers}; give its own plan"
        )
    n_layers = text_config(read_config(student)).num_hidden_layers
    # A replacement that is hosted lives inside the layer before it; any other is a layer of its own, where its span began.
    starts = [] if plan.brings_code else [edit.start for edit in plan.replacements]
    kept = sorted([*plan.kept_layers, *starts])
    if len(kept) != n_layers:
        raise ValueError(f"the plan leaves {len(kept)} layers, the student has {n_layers}; give the plan that made it")
    return CutPlace.of_kept(kept, plan.n_layers)


def heal_stages(bench: HealBench, folder: RunFolder, *, command: str, progress: Progress = silent) -> Healed:
    """Train, merge and write, evaluate."""
    training = train_stage(bench, folder, progress=progress)
    merging = merge_stage(bench, folder, training)
    model, adapter = folder / "model", folder / "adapter"
    before, evaluation = measure_stage(bench, folder, training, merging, command=command, progress=progress)
    return Healed(
        folder.path,
        model if merging.way != "apart" else None,
        adapter if adapter.is_dir() else None,
        training,
        merging,
        before,
        evaluation,
    )


def heal_in_run(inputs: Inputs, folder: RunFolder, student: Path, *, progress: Progress = silent) -> HealedInRun:
    """The healing of a run: the student that was cut and repaired, healed by its teacher into ``model/``.

    Raises:
        ValueError: the merge lost too much, so there is no checkpoint.
    """
    config = inputs.recipe.heal
    assert config is not None
    request = HealRequest(student=str(student), teacher=inputs.opened.name, plan=str(folder / "plan.json"), heal=config)
    with quiet_training():
        bench = HealBench(inputs, request, str(student), trust_remote_code=inputs.opened.trusted)
        training = train_stage(bench, folder, progress=progress)
        merging = merge_stage(bench, folder, training)
    if merging.way == "apart":
        worst = max((one.lost for one in merging.trials), default=None)
        lost = "" if worst is None else f": it lost {worst:.3g} nats per token, {config.most_lost:g} are allowed"
        raise ValueError(
            f"the adapter was not merged{lost}. The run has no checkpoint; {folder / 'adapter'} beside {student} is what was "
            "healed: raise heal.most_lost, or heal by another method"
        )
    return HealedInRun(training, merging, bench.key)


@dataclass(frozen=True, eq=False)
class HealedInRun:
    """What healing adds to a run: its training, its merge, and the key of its inputs."""

    training: HealTraining
    merging: Merging
    key: str


def train_stage(bench: HealBench, folder: RunFolder, *, progress: Progress = silent) -> HealTraining:
    """``heal.json`` and ``heal.safetensors``: the values of the best step."""
    from shoal.engine.tensors import save_tensors
    from shoal.train.heal.merge import trained_values
    from shoal.train.heal.result import HealTraining
    from shoal.train.heal.train import train

    if folder.is_done("heal", bench.key):
        return HealTraining.load(folder / "heal.json")
    started = time.monotonic()
    folder.workers.on_first(lambda: claim(folder, "heal", bench.key))
    training = train(
        bench.pupil,
        bench.config,
        bench.lesson(folder / "heal", progress),
        folder / "heal" / "trainer",
        device=bench.device,
        tell=lambda done, total: progress("heal", done, total),
    )

    values = trained_values(bench.pupil.model)  # asked for by every process: each may hold a part of them

    def write() -> None:
        save_tensors(folder / HEALED, values)
        training.save(folder / "heal.json")

    folder.workers.on_first(write)
    if bench.config.processes == "shard":
        del bench.pupil  # its parameters are parts; merging opens the student anew
    folder.finish("heal", bench.key, seconds=time.monotonic() - started, files=[HEALED, "heal.json"])
    folder.workers.on_first(lambda: shutil.rmtree(folder / "heal", ignore_errors=True))
    return training


def merge_stage(bench: HealBench, folder: RunFolder, training: HealTraining) -> Merging:
    """``merge.json``, and ``model/`` or ``adapter/``: the merge is measured, refused where it loses too much, and verified."""
    from shoal.train.heal.result import Merging

    key = stable_hash("healed", bench.key, bench.config.merge, bench.config.most_lost)
    if folder.is_done("model", key):
        return Merging.load(folder / "merge.json")
    started = time.monotonic()
    merging = folder.workers.from_first(lambda: _merge_and_write(bench, folder, training))
    files = ["merge.json", *(name for name in ("model", "verification.json", "adapter") if (folder / name).exists())]
    folder.finish("model", key, seconds=time.monotonic() - started, files=files)
    return merging


def _merge_and_write(bench: HealBench, folder: RunFolder, training: HealTraining) -> Merging:
    from shoal.checkpoint.save import save
    from shoal.checkpoint.verify import verify
    from shoal.engine.tensors import each_tensor
    from shoal.train.heal.merge import adopt_values, merge_pupil

    for name in ("model", "adapter"):  # left by a run that died before it recorded the stage
        shutil.rmtree(folder / name, ignore_errors=True)
    pupil = bench.pupil
    adopt_values(pupil.model, dict(each_tensor(folder / HEALED)))
    if pupil.method.has_adapters:
        pupil.model.save_pretrained(str(folder / "adapter"))
    merging, model = merge_pupil(pupil, bench.config, bench.judge, bench.path, device=bench.device)
    taken = merging.taken
    if taken is not None and taken.lost > bench.config.most_lost and pupil.method.has_adapters:
        merging, model = merging.model_copy(update={"way": "apart"}), None
    if model is not None:
        ids_BT = bench.inputs.evaluation.ids_NT[:2]
        reference = model(input_ids=ids_BT.to(bench.device), use_cache=False).logits.detach()
        save(model, None, folder / "model", source=bench.path)
        try:
            checked = verify(
                folder / "model",
                ids_BT=ids_BT,
                reference=lambda ids: reference,
                device=bench.device,
                trust_remote_code=bench.trust_remote_code,
            )
        except ValueError:  # a checkpoint that is not the healed student must not be found under the final name
            shutil.rmtree(folder / "model")
            raise
        checked.model_copy(update={"path": "model"}).save(folder / "verification.json")
    merging.save(folder / "merge.json")
    return merging


def measure_stage(
    bench: HealBench, folder: RunFolder, training: HealTraining, merging: Merging, *, command: str, progress: Progress
) -> tuple[Quality | None, Evaluation | None]:
    """``evaluation.json``, ``before.json``, card and report: the student before and after, on text nothing was chosen on."""
    from shoal.engine.open import load_strictly
    from shoal.engine.view import DecoderView
    from shoal.evaluate.evaluation import Evaluation, closeness
    from shoal.measure.oracle import Quality
    from shoal.run.measuring import against_teacher
    from shoal.run.stages.report import report_stage
    from shoal.show.card import inherited_metadata
    from shoal.show.heal_card import heal_card

    if bench.request.teacher is None or merging.way == "apart":
        return None, None
    key = stable_hash("measured", bench.key, merging.way, bench.inputs.evaluation.data_hash)
    if folder.is_done("evaluation", key):
        return Quality.load(folder / "before.json"), Evaluation.load(folder / "evaluation.json")
    started = time.monotonic()
    inputs, trusts = bench.inputs, bench.trust_remote_code
    student = DecoderView(load_strictly(bench.path, trust_remote_code=trusts).to(bench.device))
    before, _ = closeness(inputs.view, student, inputs.batches(inputs.evaluation), workers=inputs.workers)
    healed = DecoderView(load_strictly(folder / "model", trust_remote_code=trusts).to(bench.device))
    evaluation = against_teacher(inputs, healed, progress=progress)

    def write() -> None:
        before.save(folder / "before.json")
        evaluation.save(folder / "evaluation.json")
        text = heal_card(
            bench.request.student,
            training,
            merging,
            before=before,
            evaluation=evaluation,
            command=command,
            inherited=inherited_metadata(bench.path),
        )
        write_atomically(folder / "model" / "README.md", text.encode())

    inputs.workers.on_first(write)
    files = ["before.json", "evaluation.json", "model/README.md"]
    folder.finish("evaluation", key, seconds=time.monotonic() - started, files=files)
    inputs.workers.on_first(lambda: report_stage(folder.path))
    return before, evaluation
