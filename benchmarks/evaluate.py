"""Every measure of the command on any models: tasks, stability, speed, the teacher against itself, curves, criteria, report.

    python benchmarks/evaluate.py --model PATH=TEXT ... --task FILE.jsonl ... [--items N] [--of TASK] [--work DIR]

Each is one ``shoal`` command in a process of its own, as a user gives it; the results file has the commands, their seconds and
main figures. ``--of`` is what ``curve --keep`` is told of; a model that has nothing right there is asked for its perplexity
instead, and the file says so. A few sums in the form of GSM8K are added to the tasks; items with an option longer than the
window of a model are left out, and counted. Few items and little text, so that a model takes minutes: read the intervals.
``--work`` keeps the folders, with their reports; a run that was stopped goes on in them. Models that the results file has from
another call stay in it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from choice import fitting  # The module lies beside this file, as the next one does.
from criteria import compare, open_texts

from shoal.engine.open import open_model
from shoal.evaluate.evaluation import Evaluation
from shoal.evaluate.speed import SpeedPhase
from shoal.evaluate.tasks.task_files import load_task
from shoal.run.job import versions, window_of
from shoal.words.records import write_atomically

HERE = Path(__file__).parent
PHASES: tuple[SpeedPhase, SpeedPhase] = ("prefill", "decode")
METHODS, POINTS = "none,refit", 4


class Commands:
    """Runs ``shoal`` in a folder and remembers how long each command took."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: list[dict[str, Any]] = []

    def run(self, *words: object, allowed: Sequence[int] = (0,)) -> Any:
        """What the command prints with ``--json``; None where it ends with another code that is allowed."""
        line = [str(word) for word in words]
        started = time.monotonic()
        found = subprocess.run(
            [sys.executable, "-m", "shoal", *line, "--json"], cwd=self.folder, capture_output=True, text=True, check=False
        )
        last = (found.stderr.strip().splitlines() or [""])[-1]
        if found.returncode not in allowed:
            raise SystemExit(f"shoal {shlex.join(line)} ended with {found.returncode}:\n{found.stderr[-2000:]}")
        said = shlex.join(["shoal", *(Path(word).name if Path(word).is_absolute() else word for word in line)])
        row = {"command": said, "seconds": round(time.monotonic() - started, 1)}
        self.done.append(row if found.returncode == 0 else {**row, "refused": last})
        print(f"{self.done[-1]['seconds']:6.0f} s  {self.done[-1]['command'][:140]}", flush=True)
        return json.loads(found.stdout) if found.returncode == 0 else None


def measure(model: Path, text: Path, tasks: Sequence[Path], *, of: str, fit_tokens: int, work: Path) -> dict[str, Any]:
    shoal = Commands(work)
    own, asked = ("--text", text), [word for task in tasks for word in ("--task", task)]
    run, student = work / "run", work / "run" / "model"
    shoal.run("compress", model, "--drop", "25%", *own, "--fit-tokens", fit_tokens, "--out", "run")
    cut = shoal.run("eval", "run/model", "--teacher", model, *own, *asked)
    (run / "tasks.json").write_text(json.dumps(cut))
    itself = shoal.run("eval", model, "--teacher", model, *own, *asked)
    swept = curves(shoal, model, [*own, "--samples", 32, "--fit-tokens", fit_tokens], tasks, of=of)
    n = len(json.loads((run / "plan.json").read_text())["edits"][0].get("indices", [0]))
    choices = compare(open_texts(str(model), [str(text)], samples=32, length=128), n)
    compared = shoal.run("compare", model, "run", model, *own, *asked[:2])
    pages = [Path(work / shoal.run("report", folder)["report"]) for folder in ("run", "curves")]
    return {
        "model": model.name,
        "text": text.name,
        "parameters": [cut[who]["cost"]["parameters"] for who in ("teacher", "student")],
        "student": figures(cut),
        "teacher_against_itself": figures(itself),
        "curves": swept,
        "criteria": [{key: getattr(one, key) for key in ("criterion", "shape", "layers", "kl")} for one in choices],
        "compare": [
            {
                "name": Path(one["figures"]["name"]).name,
                "bits_per_byte": one["bits_per_byte"],
                "kl": (one["quality"] or {}).get("kl"),
            }
            for one in compared["models"]
        ],
        "report_bytes": [page.stat().st_size for page in pages],
        "card_bytes": (student / "README.md").stat().st_size,
        "commands": shoal.done,
    }


def curves(shoal: Commands, model: Path, words: Sequence[object], tasks: Sequence[Path], *, of: str) -> dict[str, Any]:
    """The curves, told of a task where the teacher has something right, of perplexity elsewhere."""
    wanted = [task for task in tasks if task.stem == of]
    words = ["curve", model, "--out", "curves", "--drop", "0..50%", "--methods", METHODS, "--points", POINTS, *words]
    words += [word for task in wanted for word in ("--task", task)] + ["--keep", "95%", "--of"]
    found = shoal.run(*words, of, allowed=(0, 2)) or shoal.run(*words, "perplexity")
    return {
        "points": [
            {"method": one["method"], "n": one["n_net"], "share": one["share"], "kl": one["quality"]["kl"]}
            for one in found["points"]
        ],
        "cliffs": [{key: one[key] for key in ("method", "of", "found", "why_not")} for one in found["cliffs"]],
        "kept": found["kept"],
    }


def figures(content: dict[str, Any]) -> dict[str, Any]:
    """The figures of an evaluation that people would quote."""
    found = Evaluation.model_validate(content)
    assert found.speed is not None and found.tasks is not None and found.by_position is not None
    rows = []
    for one in found.tasks.tasks:
        stable = one.stability or one.answers
        rows.append(
            {
                "task": one.facts.task,
                "form": one.facts.form,
                "items": one.facts.n_items,
                "truncated": one.facts.n_truncated,
                "at_chance": one.at_chance,
                "teacher": triple(one.teacher),
                "student": triple(one.student),
                "retained": triple(one.retained),
                "stability": [stable.variant, *triple(stable.stability)],
                "option_kl": one.answers.kl and one.answers.kl.value,
                "lost_won_p": [len(one.answers.right_to_wrong), len(one.answers.wrong_to_right), one.answers.p_value],
            }
        )
    return {
        "perplexity": [found.teacher.perplexity.value, found.student.perplexity.value],
        "kl": found.quality.kl,
        "agreement": found.quality.agreement,
        "acceptance": found.by_position.acceptance,
        "retained_average": triple(found.tasks.retained),
        "tasks": rows,
        "speed": {phase: [*triple(found.speed.ratio(phase)), found.speed.bound(phase)] for phase in PHASES},
    }


def triple(found: Any) -> list[float] | None:
    return None if found is None else [found.value, found.low, found.high]


def fitted(model: Path, tasks: Sequence[Path], items: int, folder: Path) -> tuple[list[Path], dict[str, int]]:
    """Task files of the first items that have no option longer than the window, and how many of them were left out."""
    opened = open_model(str(model))
    paths, left_out = [], {}
    for path in tasks:
        task = load_task(path).head(items)
        kept = task if task.form == "generation" else fitting(task, opened.need_tokenizer(), window_of(opened.model.config))
        lines = path.read_text(encoding="utf-8").split("\n")
        paths.append(folder / path.name)
        paths[-1].write_text("".join(lines[item.line - 1] + "\n" for item in kept.items), encoding="utf-8")
        left_out[task.name] = len(task.items) - len(kept.items)
    return paths, left_out


def questions(folder: Path) -> Path:
    """Sums in the form of GSM8K."""
    rows = [
        {"question": f"What is {n} plus {n + 2}?", "answer": f"{n} + {n + 2} = {2 * n + 2}\n#### {2 * n + 2}"}
        for n in range(1, 21)
    ]
    path = folder / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, metavar="PATH=TEXT")
    parser.add_argument("--task", action="append", required=True, type=Path)
    parser.add_argument("--of", default="lambada_openai_test")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--fit-tokens", type=int, default=20_000)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "evaluate.json")
    args = parser.parse_args()
    work = (args.work or Path(tempfile.mkdtemp())).resolve()
    work.mkdir(parents=True, exist_ok=True)
    tasks = [*(path.resolve() for path in args.task), questions(work)]
    rows: dict[str, Any] = {}
    if args.out.exists():
        rows = {one["model"]: one for one in json.loads(args.out.read_text())["models"]}
    for one in args.model:
        model, text = (Path(part).resolve() for part in one.split("="))
        folder = work / model.name
        folder.mkdir(exist_ok=True)
        chosen, left_out = fitted(model, tasks, args.items, folder)
        found = measure(model, text, chosen, of=args.of, fit_tokens=args.fit_tokens, work=folder)
        rows[model.name] = {**found, "most_items": args.items, "items_left_out": left_out, "versions": versions()}
        content = {"threads": torch.get_num_threads(), "models": list(rows.values())}
        write_atomically(args.out, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
