"""What a model's own chats are worth: a chat model cut, repaired and healed on books alone, and on books with chats of its own.

    python benchmarks/chats.py smollm2 --books books.txt --other other.txt --work DIR

Every student comes from the command line alone: ``shoal write --chats`` once, then ``shoal compress --effort low`` and ``shoal
heal`` at two shares of the layers. Measured: short questions with exact answers (``instructions.jsonl``), five answers to read,
and KL to the teacher on other books and on chats that nothing was fitted to. Resumable: every row is in ``--out`` as soon as it
is known, and a killed command goes on. Minutes are processor minutes of this process's children.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from smollm2_answers import PROMPTS, answers, is_right
from smollm2_bench import Bench

OUT = Path(__file__).parent / "results" / "chats.json"
N_CHATS, CHAT_LENGTH, TEMPERATURE = 220, 384, 0.8
SHARES = ("10 %", "25 %")
CHAT_SHARE = 0.3  # Of the characters: so many chats give a tenth of such a text to the slice that decides.
HEALED_TOKENS, HEALED_LENGTH = 24_576, 256
NEW_TOKENS = 60
STUDENTS = ("plain cut", "books", "chats", "chats, healed")
"""By the text that repairs; the first is the cut of the second, unrepaired."""


class Chats:
    """The chats, and the run folders of every student, each made when it is first asked for."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.bench = Bench(SimpleNamespace(model=options.model), {})

    @cached_property
    def text(self) -> Path:
        """The chats as a file."""
        out = self.options.work / "own.jsonl"
        if not out.exists():
            asked = ["--n", N_CHATS, "--length", CHAT_LENGTH, "--temperature", TEMPERATURE, "--out", out]
            self.shoal("write", self.options.model, "--chats", *asked)
        return out

    def run(self, share: str, student: str) -> Path:
        """The folder of a run; its ``model`` is the student."""
        healed = student.endswith(", healed")
        kind = student.removesuffix(", healed")
        out = self.options.work / "-".join([kind, share[:2], *(["healed"] if healed else [])])
        text = str(self.options.books) if kind == "books" else f"{CHAT_SHARE}*{self.text}+{1 - CHAT_SHARE}*{self.options.books}"
        if healed:
            asked = ["--method", "lora", "--tokens", HEALED_TOKENS, "--length", HEALED_LENGTH, "--batch", 2, "--micro-batch", 2]
            self.once(out, "heal", self.run(share, kind), *asked, "--text", text)
        else:
            asked = ["--drop", share.replace(" %", "%layers"), "--effort", "low", "--no-speed", "--text", text]
            self.once(out, "compress", self.options.model, *asked)
        return out

    def once(self, out: Path, *command: object) -> None:
        """A command whose folder is not finished, and the minutes that it took beside it."""
        minutes = out.with_suffix(".minutes")
        if not minutes.exists():
            taken = self.shoal(*command, "--out", out)
            minutes.write_text(f"{taken:.1f}")

    def shoal(self, *command: object) -> float:
        """Run it; processor minutes."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "shoal", *map(str, command)], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 60

    def view(self, share: str, student: str) -> Any:
        from shoal.engine.open import open_model
        from shoal.engine.view import DecoderView

        if student == "plain cut":
            from shoal.edits.plan import Plan
            from shoal.run.run_files import plan_file

            return self.bench.plain(Plan.load(plan_file(self.run(share, "books"))).removed_layers)
        return DecoderView(open_model(str(self.run(share, student) / "model")).model)

    def row(self, share: str, student: str) -> dict[str, Any]:
        """Everything that is measured of a student."""
        from shoal.engine.student import TEACHER

        made = TEACHER if student == "teacher" else self.view(share, student)
        asked = [json.loads(line) for line in (Path(__file__).parent / "instructions.jsonl").read_text().splitlines()]
        said = answers(self.bench, made, [one["prompt"] for one in asked], 16)
        found: dict[str, Any] = {
            "right": sum(is_right(text, one["answers"]) for text, one in zip(said, asked, strict=True)),
            "of": len(asked),
            "answers": dict(zip(PROMPTS, answers(self.bench, made, PROMPTS, NEW_TOKENS), strict=True)),
        }
        if student in ("teacher", "plain cut"):
            return found
        minutes = [self.run(share, student).with_suffix(".minutes")]
        if student.endswith(", healed"):
            minutes.append(self.run(share, student.removesuffix(", healed")).with_suffix(".minutes"))
        found["minutes"] = sum(float(one.read_text()) for one in minutes)
        found |= {"kl_books": self.kl(made, self.options.other), "kl_chats": self.kl(made, self.text)}
        return found

    def kl(self, student: Any, text: Path) -> dict[str, float]:
        """KL per token to the teacher on the ``evaluation`` slice of a text, and its standard error."""
        from shoal.evaluate.evaluation import closeness
        from shoal.text.corpus import open_corpus

        corpus = open_corpus(text, self.bench.opened.need_tokenizer(), seed=0)
        samples = corpus.samples("evaluation", n=16, length=256)
        quality = closeness(self.bench.view, student, samples.batches(8)).quality
        return {"kl": quality.kl, "stderr": quality.kl_stderr, "tokens": quality.n_tokens}


def tables(results: dict[str, Any]) -> str:
    """Markdown: the figures, then what every student of the smaller share says."""
    lines = ["| layers out | text of repair | right of 60 | KL, chats | KL, other books | processor minutes |"]
    lines += ["|---|---|---:|---:|---:|---:|"]
    for name, row in results.items():
        share, student = ("", "teacher") if name == "teacher" else name.split(" | ")
        kls = [f"{row[key]['kl']:.3f} ± {row[key]['stderr']:.3f}" if key in row else "" for key in ("kl_chats", "kl_books")]
        minutes = f"{row['minutes']:.0f}" if "minutes" in row else ""
        lines.append(f"| {share} | {student} | {row['right']} | {kls[0]} | {kls[1]} | {minutes} |")
    for prompt in PROMPTS:
        lines += ["", f"**{prompt}**", "", "| | |", "|---|---|"]
        for name, row in results.items():
            said = " ".join(row["answers"][prompt].split()).replace("|", "\\|")
            lines.append(f"| {name.replace(' | ', ', ')} | {said} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=Path("smollm2"))
    parser.add_argument("--books", type=Path)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--work", type=Path, default=Path("chats-work"))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    if options.tables:
        print(tables(results))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    chats = Chats(options)
    rows = [("", "teacher"), *((share, student) for share in SHARES for student in STUDENTS)]
    for share, student in rows:
        name = student if student == "teacher" else f"{share} | {student}"
        if name not in results:
            results[name] = chats.row(share, student)
            unfinished = options.out.with_suffix(".part")
            unfinished.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
            unfinished.replace(options.out)
            print(f"{name}: {results[name]['right']} of {results[name]['of']}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
