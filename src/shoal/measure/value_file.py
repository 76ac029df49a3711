"""Values of sets of units in a file: one line of JSON for each set, behind a line that says what the values are of.

A search measures thousands of sets, one call after the other, so values are appended. A process that is killed while it writes
leaves a line without an end; such a line counts for nothing and is cut off before the next one is written.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from shoal.engine.workers import ALONE, Workers
from shoal.words.records import stable_hash
from shoal.words.types import Unit

FORMAT = 1


class ValueFile:
    """Values by set, of one function.

    Args:
        folder: where the file lies; its name holds a hash of ``about``, so functions share a folder.
        about: what the values depend on, as JSON takes it: model, text, metric, seed.
        workers: who measure together; all of them load the same values, and the first one writes.
    """

    def __init__(self, folder: Path, about: Mapping[str, object], *, workers: Workers = ALONE) -> None:
        self._workers = workers
        self.about = {"format": FORMAT, **about}
        self.path = Path(folder) / f"values-{stable_hash(self.about)}.jsonl"
        self._n_bytes = 0  # The number counts whole lines.

    def load(self) -> dict[frozenset[Unit], float]:
        """All values that were written whole; none where there is no file yet.

        Raises:
            ValueError: a line that is no value, or values of another function.
        """
        return self._workers.from_first(self._load)

    def _load(self) -> dict[frozenset[Unit], float]:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        whole = content[: content.rfind(b"\n") + 1]
        self._n_bytes = len(whole)
        lines = whole.splitlines()
        try:
            if lines and json.loads(lines[0]) != json.loads(json.dumps(self.about)):
                raise ValueError("its first line is of another function")
            return dict(_read(line) for line in lines[1:])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path} does not hold values of sets ({error}); remove it, and they are measured again"
            ) from None

    def append(self, values: Mapping[frozenset[Unit], float]) -> None:
        """Write values behind those that are there, all of them on disk when this returns."""
        self._workers.on_first(lambda: self._append(values))

    def _append(self, values: Mapping[frozenset[Unit], float]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [_line(units, value) for units, value in values.items()]
        if not self._n_bytes:
            lines.insert(0, json.dumps(self.about) + "\n")
        content = "".join(lines).encode()
        with open(self.path, "r+b" if self.path.exists() else "x+b") as file:
            file.truncate(self._n_bytes)
            file.seek(self._n_bytes)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self._n_bytes += len(content)


def _line(units: frozenset[Unit], value: float) -> str:
    return json.dumps({"off": [[unit.kind, unit.index] for unit in sorted(units)], "value": value}) + "\n"


def _read(line: bytes) -> tuple[frozenset[Unit], float]:
    found = json.loads(line)
    return frozenset(Unit(kind, index) for kind, index in found["off"]), float(found["value"])
