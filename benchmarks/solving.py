"""The ridge of a map by a search on mixed outputs against all eight on all, on a problem of SmolLM2's shape: choice and time.

    OMP_NUM_THREADS=1 python benchmarks/solving.py [--rounds N] [--out FILE]

A planted map of 1,536 inputs and 576 outputs seen through correlated inputs and noise, 8,000 tokens in four folds; the noise
differs from round to round, so that the best ridge does. A round solves both ways (the order swaps); the ratio
is of processor times. About two minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

INPUTS, OUTPUTS, TOKENS, FOLDS = 1536, 576, 8000, 4
NOISE = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


def folds(noise: float) -> list[Any]:
    from shoal.fit.sums import MapSums

    draw = torch.Generator().manual_seed(0)
    mix = torch.randn(INPUTS, INPUTS, generator=draw, dtype=torch.float64) * torch.logspace(0, -2, INPUTS, dtype=torch.float64)
    planted = torch.randn(INPUTS, OUTPUTS, generator=draw, dtype=torch.float64) / INPUTS**0.5
    none = torch.zeros(INPUTS + 1, dtype=torch.float64)
    found = []
    for _ in range(FOLDS):
        h = torch.randn(TOKENS // FOLDS, INPUTS, generator=draw, dtype=torch.float64) @ mix
        r = h @ planted + noise * torch.randn(len(h), OUTPUTS, generator=draw, dtype=torch.float64)
        h = torch.nn.functional.pad(h, (0, 1), value=1.0)
        found.append(MapSums(h.T @ h, h.T @ r, r.square().sum(), torch.tensor(float(len(h))), none, none[:OUTPUTS]))
    return found


def main() -> None:
    from shoal.fit.solve import RIDGES, best_ridge, cross_validated_for, mixed_outputs, ridge_change

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=len(NOISE))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "solving.json")
    options = parser.parse_args()
    torch.set_num_threads(1)

    def change(sums: Any, ridge: float) -> Any:
        return ridge_change(sums, ridge, bias=False)

    def by_all(sums: list[Any]) -> float:
        errors = cross_validated_for(sums, RIDGES, change)
        return RIDGES[min(range(len(RIDGES)), key=lambda i: (errors[i], -RIDGES[i]))]

    rounds = []
    for turn in range(options.rounds):
        noise = NOISE[turn % len(NOISE)]
        sums = folds(noise)
        ways = [("all", by_all), ("search", lambda sums: best_ridge([mixed_outputs(one) for one in sums], RIDGES, change)[0])]
        one: dict[str, Any] = {"noise": noise}
        for name, way in ways if turn % 2 == 0 else reversed(ways):
            started = time.process_time()
            one[f"ridge_{name}"] = way(sums)
            one[f"seconds_{name}"] = time.process_time() - started
        rounds.append(one)
        print(one, flush=True)
    ratio = statistics.median(one["seconds_search"] / one["seconds_all"] for one in rounds)
    result = {"threads": 1, "torch": torch.__version__, "inputs": INPUTS, "outputs": OUTPUTS, "ratio": ratio, "rounds": rounds}
    options.out.write_text(json.dumps(result, indent=2).replace("Infinity", '"Infinity"') + "\n")
    print(f"search / all: {ratio:.2f}")


if __name__ == "__main__":
    main()
