"""Students in every engine: cut, cut and repaired, with sublayers out; of the bundled model and of SmolLM2.

    python benchmarks/prove.py [SMOLLM2-FOLDER] [--engines NAME,NAME] [--work DIR] [--results FILE] [--page]

`make prove` installs the engines and runs this. Every row is `shoal verify FILE --against MODEL --engine NAME`: the same 96
token ids in the engine and in transformers, and 16 greedy tokens. A row is written as soon as it is there, and one that stands
in the results with the same version of engine and transformers is not run again, unless the engine failed: a run that was
killed goes on where it was. An engine that is not installed gives a row that says why, unless it was proved before. Beside a
file in half precision the uncut model in the same format is run, too: what engines do to it is the noise of the format.
Results: benchmarks/results/prove.json; --page writes their table into docs/serving.md.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from heal_tables import write_between

from shoal.export.engines.table import ENGINES, Engine
from shoal.export.exporter import Options
from shoal.export.proof_record import Proof
from shoal.export.prove import prove
from shoal.export.table import export

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "prove.json"
PAGE = ROOT / "docs" / "serving.md"
BUNDLED = ROOT / "src" / "shoal" / "assets" / "books-16l"
SHOAL = [sys.executable, "-c", "from shoal.cli import main; main()"]
# Per model: the layers of the cut, and the sublayers that go alone (attention here, MLP there).
CUTS = {"books-16l": ("5..6", "attn:5..6,mlp:9"), "smollm2": ("12..18", "attn:12..14,mlp:17..18")}
STUDENTS = ("cut", "repaired", "sublayers")
HALF = "f16"  # Engines multiply such a file's matrices in half precision, so the uncut pair says what that alone does.
KEY = ("model", "student", "artefact", "engine")


@dataclass(frozen=True)
class Artefact:
    """A file or folder of a student: how results name it, the format and the type it is exported in, and who reads it.

    Attributes:
        form: None for the student's checkpoint itself.
        ending: of its name.
    """

    name: str
    form: str | None
    stored: str | None
    ending: str
    engines: tuple[str, ...]


FOLDER = Artefact(
    "folder", None, None, "", ("transformers", "transformers-4", "vllm", "mlx", "onnxruntime-genai", "ctranslate2")
)
WHOLE = (
    FOLDER,
    Artefact("gguf f32", "gguf", "f32", "-f32.gguf", ("transformers", "llama.cpp")),
    Artefact("gguf f16", "gguf", HALF, "-f16.gguf", ("llama.cpp", "openvino")),
)
UNEVEN = (
    *WHOLE,
    Artefact("blocks f32", "blocks", "f32", "-blocks.gguf", ("llama.cpp",)),
    Artefact("blocks folder", "blocks", None, "-blocks", ("vllm", "mlx")),
)


def shoal(*words: object) -> None:
    """Run the command."""
    ran = subprocess.run([*SHOAL, *map(str, words)], capture_output=True, text=True)
    if ran.returncode:
        sys.exit(ran.stderr)


def student(name: str, kind: str, model: Path, work: Path) -> Path:
    """The checkpoint of a student, made where it is not there."""
    whole, parts = CUTS[name]
    folder = work / f"{name}-{kind}"
    if kind == "repaired":
        if not (folder / "model").exists():  # a run that was killed goes on in its folder
            few = ("--fit-tokens", 4000, "--no-speed")
            shoal("compress", model, "--layers", whole, "--repair", "refit", *few, "--out", folder)
        return folder / "model"
    if not folder.exists():
        shoal("apply", model, "--layers", whole if kind == "cut" else parts, "--out", folder)
    return folder


def made(artefact: Artefact, folder: Path, stem: Path) -> Path:
    """The artefact of a student, written where it is not there."""
    if artefact.form is None:
        return folder
    path = stem.with_name(stem.name + artefact.ending)
    if not path.exists():
        export(artefact.form, folder, path, Options(kind=artefact.stored))
    return path


class Rows:
    """The rows of the results, written after every change."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []

    def stands(self, key: tuple[str, ...], engine: Engine) -> bool:
        """Whether a row is there, of this version, that did not fail; any row will do where the engine is not here."""
        row = next((one for one in self.rows if tuple(one[name] for name in KEY) == key), None)
        if row is None or row["version"] is None:
            return False
        if engine.interpreter() is None:
            return True
        same = (row["version"], row["transformers"]) == (engine.version, transformers.__version__)
        return same and not row["verdict"].startswith("fails")

    def put(self, key: tuple[str, ...], path: Path, proof: Proof) -> None:
        row = dict(zip(KEY[:3], key, strict=False)) | {"transformers": transformers.__version__}
        row |= proof.model_dump(mode="json")
        row |= {"bytes": sum(one.stat().st_size for one in ([path] if path.is_file() else path.iterdir()))}
        self.rows = [one for one in self.rows if tuple(one[name] for name in KEY) != key] + [row]
        order = {name: i for i, name in enumerate(ENGINES)}
        self.rows.sort(key=lambda one: (one["model"], one["student"], one["artefact"], order[one["engine"]]))
        content = {"about": (__doc__ or "").split("\n")[0], "command": "make prove", "rows": self.rows}
        half = self._path.with_suffix(".part")
        half.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(half, self._path)


def wanted(models: dict[str, Path], engines: list[str]) -> Iterator[tuple[str, str, Artefact, list[str]]]:
    """Model, student, artefact and engines of every row."""
    for name in models:
        for kind in STUDENTS:
            for artefact in UNEVEN if kind == "sublayers" else WHOLE:
                yield name, kind, artefact, [one for one in artefact.engines if one in engines]


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line per engine and artefact, the models beside each other; then the rows in which a most likely token is another."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    yield "| engine | version | artefact | " + " | ".join(f"{one}: agree | KL at most" for one in models) + " |"
    yield "|---|---|---|" + "---:|---:|" * len(models)
    groups = dict.fromkeys((row["engine"], row["artefact"]) for row in rows)
    order = {name: i for i, name in enumerate(ENGINES)}
    for engine, artefact in sorted(groups, key=lambda one: (order[one[0]], one[1])):
        same = [row for row in rows if (row["engine"], row["artefact"]) == (engine, artefact)]
        cells = []
        for model in models:
            here = [row for row in same if row["model"] == model]
            found = [row["found"]["kl"] for row in here if row["found"]]
            agree = sum(row["verdict"] == "agrees" for row in here)
            most = "" if not found else f"{max(found):.0e}" if max(found) else "0"
            cells.append(f"{agree} of {len(here)} | {most}")
        versions = ", ".join(dict.fromkeys(row["version"] or "not here" for row in same))
        yield f"| {engine} | {versions} | {artefact} | " + " | ".join(cells) + " |"
    yield ""
    for row in rows:
        if row["found"] and row["found"]["same_top"] < 1.0:
            lost, floor = row["found"].get("lead_lost"), (row["uncut"] or {}).get("lead_moved")
            said = f"a lead of {lost:.1e} nats is lost" if lost is not None else "leads were not measured"
            uncut = f", the uncut file moves leads by {floor:.1e}" if floor is not None else ""
            yield f"{row['model']}, {row['student']}, {row['artefact']} in {row['engine']}: {said}{uncut}; {row['verdict']}."


def main() -> int:
    """Run what is missing; 1 where an engine says something else, with a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("smollm2", nargs="?", type=Path, help="folder that make smollm2 writes")
    parser.add_argument("--engines", default=",".join(ENGINES), help="names, with commas")
    parser.add_argument("--work", type=Path, default=ROOT / ".prove" / "students", help="where students are kept")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where rows are kept")
    parser.add_argument("--page", action="store_true", help="write the table of the rows, run nothing")
    given = parser.parse_args()
    if given.page:
        write_between(PAGE, "prove", list(table(Rows(given.results).rows)))
        return 0
    os.environ.setdefault("SHOAL_ENGINES", str(ROOT / ".prove"))
    given.work.mkdir(parents=True, exist_ok=True)
    rows, models = Rows(given.results), {"books-16l": BUNDLED}
    if given.smollm2:
        models["smollm2"] = given.smollm2.resolve()
    engines, n_run = [ENGINES.named(name).name for name in given.engines.split(",")], 0
    for name, kind, artefact, readers in wanted(models, engines):
        keys = {one: (name, kind, artefact.name, one) for one in readers}
        missing = [ENGINES[one] for one in readers if not rows.stands(keys[one], ENGINES[one])]
        if not missing:
            continue
        folder = student(name, kind, models[name], given.work)
        path = made(artefact, folder, given.work / f"{name}-{kind}")
        uncut = made(artefact, models[name], given.work / f"{name}-uncut") if artefact.stored == HALF else None
        for proof in prove(path, folder, missing, uncut=uncut, trust_remote_code=True):
            rows.put(keys[proof.engine], path, proof)
            n_run += proof.version is not None
            found = f"; {proof.found}" if proof.found else ""
            engine = f"{proof.engine} {proof.version}" if proof.version else proof.engine
            print(f"{name} {kind} {artefact.name} | {engine}: {proof.verdict}{found}", flush=True)
    wrong = [one for one in rows.rows if one["verdict"].startswith(("differs", "fails"))]
    print(f"{len(rows.rows)} rows: {n_run} run now, {len(wrong)} wrong; {given.results}")
    for engine in (ENGINES[one] for one in engines):
        theirs = [one for one in rows.rows if one["engine"] == engine.name]
        if theirs and engine.interpreter() is None:
            n_earlier = sum(one["version"] is not None for one in theirs)
            print(f"{engine.name}: not proved here ({n_earlier} of {len(theirs)} rows are of an earlier run): {engine.missing}")
    for one in wrong:
        print(" ".join(one[name] for name in KEY), one["verdict"], file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
