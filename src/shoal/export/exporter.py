"""What an export format is: a refusal, a writer and a check, under a name. A new one is one file and one line of the table."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal.edits.plan import Plan
from shoal.engine.hub import fetched, is_hub_id
from shoal.engine.source import needs_code, refuse_wrong_types
from shoal.export.found_plan import found_plan
from shoal.words.reading import read_json
from shoal.words.structure import Structure, intact, stored

TRAINED = "it was trained after its layers were removed, and a list of layers cannot say that; export it as gguf or hf"
UNPLANNED = (
    "nothing says which layers of which model it has: no plan.json beside it; give the run folder, or write it beside its "
    "plan: shoal plan MODEL --layers LIST --out DIR, then shoal apply DIR/plan.json --out DIR/model"
)


@dataclass(frozen=True)
class StudentFolder:
    """A student as it lies on disk.

    Attributes:
        folder: its checkpoint.
        config: what its config.json states, with every default.
        plan: how it came about, where its run is known.
        is_trained: its values were trained after what the plan says.
        trusts_code: code that comes with it may run.
    """

    folder: Path
    config: dict[str, Any]
    plan: Plan | None
    is_trained: bool = False
    trusts_code: bool = False

    @property
    def name(self) -> str:
        """What to call it: the model it was cut from and its number of layers, or its folder."""
        if self.plan is None:
            return self.folder.resolve().name
        return f"{Path(self.plan.source).name}, {self.plan.n_layers_after} layers"

    @property
    def untrusted(self) -> str | None:
        """Why nothing can be said of it without running code that came with it and is not trusted, or None."""
        if needs_code(self.config) and not self.trusts_code:
            return "the student comes with code of its own; read it, then pass --trust-remote-code"
        return None

    @property
    def code(self) -> str | None:
        """Why it is not one of the models that other engines know, or None."""
        if "modeling_shoal" in str(self.config.get("auto_map")):
            return "it holds modules that come as code, which no other engine runs; --replace layer, or a repair, needs none"
        return self.untrusted

    @property
    def structure(self) -> Structure | None:
        """Its layers as layers of its source; None where nothing says so."""
        return None if self.plan is None else stored(self.plan.structure)


@dataclass(frozen=True)
class Options:
    """What formats may be told.

    Attributes:
        like: a GGUF file of the teacher, whose metadata, tokenizer and untouched tensors are taken.
        kind: block format of written matrices, e.g. ``q8_0``, or the type of plain ones.
    """

    like: Path | None = None
    kind: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: file or folder; None for a format that is a line of text.
        text: that line, or a summary.
        notes: what the one who serves it must know.
        checked: what was proved of it here, for JSON.
    """

    path: Path | None
    text: str
    notes: tuple[str, ...] = ()
    checked: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Exporter:
    """One format.

    Attributes:
        about: one line for the help.
        extra: what must be installed beyond the core: ``pip install 'shoal[extra]'``; empty for nothing.
        refuses: why a student cannot be exported so, or None.
        write: student, target, options to what was written. A target of None is allowed where ``needs_target`` is False.
        verify: what was written and the student to facts about it; raises ValueError where it is not the student.
        takes: options of :class:`Options` that have a meaning here.
        writes_folder: whether it writes a folder under a name, and not a file.
    """

    name: str
    about: str
    refuses: Callable[[StudentFolder, Options], str | None]
    write: Callable[[StudentFolder, Path | None, Options], Exported]
    verify: Callable[[StudentFolder, Exported], dict[str, Any]]
    extra: str = ""
    takes: frozenset[str] = frozenset()
    needs_target: bool = True
    writes_folder: Callable[[Path], bool] = lambda out: False


def cut_alone(student: StudentFolder) -> str:
    """How to have a changed student's cut as it was chosen, as the end of a refusal; empty where no whole layers are gone."""
    plan = student.plan
    if plan is None or not plan.removed_layers or any(slot.off or slot.is_inserted for slot in plan.structure):
        return ""
    gone = ",".join(map(str, plan.removed_layers))
    made = f"shoal plan {shlex.quote(plan.source)} --layers {gone} --out CUT, then shoal apply CUT/plan.json --out CUT/model"
    return f"; its cut alone: {made}"


def find_student(path: Path, *, trust_remote_code: bool = False) -> StudentFolder:
    """A student from a run folder, its ``model`` folder, any checkpoint folder, or a hub id.

    Args:
        trust_remote_code: code that comes with it may run to say what its config states.
    Raises:
        ValueError: none of these; a plan that cannot be read; a hub id that cannot be fetched.
    """
    path = Path(path)
    if not path.exists() and len(path.parts) == 2 and is_hub_id(str(path)) and not path.parent.exists():
        path = fetched(str(path), trust_remote_code=trust_remote_code)
    folder = path if (path / "config.json").is_file() else path / "model"
    if path.is_file() and path.suffix == ".gguf":
        raise ValueError(f"{path} is a GGUF file already; `shoal cut {path} --layers ... --out FILE` takes layers out of it")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{path} is no checkpoint folder and no run folder with a model in it; shoal compress writes one")
    from shoal.engine.model_config import read_config

    plan, is_trained = found_plan(folder)
    config = read_json(folder / "config.json")
    refuse_wrong_types(config, str(folder))
    if trust_remote_code or not needs_code(config):
        stated = read_config(folder, trust_remote_code=trust_remote_code).to_dict()  # The config states every default.
        config = {**stated, **{key: config[key] for key in ("auto_map",) if key in config}}
    return StudentFolder(folder, config, plan, is_trained, trust_remote_code)


def source_layers(student: StudentFolder, n_student: int, n_teacher: int, what: str) -> list[int]:
    """Which layer of the teacher each layer of a student behaves like.

    Raises:
        ValueError: the student has other layers than the teacher and no plan says which.
    """
    structure = student.structure if student.structure is not None else intact(n_teacher)
    if len(structure) != n_student or student.plan is not None and student.plan.n_layers != n_teacher:
        unsaid = "its plan does not say" if student.plan is not None else "no plan.json beside it says"
        raise ValueError(
            f"{student.folder} has {n_student} layers, {what} {n_teacher}, and {unsaid} which are which; "
            "give the run folder of a student that was cut from this teacher"
            + (
                f"; a cut alone of a GGUF file needs no student: shoal cut {what} --layers ..."
                if what.endswith(".gguf")
                else ""
            )
        )
    return [slot.like for slot in structure]
