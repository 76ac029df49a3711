"""Students in every engine that is installed: cut, cut and repaired, with sublayers out; of the bundled model and of SmolLM2.

    python benchmarks/prove.py [SMOLLM2-FOLDER] [--engines NAME,NAME] [--work DIR]

`make prove` installs the engines and runs this. Every row is `shoal verify FILE --against MODEL --engine NAME`: the same 96
token ids in the engine and in transformers, and 16 greedy tokens. A row that stands in the results with the same version of
engine and transformers is not run again. Results: benchmarks/results/prove.json.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import transformers

from shoal.export.engines.table import ENGINES
from shoal.export.exporter import Options
from shoal.export.prove import prove
from shoal.export.table import export

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "prove.json"
SHOAL = [sys.executable, "-c", "from shoal.cli import main; main()"]
FOLDERS = ("transformers", "transformers-4", "vllm", "mlx", "onnxruntime-genai", "ctranslate2")
# Per model: the layers of the cut, and the sublayers that go alone (attention here, MLP there).
CUTS = {"books-16l": ("5..6", "attn:5..6,mlp:9"), "smollm2": ("12..18", "attn:12..14,mlp:17..18")}


def shoal(*words: object) -> None:
    """Run the command."""
    ran = subprocess.run([*SHOAL, *map(str, words)], capture_output=True, text=True)
    if ran.returncode:
        sys.exit(ran.stderr)


def students(name: str, model: Path, work: Path) -> dict[str, Path]:
    """The checkpoints of three students."""
    whole, parts = CUTS[name]
    folders = {kind: work / f"{name}-{kind}" for kind in ("cut", "repaired", "sublayers")}
    if not folders["cut"].exists():
        shoal("apply", model, "--layers", whole, "--out", folders["cut"])
    if not (folders["repaired"] / "model").exists():
        few = ("--fit-tokens", 4000, "--no-speed")
        shoal("compress", model, "--layers", whole, "--repair", "refit", *few, "--out", folders["repaired"])
    if not folders["sublayers"].exists():
        shoal("apply", model, "--layers", parts, "--out", folders["sublayers"])
    return {**folders, "repaired": folders["repaired"] / "model"}


def artefacts(folder: Path, kind: str, work: Path) -> list[tuple[str, Path, tuple[str, ...]]]:
    """What is proved of a student: its folder and files, each with the engines that read it."""
    stem = f"{work}/{folder.parent.name if folder.name == 'model' else folder.name}"
    wanted = [("gguf", "f32", Path(f"{stem}-f32.gguf"), ("transformers", "llama.cpp"))]
    wanted += [("gguf", "f16", Path(f"{stem}-f16.gguf"), ("llama.cpp", "openvino"))]
    if kind == "sublayers":
        wanted += [("blocks", "f32", Path(f"{stem}-blocks.gguf"), ("llama.cpp",))]
        wanted += [("blocks", None, Path(f"{stem}-blocks"), ("vllm", "mlx"))]
    made = [("folder", folder, FOLDERS)]
    for form, stored, path, engines in wanted:
        if not path.exists():
            export(form, folder, path, Options(kind=stored))
        made.append((f"{form} {stored or 'folder'}", path, engines))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("smollm2", nargs="?", type=Path, help="folder that make smollm2 writes")
    parser.add_argument("--engines", default=",".join(ENGINES), help="names, with commas")
    parser.add_argument("--work", type=Path, default=ROOT / ".prove" / "students", help="where students are kept")
    given = parser.parse_args()
    os.environ.setdefault("SHOAL_ENGINES", str(ROOT / ".prove"))
    given.work.mkdir(parents=True, exist_ok=True)
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    known = {tuple(row[key] for key in ("model", "student", "artefact", "engine", "version", "transformers")) for row in rows}
    models = {"books-16l": ROOT / "src" / "shoal" / "assets" / "books-16l"}
    if given.smollm2:
        models["smollm2"] = given.smollm2.resolve()
    for name, model in models.items():
        for kind, folder in students(name, model, given.work).items():
            for artefact, path, engines in artefacts(folder, kind, given.work):
                key = (name, kind, artefact)
                here = transformers.__version__
                wanted = [
                    ENGINES[one]
                    for one in engines
                    if one in given.engines.split(",")
                    and ENGINES[one].interpreter()
                    and (*key, one, ENGINES[one].version, here) not in known
                ]
                for proof in prove(path, folder, wanted, trust_remote_code=True) if wanted else ():
                    row = dict(zip(("model", "student", "artefact"), key, strict=True)) | {"transformers": here}
                    row |= proof.model_dump(mode="json", exclude={"uncut"})
                    row |= {"bytes": sum(one.stat().st_size for one in ([path] if path.is_file() else path.iterdir()))}
                    print(
                        f"{name} {kind} {artefact} | {proof.engine} {proof.version}: {proof.verdict}; {proof.found}", flush=True
                    )
                    rows = [
                        one
                        for one in rows
                        if (*(one[k] for k in ("model", "student", "artefact")), one["engine"]) != (*key, proof.engine)
                    ]
                    rows.append(row)
                    order = {one: i for i, one in enumerate(ENGINES)}
                    rows.sort(key=lambda one: (one["model"], one["student"], one["artefact"], order[one["engine"]]))
                    content = {"about": __doc__.split("\n")[0], "command": "make prove", "rows": rows}
                    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
