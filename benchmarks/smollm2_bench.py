"""The students of ``benchmarks/smollm2.py``: by method, share and text, each a run folder that is made once."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

LENGTH, SCAN_SAMPLES, MEASURED_SAMPLES = 512, 32, 16
SHARES = {"10 %": 3, "25 %": 7, "40 %": 12, "50 %": 15}
FIT_TOKENS = {"25 %": 49_152}
FIT_TOKENS_ELSEWHERE = 16_384
STREAMLINE = {"by": "cosine/every", "protect": [], "repair": "none", "train": {"batch": 1, "micro_batch": 1}}
"""LLM-Streamline's choice and module, trained on as many tokens as the closed forms read, by our schedule (the paper: 62 M)."""
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain cut": ("default", {"repair": "none"}),
    "Prune&Comp": ("prune-comp", {}),
    "LinearPatch, untrained": ("linearpatch", {}),
    "ReplaceMe": ("replaceme", {}),
    "Ghosted Layers": ("ghosted-layers", {}),
    "LLM-Streamline, layer": ("default", {"replace": "layer", "polish": "hidden", **STREAMLINE}),
    "LLM-Streamline, layer, on logits": ("default", {"replace": "layer", "polish": "kl", **STREAMLINE}),
    "LLM-Streamline, FFN": ("default", {"replace": "ffn", "polish": "hidden", **STREAMLINE}),
    "ours, refit": ("default", {"repair": "refit"}),
    "ours, refit, mixed": ("default", {"repair": "refit", "text": "mixed"}),
    "ours, sweep": ("default", {"repair": "sweep"}),
    "ours, sweep, mixed": ("default", {"repair": "sweep", "text": "mixed"}),
    "ours, polished": ("polished", {"repair": "sweep", "train": {}}),
}
"""Recipe and changes of each row. All cut the span that the recipe's own criterion ranks first."""
AFTER_A_REPAIR = ("plain cut", "ReplaceMe", "LLM-Streamline, layer", "ours, refit", "ours, sweep", "ours, sweep, mixed")
"""Rows of the tasks and of the chats."""


class Bench:
    """The model, its texts and the students, each opened when a cell first asks for it."""

    def __init__(self, options: argparse.Namespace, results: dict[str, Any]) -> None:
        self.options, self.results = options, results

    @cached_property
    def opened(self) -> Any:
        from shoal.engine.open import open_model

        return open_model(self.options.model)

    @cached_property
    def view(self) -> Any:
        from shoal.engine.view import DecoderView

        return DecoderView(self.opened.model)

    def samples(self, path: Path, slice: str, n: int) -> Any:
        from shoal.text.corpus import open_corpus

        return open_corpus(path, self.opened.need_tokenizer(), seed=0).samples(slice, n=n, length=LENGTH)

    def plain(self, layers: Sequence[int]) -> Any:
        from shoal.engine.student import Student
        from shoal.words.types import Unit

        return Student(removed=frozenset(Unit("layer", layer) for layer in layers), name=str(list(layers)))

    def folder(self, method: str, share: str, seed: int = 0) -> Path:
        name = "".join(letter if letter.isalnum() else "-" for letter in f"{method} {share[:2]}")
        return Path(self.options.work) / (name if seed == 0 else f"{name}-seed{seed}")

    def made(self, method: str, share: str, seed: int = 0) -> Any:
        """The state of a run up to its student: made once, read back later."""
        from shoal.recipes.recipe_file import load_recipe

        name, changes = METHODS[method]
        tokens = FIT_TOKENS.get(share, FIT_TOKENS_ELSEWHERE)
        sources = [str(self.options.books)]
        if changes.get("text") == "mixed":
            sources = [f"0.5*{self.options.books}+0.5*{self.options.wiki}"]
        given: dict[str, Any] = {
            "model": str(self.options.model),
            "drop": str(SHARES[share]),
            "guard": 1,
            "seed": seed,
            "text": {"sources": sources, "length": LENGTH, "samples": SCAN_SAMPLES, "selection": 8, "evaluation": 8},
            "fit": {"tokens": tokens},
            **{key: value for key, value in changes.items() if key not in ("text", "train")},
        }
        if "train" in changes:
            given["train"] = {**changes["train"], "tokens": tokens}
        recipe = load_recipe(name, given)
        scanned = self.folder("scan", "mixed" if "mixed" in method else "books", seed)
        return self.run(recipe, self.folder(method, share, seed), scanned)

    def run(self, recipe: Any, folder: Path, scanned: Path | None = None) -> Any:
        """The stages of a recipe up to a student; ``scanned`` is a folder whose scan is shared, or made."""
        from shoal.engine.workers import ALONE
        from shoal.run.folder import RunFolder
        from shoal.run.job import Inputs, versions
        from shoal.run.stage import State, run_all
        from shoal.run.stages.scan import SCAN
        from shoal.run.stages.table import TO_A_STUDENT
        from shoal.text.corpus import open_corpus

        corpus = open_corpus(recipe.text.sources, self.opened.need_tokenizer(), seed=recipe.seed)
        inputs = Inputs(recipe, self.opened, self.view, corpus, workers=ALONE)
        if scanned is not None and scanned.exists() and not folder.exists():
            shutil.copytree(scanned, folder)
        run = RunFolder(folder, version="0", command="", versions=versions(), overwrite=False, workers=ALONE)
        state = run_all([SCAN], State(inputs), run)
        if scanned is not None and not scanned.exists():
            shutil.copytree(folder, scanned)
        return run_all([stage for stage in TO_A_STUDENT if stage is not SCAN], state, run)

    def student_in(self, folder: Path) -> Any:
        """The student of a finished run folder."""
        from shoal.edits.plan import Plan
        from shoal.edits.student_of import student_of
        from shoal.run.run_files import plan_file, values_for

        plan = Plan.load(plan_file(folder))
        return student_of(self.view, plan, values_for(plan, folder))

    @cached_property
    def default(self) -> Any:
        """The view of the checkpoint that the command leaves at 25 % with its defaults."""
        from shoal.engine.open import open_model
        from shoal.engine.view import DecoderView

        return DecoderView(open_model(str(Path(self.options.work) / "command-default" / "model")).model)

    def student(self, method: str, share: str = "25 %", seed: int = 0) -> Any:
        return self.made(method, share, seed).student()


@torch.no_grad()
def closeness(bench: Bench, students: dict[str, Any], path: Path) -> dict[str, Any]:
    from shoal.measure.oracle import Oracle

    text = bench.samples(path, "evaluation", MEASURED_SAMPLES)
    started = time.monotonic()
    oracle = Oracle(bench.view, text.batches(8))
    from shoal.engine.student import TEACHER

    measured = oracle.measure([TEACHER, *students.values()])
    rows = dict(zip(["teacher", *students], measured, strict=True))
    return {
        "tokens": measured[0].n_tokens,
        "seconds": time.monotonic() - started,
        "rows": {name: one.model_dump(mode="json") for name, one in rows.items()},
    }
