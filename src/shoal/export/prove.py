"""A file proved in an engine: the same token ids go into the engine and into transformers, and what comes out is compared."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from shoal.engine.gguf_head import block_sizes
from shoal.export.agreement import AWKWARD, Agreement, compare, verdict
from shoal.export.engines.table import ENGINES, HERE, Engine
from shoal.export.gguf.file_parts import open_model
from shoal.words.reading import read_json, reason_of
from shoal.words.records import write_atomically

N_TOKENS, N_GREEDY = 96, 16
EXACT = ("F32", "F16", "BF16")  # formats that hold a student's values as they are, but for rounding that no limit sees
RECORD = ".verification.json"


@dataclass(frozen=True)
class Proof:
    """What one engine made of a file.

    Attributes:
        version: of the engine; None where it was not there.
        found, floor: agreement of the file with its reference, and of the uncut pair.
        verdict: ``agrees``, ``differs: why``, ``not judged: why`` or ``not proved here: how to``.
    """

    engine: str
    verdict: str
    version: str | None = None
    found: Agreement | None = None
    floor: Agreement | None = None

    @property
    def is_wrong(self) -> bool:
        return self.verdict.startswith("differs")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found, floor = (None if one is None else one.to_dict() for one in (self.found, self.floor))
        return {"engine": self.engine, "verdict": self.verdict, "version": self.version, "found": found, "uncut": floor}


def prove(
    file: Path, against: Path, engines: Sequence[Engine], *, uncut: Path | None = None, text: str | None = None
) -> list[Proof]:
    """Run a file in engines and compare each with transformers on ``against``.

    Args:
        file: GGUF file or checkpoint folder.
        against: checkpoint folder or GGUF file of the same student; a file is unpacked.
        engines: those that read such a file; one that is not installed gives a proof that says so.
        uncut: GGUF file of the teacher in the same blocks: the engine against transformers on it is the noise of the format.
        text: what the token ids are of; None: the bundled sample.
    Raises:
        ValueError: no such file, or one that transformers or an engine cannot run.
    """
    file, against = checked(file), checked(against)
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        rig = _Rig(Path(folder), text if text is not None else _sample())
        exact = is_exact(file) and is_exact(against)
        proofs = []
        for engine in engines:
            interpreter = engine.interpreter()
            if interpreter is None:
                proofs.append(Proof(engine.name, f"not proved here: {engine.install}"))
                continue
            found, version = rig.agreement(engine, interpreter, file, against)
            floor = None if uncut is None else rig.agreement(engine, interpreter, checked(uncut), checked(uncut))[0]
            proofs.append(Proof(engine.name, verdict(found, is_exact=exact, floor=floor), version, found, floor))
    return proofs


def engines_for(file: Path) -> list[Engine]:
    """The engines that read such a file or folder, installed or not."""
    kind = "file" if Path(file).is_file() else "folder"
    return [one for one in ENGINES.values() if kind in one.reads]


def checked(path: Path) -> Path:
    """Raises ValueError for a path that is neither a GGUF file nor a checkpoint folder."""
    path = Path(path)
    if path.is_file():
        open_model(path)
    elif not (path / "config.json").is_file():
        raise ValueError(f"{path} is neither a GGUF file nor a checkpoint folder; give one of them")
    return path.absolute()


def is_exact(path: Path) -> bool:
    """Whether a model is stored without quantisation."""
    if path.is_dir():
        return not read_json(path / "config.json").get("quantization_config")
    kinds = block_sizes()
    return all(kinds[one.place.kind][0] in EXACT for one in open_model(path).tensors)


def record(file: Path, against: Path, proofs: Sequence[Proof]) -> Path:
    """Write what was proved beside the file; proofs of other engines that are there stay.

    Returns: the path of the record, ``FILE.verification.json``.
    """
    file = Path(file)
    path = file.with_name(file.name + RECORD)
    known = read_json(path).get("engines", {}) if path.is_file() else {}
    known |= {one.engine: one.to_dict() for one in proofs if one.version is not None}
    size = file.stat().st_size if file.is_file() else sum(one.stat().st_size for one in file.glob("*.safetensors"))
    content = {"file": file.name, "bytes": size, "against": Path(against).name, "engines": known}
    write_atomically(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    return path


class _Rig:
    """Runs requests; what transformers says of a reference is asked once."""

    def __init__(self, folder: Path, text: str) -> None:
        self._folder, self._text = folder, text
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
            self._known[path] = self._ask(sys.executable, ENGINES["transformers"].script, asked)
        return self._known[path]

    def _ask(self, interpreter: str, script: str, request: dict[str, Any]) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
        asked, reply = self._folder / "request.json", self._folder / "reply.npz"
        asked.write_text(json.dumps(request), encoding="utf-8")
        reply.unlink(missing_ok=True)
        ran = subprocess.run([interpreter, str(HERE / script), str(asked), str(reply)], capture_output=True, text=True)
        if ran.returncode != 0 or not reply.is_file():
            lines = ran.stderr.strip().splitlines() or [f"it ended with code {ran.returncode}"]
            why, engine = reason_of(Exception(lines[-1])), script.removeprefix("run_").removesuffix(".py")
            raise ValueError(f"{request['path']} cannot be run by {engine}: {why}")
        with np.load(reply) as content:
            return content["logprobs"], json.loads(str(content["said"]))


def _sample() -> str:
    packed = resources.files("shoal") / "assets" / "sample.txt.gz"
    with packed.open("rb") as raw, gzip.open(raw) as file:
        return file.read(8000).decode("utf-8", "ignore")
