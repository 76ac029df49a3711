"""A file proved in an engine: the same token ids go into the engine and into transformers, and what comes out is compared."""

import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from shoal.engine.gguf_head import block_sizes
from shoal.engine.source import needs_code
from shoal.export.agreement import AWKWARD, Agreement, compare, verdict
from shoal.export.engines.table import ENGINES, HERE, Engine
from shoal.export.gguf.file_parts import open_model
from shoal.export.proof_record import Proof
from shoal.words.progress import each
from shoal.words.reading import read_json, reason_of

N_TOKENS, N_GREEDY = 96, 16
EXACT = ("F32", "F16", "BF16")  # These formats hold the values of a student as they are, but for rounding that no limit sees.
ERROR = re.compile(r"^(\w+\.)*\w*(Error|Exception)\b: ")


def prove(
    file: Path,
    against: Path,
    engines: Sequence[Engine],
    *,
    uncut: Path | None = None,
    text: str | None = None,
    trust_remote_code: bool = False,
) -> Iterator[Proof]:
    """Run a file in engines and compare each with transformers on ``against``; a proof comes as soon as it is there.

    Args:
        file: GGUF file or checkpoint folder.
        against: checkpoint folder or GGUF file of the same student; a file is unpacked.
        engines: those that read such a file; one that is not installed gives a proof that says so.
        uncut: GGUF file of the teacher in the same blocks: the engine against transformers on it is the noise of the format.
        text: what the token ids are of; None: the bundled sample.
        trust_remote_code: code that comes with either folder may run; without it such a folder is refused.
    Raises:
        ValueError: no such file, one that comes with code, one that transformers cannot run, or another model.
    """
    file, against = checked(file), checked(against)
    for path in () if trust_remote_code else (file, against):
        if path.is_dir() and needs_code(read_json(path / "config.json")):
            raise ValueError(f"{path} comes with code of its own; read it, then pass --trust-remote-code")
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        rig = _Rig(Path(folder), text if text is not None else _sample(), trust_remote_code)
        exact = is_exact(file) and is_exact(against)
        for engine in each("run both in each engine", engines):
            interpreter = engine.interpreter()
            if interpreter is None:
                yield Proof(engine=engine.name, verdict=f"not proved here: {engine.missing}")
                continue
            try:
                found, version = rig.agreement(engine, interpreter, file, against)
                floor = None if uncut is None else rig.agreement(engine, interpreter, checked(uncut), checked(uncut))[0]
            except EngineError as error:
                yield Proof(engine=engine.name, verdict=f"fails: {error.why}", version=engine.version)
                continue
            said = verdict(found, is_exact=exact, floor=floor)
            yield Proof(engine=engine.name, verdict=said, version=version, found=found, uncut=floor)


def engines_for(file: Path) -> list[Engine]:
    """The engines that read such a file or folder, installed or not."""
    kind = "file" if Path(file).is_file() else "folder"
    return [one for one in ENGINES.values() if kind in one.reads]


def checked(path: Path) -> Path:
    """The file or folder that is meant: of a run folder its model.

    Raises:
        ValueError: neither a GGUF file nor a checkpoint folder.
    """
    path = Path(path)
    if path.is_file():
        open_model(path)
    elif (path / "model" / "config.json").is_file():
        path = path / "model"
    elif not (path / "config.json").is_file():
        raise ValueError(f"{path} is neither a GGUF file nor a checkpoint folder; give one of them")
    return path.absolute()


def is_exact(path: Path) -> bool:
    """Whether a model is stored without quantisation."""
    if path.is_dir():
        return not read_json(path / "config.json").get("quantization_config")
    kinds = block_sizes()
    return all(kinds[one.place.kind][0] in EXACT for one in open_model(path).tensors)


class EngineError(ValueError):
    """An engine does not run what it was given. ``why``: what it said."""

    def __init__(self, path: str, engine: str, why: str) -> None:
        super().__init__(f"{path} cannot be run by {engine}: {why}")
        self.why = why


class _Rig:
    """Runs requests; what transformers says of a reference is asked once."""

    def __init__(self, folder: Path, text: str, trust: bool) -> None:
        self._folder, self._text, self._trust = folder, text, trust
        self._known: dict[Path, tuple[np.ndarray[Any, Any], dict[str, Any]]] = {}

    def agreement(self, engine: Engine, interpreter: str, file: Path, against: Path) -> tuple[Agreement, str]:
        logprobs, said = self._reference(against)
        n = len(said["ids"])
        positions = sorted({int(one) for one in np.linspace(min(2, n - 1), n - 1, engine.n_positions)})
        request = {"path": str(file), "ids": said["ids"], "positions": positions, "n_vocab": logprobs.shape[1]}
        texts = list(AWKWARD) if said["tokens"] is not None else []
        found, theirs = self._ask(interpreter, engine.script, {**request, "n_greedy": N_GREEDY, "texts": texts})
        if found.shape[1] != logprobs.shape[1]:
            raise ValueError(f"{file} has {found.shape[1]} tokens, {against} has {logprobs.shape[1]}; these are not one model")
        return compare(logprobs[positions], found, said, theirs), str(theirs["version"])

    def _reference(self, path: Path) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
        if path not in self._known:
            request = {"path": str(path), "ids": None, "text": self._text, "n_tokens": N_TOKENS, "n_greedy": N_GREEDY}
            asked = {**request, "positions": list(range(N_TOKENS)), "texts": list(AWKWARD)}
            try:
                self._known[path] = self._ask(sys.executable, ENGINES["transformers"].script, asked)
            except EngineError as error:  # Without a reference nothing is proved in any engine.
                raise ValueError(str(error)) from None
        return self._known[path]

    def _ask(self, interpreter: str, script: str, request: dict[str, Any]) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
        asked, reply = self._folder / "request.json", self._folder / "reply.npz"
        asked.write_text(json.dumps({**request, "trust_remote_code": self._trust}), encoding="utf-8")
        reply.unlink(missing_ok=True)
        words = [interpreter, str(HERE / script), str(asked), str(reply)]
        ran = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=_environment(interpreter))
        if ran.returncode != 0 or not reply.is_file():
            engine = script.removeprefix("run_").removesuffix(".py")
            raise EngineError(request["path"], engine, _why(ran.stderr, ran.returncode))
        with np.load(reply) as content:
            return content["logprobs"], json.loads(str(content["said"]))


def _environment(interpreter: str) -> dict[str, str]:
    """Of an engine's process: nothing is fetched, and an environment of its own sees no packages of this one."""
    own = {} if interpreter == sys.executable else {"PYTHONPATH": ""}
    return {**os.environ, **own, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def _why(said: str, code: int) -> str:
    """The line of an engine's error output that names the error, else the last one."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or [f"it ended with code {code}"]
    named = [line for line in lines if ERROR.match(line)]
    return reason_of(Exception((named or lines)[-1]))


def _sample() -> str:
    packed = resources.files("shoal") / "assets" / "sample.txt.gz"
    with packed.open("rb") as raw, gzip.open(raw) as file:
        return file.read(8000).decode("utf-8", "ignore")
