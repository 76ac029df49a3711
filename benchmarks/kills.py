"""Runs that are killed at random moments, resumed, and compared with the run that nothing interrupted.

    python benchmarks/kills.py [--kills 50] [--seed 0] [--out FILE]

Small runs of the bundled model: one that trains a layer, one that refits (a sweep), with two layers in memory and the others
read from disk (speed is not measured there, which would be most of the time). Each is killed with SIGKILL at a uniformly random
moment after its start-up, started again, killed again, until it ends; then its files are compared with the unbroken run's, byte
for byte (weights, values, plan, scan) and figure for figure (the evaluation; seconds and speeds aside), and a new run begins.
Threads are fixed to one, so that equal bits can be asked for.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

BUNDLED = Path(__file__).parents[1] / "src/shoal/assets/books-16l"
SMALL = "--samples 8 --length 64 --drop 4 --guard 2 --resident 2".split()
CASES = {
    "layer": [*SMALL, "--replace", "layer", "--train-tokens", "8000"],
    "sweep": [*SMALL, "--replace", "none", "--repair", "sweep", "--fit-tokens", "8000"],
}
SAME_BYTES = ("scan.safetensors", "fit.safetensors", "model/model.safetensors", "model/config.json", "plan.json", "recipe.yaml")
TIMED = {"seconds", "speed", "generated_at", "command", "started"}  # What a clock says differs between any two runs.
RUN = "from shoal.cli import main; main()"


def start(case: str, out: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", RUN, "compress", str(BUNDLED), *CASES[case], "--out", str(out)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen[bytes]) -> None:
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(f"exit {process.returncode}: {said.decode()[-2000:]}")


def without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_clock(one) for key, one in value.items() if key not in TIMED}
    return [without_clock(one) for one in value] if isinstance(value, list) else value


def result_of(folder: Path) -> dict[str, str]:
    """A digest of every file that may not depend on interruptions."""
    found = {name: (folder / name).read_bytes() for name in SAME_BYTES if (folder / name).exists()}
    for name in ("evaluation.json", "fit.json", "verification.json"):
        if (folder / name).exists():
            found[name] = json.dumps(without_clock(json.loads((folder / name).read_text())), sort_keys=True).encode()
    return {name: hashlib.sha256(content).hexdigest()[:16] for name, content in found.items()}


def stage_now(folder: Path) -> str:
    """The last stage that was recorded when the run died, and whether training had a checkpoint."""
    record = folder / "run.json"
    stages = list(json.loads(record.read_text())["stages"]) if record.exists() else []
    trained = "train" not in stages and any((folder / "train").glob("**/checkpoint.safetensors"))
    return ("after " + stages[-1] if stages else "before any stage") + (", in training" if trained else "")


def kill_one(case: str, out: Path, *, draw: random.Random, startup: float, whole: float) -> str | None:
    """Start or resume the run and kill it; returns where, or None when it ended first."""
    process = start(case, out)
    try:
        process.wait(timeout=draw.uniform(startup, whole))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return stage_now(out)
    ended(process)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kills.json")
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for case in CASES:
            unbroken = Path(scratch) / f"{case}-unbroken"
            started = time.monotonic()
            process = start(case, unbroken)
            while not (unbroken / "run.json").exists():
                time.sleep(0.05)
                assert process.poll() is None or not process.returncode, process.communicate()
            startup = time.monotonic() - started
            ended(process)
            whole = time.monotonic() - started
            expected = result_of(unbroken)
            where: Counter[str] = Counter()
            n_runs = n_equal = 0
            while sum(where.values()) < asked.kills // len(CASES):
                out = Path(scratch) / f"{case}-{n_runs}"
                longest, last = whole, ""
                while (place := kill_one(case, out, draw=draw, startup=startup, whole=longest)) is not None:
                    where[place] += 1
                    longest *= 1.5 if place == last else 1.0  # A machine that became slower must not keep it from its end.
                    last = place
                    print(f"{case}: kill {sum(where.values())}, {place}", flush=True)
                found = result_of(out)
                n_runs, n_equal = n_runs + 1, n_equal + (found == expected)
                if found != expected:
                    print(f"{case}: run {n_runs} differs in {[name for name in expected if found.get(name) != expected[name]]}")
                shutil.rmtree(out)
            rows.append(
                {
                    "case": case,
                    "options": " ".join(CASES[case]),
                    "kills": sum(where.values()),
                    "where": dict(sorted(where.items())),
                    "runs": n_runs,
                    "runs_equal_to_the_unbroken": n_equal,
                    "seconds_unbroken": round(whole, 1),
                    "files": sorted(expected),
                }
            )
            print(rows[-1], flush=True)
    asked.out.write_text(json.dumps({"seed": asked.seed, "cases": rows}, indent=2) + "\n")
    sys.exit(any(row["runs"] != row["runs_equal_to_the_unbroken"] for row in rows))


if __name__ == "__main__":
    main()
