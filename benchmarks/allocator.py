"""What ``keep_freed_memory`` buys on a CPU: tokens per second of the bundled model's trunk with and without it, in turns.

    python benchmarks/allocator.py [--rounds N] [--out FILE]

Each case runs in a fresh process, because the setting cannot be taken back. Printed: the median over rounds of the ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

CASE = """
import sys, time, torch
from shoal.engine.open import open_model
from shoal.run.job import bundled_model
from shoal.cli.malloc import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
model = open_model(bundled_model()).model.model
ids = torch.randint(0, 4096, (16, 256), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    model(ids)
    started = time.perf_counter()
    for _ in range(4):
        model(ids)
print(4 * ids.numel() / (time.perf_counter() - started))
"""


def tokens_per_second(case: str) -> float:
    done = subprocess.run([sys.executable, "-c", CASE, case], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "allocator.json")
    args = parser.parse_args()
    rounds = [{case: tokens_per_second(case) for case in ("plain", "keep")} for _ in range(args.rounds)]
    ratios = [one["keep"] / one["plain"] for one in rounds]
    spread = f"from {min(ratios):.2f} to {max(ratios):.2f}, {args.rounds} rounds"
    print(f"kept over plain: x {statistics.median(ratios):.2f} ({spread})")
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps({"tokens_per_second": rounds, "median_ratio": statistics.median(ratios)}, indent=2) + "\n")


if __name__ == "__main__":
    main()
