"""Memory of every stage: the bound that ``shoal plan --memory`` states before anything runs, against what the process took.

    python benchmarks/memory.py [--gigabytes 0.3] [--resident 1 all] [--case layer sweep polish heal] [--out FILE]

A random Llama is written to a temporary folder and compressed in a fresh process per case; the peak resident size is reset when
a stage ends, so every stage has its own. Rows of other cases of the same model stay in the file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HIDDEN, FFN = 512, 1408
EVERY_CASE: dict[str, Any] = {
    "drop": "25%layers",
    "guard": 2,
    "heal": "none",
    "text": {"samples": 16, "length": 256, "selection": 8, "evaluation": 8},
}
CASES: dict[str, dict[str, Any]] = {
    "layer": {"replace": "layer", "train": {"tokens": 4096}},
    "sweep": {"replace": "none", "repair": "sweep", "fit": {"tokens": 16384}},
    "polish": {
        "replace": "none",
        "repair": "sweep",
        "fit": {"tokens": 16384},
        "polish": "hidden",
        "train": {"tokens": 4096, "several": "sequential"},  # Jointly trained, all layers behind the cut would have to stay.
    },
    "heal": {"replace": "none", "repair": "none", "heal": {"tokens": 4096}},  # Healing needs all layers in memory.
}

CASE = """
import json, sys
from pathlib import Path
from shoal.engine.opening import Opening
from shoal.run import folder as folders
from shoal.run.compress import compress
from shoal.run.memory_plan.needs import needs_of
from shoal.recipes.recipe_file import load_recipe
changes, out = json.loads(sys.argv[1]), sys.argv[2]
opening = Opening(resident=sys.argv[3], dtype=sys.argv[4])
recipe = load_recipe("default", changes)
planned = needs_of(recipe, opening)
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
peaks, finish = {}, folders.RunFolder.finish
def finished(self, stage, *args, **options):
    peaks[stage] = peak()
    finish(self, stage, *args, **options)
    Path("/proc/self/clear_refs").write_text("5")
folders.RunFolder.finish = finished
Path("/proc/self/clear_refs").write_text("5")
compress(recipe, out, opening=opening)
print("RESULT", json.dumps({"peaks": peaks, "planned": planned.model_dump(mode="json")}))
"""


def write_model(folder: Path, *, gigabytes: float, dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    bundled = Path(__file__).parents[1] / "src/shoal/assets/books-16l"
    layer = (4 * HIDDEN**2 + 3 * HIDDEN * FFN) * (2 if dtype == "bfloat16" else 4)
    tokenizer = AutoTokenizer.from_pretrained(bundled)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=FFN, num_attention_heads=8, num_key_value_heads=8, vocab_size=len(tokenizer),
        num_hidden_layers=max(6, round(gigabytes * 1e9 / layer)), max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.05,  # The layers do something, so that a repair helps, stands, and can be polished.
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).save_pretrained(folder, max_shard_size="200MB")
    tokenizer.save_pretrained(folder)


def measure(changes: dict[str, Any], out: Path, *, resident: str, dtype: str) -> dict[str, Any]:
    command = [sys.executable, "-c", CASE, json.dumps(changes), str(out), resident, dtype]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(next(line for line in said.splitlines() if line.startswith("RESULT")).removeprefix("RESULT "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=0.3)
    parser.add_argument("--resident", nargs="+", default=["1", "all"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "memory.json")
    parser.add_argument("--case", nargs="+", default=["layer", "sweep", "polish"])
    asked = parser.parse_args()
    model = {"gigabytes": asked.gigabytes, "dtype": asked.dtype}
    before = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    rows = before.pop("stages", [])
    before.pop("process_mb", None)
    rows = rows if before == model else []
    with tempfile.TemporaryDirectory() as scratch:
        write_model(Path(scratch) / "model", gigabytes=asked.gigabytes, dtype=asked.dtype)
        for resident in asked.resident:
            for name in asked.case:
                changes = {"model": str(Path(scratch) / "model"), **EVERY_CASE, **CASES[name]}
                out = Path(scratch) / f"{name}-{resident}"
                found = measure(changes, out, resident=resident, dtype=asked.dtype)
                planned, peaks = {one["stage"]: one["memory"] for one in found["planned"]["stages"]}, found["peaks"]
                if "heal" in peaks:  # One stage of the plan trains, merges and writes; the run records the three.
                    peaks["heal"] = max(peaks.pop(part) for part in ("heal", "model", "healed"))
                process = found["planned"]["stages"][0]["parts"]["process"]
                rows = [row for row in rows if (row["case"], row["resident"]) != (name, resident)]
                for stage, took in peaks.items():
                    row = {"case": name, "resident": resident, "stage": stage, "measured_mb": round(took / 1e6)}
                    row.update(planned_mb=round(planned[stage] / 1e6), ratio=round(planned[stage] / took, 3))
                    rows.append(row)
                    print(row, flush=True)
                content = {**model, "process_mb": round(process / 1e6), "stages": rows}
                asked.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
