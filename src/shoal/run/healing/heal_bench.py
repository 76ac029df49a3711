"""The student of a healing, its teacher and its texts: checked at once, opened when they are first needed."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.checkpoint.rewrite import read_config
from shoal.edits.plan import Plan
from shoal.engine.families import text_config
from shoal.engine.open import load_tokenizer, refuse_quantised
from shoal.engine.opening import Opening
from shoal.engine.source import check_source, fingerprint, resolve_source
from shoal.engine.spread import devices_of, is_spread
from shoal.evaluate.comparison import other_tokenizer
from shoal.run.healing.heal_request import HealRequest
from shoal.run.job import Inputs, window_of
from shoal.text.samples import Samples
from shoal.train.heal.config import HealConfig
from shoal.train.heal.cut_place import CutPlace
from shoal.train.heal.quiet import quiet_training
from shoal.train.heal.ranks import RANKS
from shoal.train.heal.result import QuantisedFigures
from shoal.train.heal.table import TRAINABLE
from shoal.train.objectives import WeightedSum
from shoal.words.progress import tell
from shoal.words.records import stable_hash
from shoal.words.structure import stored

if TYPE_CHECKING:
    from shoal.train.heal.teachers import Teacher
    from shoal.train.heal.text_rows import TextRows
    from shoal.train.heal.train import Lesson, Pupil

FOR_MERGING = ("merge", "most_lost")
PROMPT_TOKENS = 8  # So many tokens of given text stand before what the teacher writes; a quarter of a sample shorter than 32.
MOST_CHATS, MOST_CHATS_TO_SELECT = 10**6, 64


class HealBench:
    """A student, its teacher and the texts, opened when they are first needed."""

    def __init__(self, inputs: Inputs, request: HealRequest, student: str) -> None:
        self.inputs, self.request, self.config = inputs, request, request.heal
        self.opening = inputs.opened.opening
        self.path = resolve_source(student, trust_remote_code=self.opening.trust)
        check_source(self.path, trust_remote_code=self.opening.trust)
        refuse_quantised(self.path, what="healing")
        with quiet_training():
            from shoal.train.heal.losses import objective_of

        asked = objective_of(self.config, has_teacher=request.teacher is not None)
        refuse_apart(self.config, asked, self.opening)
        if self.config.teacher_bits is not None and inputs.opened.quantised is not None:
            raise ValueError(
                f"{inputs.opened.name} is quantised already ({inputs.opened.quantised}) and teaches as it is; leave out "
                "--teacher-bits"
            )
        refuse_other_words(inputs, self.path)
        self.fingerprint = fingerprint(self.path)
        refuse_no_student_of(inputs, self, compares=bool(asked.needs - {"labels"}))
        self.device = str(inputs.view.device)

    @cached_property
    def given(self) -> Samples:
        """The training text as it was given, in samples short enough for its steps."""
        return training_text(self.inputs, self.config)

    @cached_property
    def cut(self) -> CutPlace | None:
        """Where the student was cut, by its plan."""
        if self.request.plan is None:
            return None
        return cut_of(
            Plan.load(Path(self.request.plan)), self.path, n_teacher_layers=self.inputs.view.n_layers, opening=self.opening
        )

    @cached_property
    def teacher(self) -> Teacher:
        """Who trains the student: the model that was opened, in memory or read from disk, or its form in few bits."""
        from shoal.train.heal.qlora import open_in_4_bits
        from shoal.train.heal.teachers import RunningTeacher

        if self.config.teacher_bits is None:
            return self.whole_teacher
        place = replace(self.opening, device=self.device)
        return RunningTeacher(open_in_4_bits(self.inputs.opened.path, place, instead="no --teacher-bits"))

    @property
    def whole_teacher(self) -> Teacher:
        """The teacher as its checkpoint is."""
        from shoal.train.heal.teachers import RunningTeacher, StreamedTeacher

        return StreamedTeacher(self.inputs.view) if self.inputs.is_streamed else RunningTeacher(self.inputs.view.model)

    def quantised(self) -> QuantisedFigures | None:
        """How far the teacher in few bits is from the whole one, on a part of the selection text."""
        from shoal.train.heal.quantised_teacher import compare_teachers

        bits = self.config.teacher_bits
        if bits is None:
            return None
        return compare_teachers(
            self.whole_teacher, self.teacher, self.judge.selection, bits=bits, source=self.inputs.opened.path
        )

    @cached_property
    def judge(self) -> Lesson:
        """Teacher and selection text; it stands for the training text, too, which only training reads."""
        from shoal.train.heal.text_rows import TextRows
        from shoal.train.heal.train import Lesson

        teacher = self.teacher if self.request.teacher else None
        answers = self.config.predict == "answers"
        selection = chats_of(self.inputs, "selection") if answers else TextRows.of(self.inputs.selection)
        return Lesson(selection, selection, teacher, self.cut)

    def lesson(self, work: Path) -> Lesson:
        """As ``judge``, with the training text; ``work`` holds text that the teacher writes."""
        from shoal.train.heal.teacher_text import write_text
        from shoal.train.heal.text_rows import TextRows

        if self.config.predict == "answers":
            return replace(self.judge, training=chats_of(self.inputs, "training"))
        given = TextRows.of(self.given)
        if self.config.source == "given":
            return replace(self.judge, training=given)
        refuse_no_writer(self.inputs, self.config, has_teacher=self.request.teacher is not None)
        model = self.inputs.view.model
        n_prompt = len(self.given.start) + max(1, min(PROMPT_TOKENS, self.inputs.length // 4))

        def write() -> TextRows:
            return write_text(
                work / "written",
                model,
                given,
                n_prompt=n_prompt,
                temperature=self.config.temperature,
                seed=self.config.seed,
                key=self.inputs.model_key,
                tell=partial(tell, "write"),
            )

        return replace(self.judge, training=self.inputs.workers.from_first(write))

    @cached_property
    def pupil(self) -> Pupil:
        """The student, ready to be trained."""
        from shoal.train.heal.train import open_pupil

        return open_pupil(self.path, self.config, self.judge, self.opening)

    @property
    def key(self) -> str:
        """Identity of the training: student, teacher, cut, texts and options; how it is merged afterwards is no part of it."""
        how = self.config.model_dump(mode="json", exclude=set(FOR_MERGING))
        cut = None if self.cut is None else (self.cut.stands_for, self.cut.new) if self.cut.new else self.cut.stands_for
        opened = (self.inputs.model_key, self.request.teacher is not None)  # Also in what is computed, and where.
        texts = (self.given.data_hash, self.inputs.selection.data_hash)
        return stable_hash("heal", self.fingerprint, opened, cut, texts, how)


def training_text(inputs: Inputs, config: HealConfig) -> Samples:
    """The training text of a healing as it was given, in samples short enough for its steps."""
    text, found = inputs.recipe.text, inputs.training_for(config.tokens)
    if text.length is not None or text.packing == "padded":
        return found
    length = config.sample_length(found.n_tokens, inputs.length)
    return found if length == inputs.length else inputs.training_for(found.n_tokens, length=length)


def chats_of(inputs: Inputs, name: str) -> TextRows:
    """Conversations of a slice: as many as the selection text has samples, or all there are to train on."""
    from shoal.train.heal.chats import chat_rows

    n = MOST_CHATS if name == "training" else MOST_CHATS_TO_SELECT
    sources = list(inputs.recipe.text.sources)
    if not sources:
        raise ValueError("predicting answers needs conversations; give rows with messages by --text")
    tokenizer, text = inputs.opened.need_tokenizer(), inputs.recipe.text
    return inputs.workers.from_first(
        lambda: chat_rows(sources, tokenizer, name, n=n, length=inputs.length, field=text.field, seed=inputs.recipe.seed)
    )


def refuse_unhealable(inputs: Inputs, config: HealConfig) -> None:
    """Raises ValueError, before a run cuts anything, for a healing that would be refused when it begins: too few tokens or too
    little text for one step, no conversations, nobody who writes, an objective that does not go with the other options, a
    rank above the width of a map."""
    with quiet_training():
        from shoal.train.heal.arguments import n_processes
        from shoal.train.heal.lora import refuse_wide_rank
        from shoal.train.heal.lora_targets import linear_maps
        from shoal.train.heal.losses import objective_of
        from shoal.train.heal.text_rows import TextRows
        from shoal.train.heal.train import samples_of, steps_of

    objective_of(config, has_teacher=True)
    if TRAINABLE.named(config.method).has_adapters:
        refuse_wide_rank(linear_maps(inputs.view.model, config.targets), config.rank)
    refuse_no_writer(inputs, config, has_teacher=True)
    if config.predict == "answers":  # All of them may be millions, and are read when they are trained on.
        chats_of(inputs, "selection")
        return
    rows = TextRows.of(training_text(inputs, config))
    steps_of(config.settled(samples_of(config, rows), rows.n_tokens / len(rows), n_processes()), rows)


def refuse_no_writer(inputs: Inputs, config: HealConfig, *, has_teacher: bool) -> None:
    """Raises ValueError where the teacher is to write the text and cannot."""
    if config.source != "teacher":
        return
    if not has_teacher:
        raise ValueError("source teacher needs a teacher that writes; give --teacher, or use --source given")
    if inputs.is_streamed:
        raise ValueError("source teacher writes with all layers in memory; give --resident all, or use --source given")


def refuse_apart(config: HealConfig, objective: WeightedSum, opening: Opening) -> None:
    """Raises ValueError for what asks for one device where the layers are on several cards."""
    if not is_spread(opening.device) or len(devices_of(opening.device)) == 1:
        return
    why = {
        "an objective that compares hidden states": "boundary" in objective.needs,
        f"--method {config.method}": TRAINABLE.named(config.method).is_quantised,
        f"--teacher-bits {config.teacher_bits}": config.teacher_bits is not None,
        f"--ranks {config.ranks}": RANKS.named(config.ranks).needs_scores,
        "--processes shard": config.processes == "shard",
    }
    named = [what for what, is_asked in why.items() if is_asked]
    if named:
        raise ValueError(f"{named[0]} runs on one card, and --device {opening.device} names several; leave one of them out")


def cut_of(plan: Plan, student: Path, *, n_teacher_layers: int, opening: Opening = Opening()) -> CutPlace:
    """Where a plan cut its source, as the student's layers lie in it.

    Raises:
        ValueError: the plan is of another teacher, or of a student with another number of layers.
    """
    if plan.n_layers != n_teacher_layers:
        raise ValueError(
            f"the plan cuts a model of {plan.n_layers} layers, the teacher has {n_teacher_layers}; give its own plan"
        )
    n_layers = text_config(read_config(student, trust_remote_code=opening.trust)).num_hidden_layers
    # A replacement that is hosted lives inside the layer before it; any other is a layer of its own, where its span began.
    row = stored(plan.structure)
    if len(row) != n_layers:
        raise ValueError(f"the plan leaves {len(row)} layers, the student has {n_layers}; give the plan that made it")
    return CutPlace.of_structure(row, plan.n_layers)


def refuse_no_student_of(inputs: Inputs, bench: HealBench, *, compares: bool) -> None:
    """Raises ValueError where the student is the teacher and is compared with it, or is deeper and no plan grew it."""
    request, teacher = bench.request, inputs.opened.name
    if request.teacher is None:
        return
    if compares and bench.fingerprint == inputs.opened.fingerprint:
        raise ValueError(
            f"{bench.path} and its teacher {teacher} are the same model, so nothing is there to repair; give the model that it "
            "was made from, or --teacher none to train on text alone"
        )
    ours = text_config(read_config(bench.path, trust_remote_code=bench.opening.trust)).num_hidden_layers
    if ours > inputs.view.n_layers and request.plan is None:
        raise ValueError(
            f"the student {bench.path} has {ours} layers, more than the {inputs.view.n_layers} of its teacher {teacher}; give "
            "them the other way round, or --plan FILE of the growing that made it, or --teacher none"
        )


def refuse_other_words(inputs: Inputs, student: Path) -> None:
    """Raises ValueError where the student does not read the teacher's tokens, or not samples of their length."""
    trust = inputs.opened.opening.trust
    config = text_config(read_config(student, trust_remote_code=trust))
    tokenizer = load_tokenizer(student, trust_remote_code=trust)
    ours, theirs = config.vocab_size, text_config(inputs.view.config).vocab_size
    why = f"it has {ours} tokens, the teacher {theirs}" if ours != theirs else None
    if why is None and tokenizer is not None:  # A student saved without a tokenizer reads with that of the teacher.
        why = other_tokenizer(inputs.opened.need_tokenizer(), tokenizer)
    if why:
        raise ValueError(f"{student} cannot be healed by {inputs.opened.name}: {why}; give the teacher it was made from")
    window = window_of(config)
    if window is not None and inputs.length > window:
        raise ValueError(
            f"samples of {inputs.length} tokens are longer than the student's window; give --length {window} or less"
        )
