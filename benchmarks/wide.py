"""A 16-bit model on this processor, its linear maps multiplied in float32 and as they are: tokens a second, and the logits.

    OMP_NUM_THREADS=1 python benchmarks/wide.py [MODEL] [--dtype bfloat16] [--out FILE]

Both ways take turns in one process, in processor time: a forward of a batch, a step of training through all layers (the weights
frozen, the gradient of the first states), and tokens one at a time. On a processor that multiplies 16 bits fast both are the
same, and the script says so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from shoal.engine import wide_products
from shoal.engine.open import open_model
from shoal.engine.opening import Opening
from shoal.run.job import bundled_model

N_SAMPLES, LENGTH, N_NEW, ROUNDS = 2, 128, 8, 3
FAST = mock.patch.object(wide_products, "multiplies_slowly", lambda dtype: False)


def forward(model: Any, ids_BT: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids_BT, use_cache=False).logits


def step(model: Any, ids_BT: torch.Tensor) -> torch.Tensor:
    states_BTD = model.get_input_embeddings()(ids_BT).detach().requires_grad_()
    model(inputs_embeds=states_BTD, use_cache=False).logits.float().logsumexp(-1).mean().backward()
    return states_BTD.grad


def decode(model: Any, ids_BT: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.generate(ids_BT[:1, :8], max_new_tokens=N_NEW, min_new_tokens=N_NEW, do_sample=False, pad_token_id=0)


WORK: dict[str, tuple[Callable[..., torch.Tensor], int]] = {
    "forward": (forward, N_SAMPLES * LENGTH),
    "training step": (step, N_SAMPLES * LENGTH),
    "decoding": (decode, N_NEW),
}


def seconds(work: Callable[..., torch.Tensor], model: Any, ids_BT: torch.Tensor) -> float:
    started = time.process_time()
    work(model, ids_BT)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(bundled_model()))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "wide.json")
    options = parser.parse_args()
    model = open_model(options.model, Opening(dtype=options.dtype)).model.requires_grad_(False)
    ids_BT = torch.randint(3, model.config.vocab_size, (N_SAMPLES, LENGTH), generator=torch.Generator().manual_seed(0))
    found: dict[str, Any] = {
        "processor": torch.backends.cpu.get_cpu_capability(),
        "multiplies_slowly": wide_products.multiplies_slowly(model.dtype),
        "dtype": options.dtype,
        "threads": torch.get_num_threads(),
    }
    for name, (work, n_tokens) in WORK.items():
        ways: dict[str, list[float]] = {"as stored": [], "in float32": []}
        for turn in range(ROUNDS + 1):
            with FAST:
                plain = seconds(work, model, ids_BT)
            wide = seconds(work, model, ids_BT)
            if turn:  # The first is a warm-up.
                ways["as stored"].append(plain)
                ways["in float32"].append(wide)
        rates = {way: n_tokens / statistics.median(taken) for way, taken in ways.items()}
        ratio = rates["in float32"] / rates["as stored"]
        found[name] = {**rates, "ratio": ratio}
        print(f"{name}: {rates['as stored']:.0f} -> {rates['in float32']:.0f} tokens/s ({ratio:.2f} x)", flush=True)
    exact = open_model(options.model, Opening(dtype="float32")).model
    wanted = forward(exact, ids_BT[:1])
    with FAST:
        plain = forward(model, ids_BT[:1])
    ours = forward(model, ids_BT[:1])
    found["mean_difference_to_float32"] = {
        "as stored": float((plain - wanted).abs().mean()),
        "in float32": float((ours - wanted).abs().mean()),
    }
    print(f"logits, mean difference to a float32 model: {found['mean_difference_to_float32']}")
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    results[Path(options.model).name] = found
    options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
