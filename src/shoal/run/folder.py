"""The run folder: which stages are done, under which inputs, so that a run killed anywhere goes on from its last file.

``run.json`` maps every finished stage to the hash of its inputs. A stage whose hash is unchanged is read back; one whose
hash differs would overwrite a result and needs the caller's word. Files are written atomically, then the stage is recorded.
"""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.engine.workers import ALONE, Workers
from shoal.run.asked import AskedFor, differences
from shoal.run.lock import hold
from shoal.words.reading import at_home, inside
from shoal.words.records import Record, stable_hash

RECORD = "run.json"
CHOSEN = "plan.json"
"""The cut as it was chosen."""
NOT_HEALED = "not_healed.txt"
"""Why an optional healing was left out, or has failed."""
BEGUN = {RECORD, NOT_HEALED, "recipe.yaml", "heal.request.json"}
"""What a run writes before its first stage; a folder that holds no more is no loss."""


def checkpoint_of(name: str) -> str:
    """``DIR/model`` of a run folder, anything else as it is."""
    folder = at_home(Path(name))
    model = folder / "model"
    return str(model) if (model / "config.json").is_file() and not (folder / "config.json").is_file() else name


class StageRecord(Record):
    """One finished stage: hash of its inputs, wall seconds, and the files it left (relative to the folder).

    ``asked`` is the name, among those of the run record, of what was asked for then.
    """

    key: str
    seconds: float
    files: tuple[str, ...] = ()
    asked: str = ""


class RunRecord(Record):
    """``run.json``: what was run, with which versions, which stages are done, and what they were asked for, for people."""

    program: str = "shoal"
    version: str
    command: str = ""
    versions: dict[str, str] = {}
    n_workers: int = 1
    stages: dict[str, StageRecord] = {}
    asked: dict[str, dict[str, str]] = {}


class OtherRun(ValueError):
    """A folder holds work of other inputs, and nothing was said of replacing it."""


class RunFolder:
    """A folder that belongs to one run.

    Args:
        path: new, empty, or left by an earlier run.
        version, command, versions: written into ``run.json``.
        overwrite: finished stages with other inputs may be replaced.
        asked: what the job is asked for; empty until that is known.
        workers: the processes of the job; the first alone touches the folder, all of them learn what is done.
    Raises:
        ValueError: the folder holds files that no run of ours left, is a file, or is in use by another process.
    """

    def __init__(
        self,
        path: Path,
        *,
        version: str,
        command: str = "",
        versions: dict[str, str] | None = None,
        overwrite: bool = False,
        workers: Workers = ALONE,
    ) -> None:
        self.path = Path(path)
        self.overwrite = overwrite
        self.workers = workers
        self.asked: AskedFor = {}
        self._is_new = not self.path.exists()
        stages, asked = workers.from_first(self._take)
        self.record = RunRecord(
            version=version, command=command, versions=versions or {}, n_workers=workers.size, stages=stages, asked=asked
        )
        if (
            workers.is_first and not (self.path / RECORD).exists()
        ):  # Otherwise the record is written when a stage is done: a refused run leaves it as it was.
            self._save()

    def _take(self) -> tuple[dict[str, StageRecord], dict[str, dict[str, str]]]:
        """Lock the folder for this job; the stages that stand in it, and what they were asked for."""
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"--out {self.path} is a file; give a new or empty folder")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
            # A file is in the way, or the place takes no folder.
            raise ValueError(
                f"--out {self.path} cannot be made ({error.strerror}); give a folder in a place that can hold it"
            ) from None
        hold(self.path)
        if (self.path / RECORD).exists():
            stands = RunRecord.load(self.path / RECORD)
            for name in [file for stage in stands.stages.values() for file in stage.files] + ["model"]:
                self._inside(name)
            return stands.stages, stands.asked
        if any(p for p in self.path.iterdir() if not p.name.startswith(f".{RECORD}.")):
            raise ValueError(f"--out {self.path} is not empty and was not written by shoal; give a new or empty folder")
        return {}, {}

    @contextmanager
    def unless_refused(self) -> Iterator[None]:
        """Work that may be refused: a folder that was made for this run and holds nothing of it yet then goes again."""
        try:
            yield
        except (ValueError, ImportError):
            if self._is_new and self.workers.is_first and not self.record.stages:
                held = [path.name for path in self.path.iterdir()] if self.path.is_dir() else []
                if set(held) <= BEGUN:
                    shutil.rmtree(self.path, ignore_errors=True)
            raise

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def is_done(self, stage: str, key: str) -> bool:
        """True when the stage stands with these inputs and all of its files.

        Raises:
            OtherRun: it stands with other inputs and ``overwrite`` was not given.
        """
        done = self.record.stages.get(stage)
        if done is None:
            return False
        if self.workers.from_first(lambda: self._has_key(stage, done, key)):
            return self.workers.from_first(lambda: all(self._inside(file).exists() for file in done.files))
        self.forget([stage])
        return False

    def _has_key(self, stage: str, done: StageRecord, key: str) -> bool:
        if done.key != key and not self.overwrite:
            raise OtherRun(
                f"{self.path} holds the stage {stage!r} of a run with other options, model or text"
                f"{self.otherwise(stage)}; add --overwrite to replace it (unchanged stages are kept; in Python "
                "overwrite=True), or give another --out"
            )
        return done.key == key

    def otherwise(self, stage: str = "") -> str:
        """What this job is asked for otherwise than a stage was, or the last one that is done; empty where nobody knows."""
        done = self.record.stages.get(stage) or next(reversed(self.record.stages.values()), None)
        before = self.record.asked.get(done.asked) if done else None
        if not before or not self.asked:
            return ""
        return f" ({differences(before, self.asked) or 'the same options, so what a file holds has changed'})"

    def finish(self, stage: str, key: str, *, seconds: float, files: Iterable[str]) -> None:
        """Record a stage whose files are all in place; every worker comes here, and goes on when it is recorded.

        What the stage freed goes back to the system.
        """
        name = stable_hash(self.asked) if self.asked else ""
        entry = StageRecord(key=key, seconds=round(seconds, 3), files=tuple(files), asked=name)
        stages = {**self.record.stages, stage: entry}
        known = {**self.record.asked, name: dict(self.asked)}
        asked = {one.asked: known[one.asked] for one in stages.values() if one.asked in known and one.asked}
        self.record = self.record.model_copy(update={"stages": stages, "asked": asked})
        self.workers.on_first(self._save)
        from shoal.engine.streamed import return_freed_memory  # A stage has loaded torch; reading a folder has not.

        return_freed_memory()  # The peak of a stage would otherwise stay for all stages after it.

    def forget(self, stages: Iterable[str]) -> None:
        """Drop stages from the record, then their files: a crash in between leaves files that are simply written again."""
        gone = {stage: self.record.stages[stage] for stage in stages if stage in self.record.stages}
        kept = {name: entry for name, entry in self.record.stages.items() if name not in gone}
        self.record = self.record.model_copy(update={"stages": kept})
        self.workers.on_first(lambda: self._remove(gone.values()))

    def _remove(self, gone: Iterable[StageRecord]) -> None:
        self._save()
        for entry in gone:
            for file in entry.files:
                self.remove(file)

    def remove(self, name: str) -> None:
        """Delete a file or folder of this run, if it is there.

        Raises:
            ValueError: it is not inside the run folder, or stands there as a link.
        """
        target = self._inside(name)
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)

    def _inside(self, name: str) -> Path:
        return inside(self.path, name, str(self.path / RECORD))

    def _save(self) -> None:
        self.record.save(self.path / RECORD)
