"""What the scan costs on top of a plain forward of the trunk, in time and in memory, and how a reference compares.

    python benchmarks/scan.py [--rounds N] [--out FILE]

Model: random 24-layer d=512 Llama, float32, one CPU thread. A round runs plain, the contestant, plain on the same batches; its
ratio is the contestant's processor time over the mean of the two around it, so a busy machine slows all of them alike. Printed:
the median over rounds.

- plain: the model's own trunk (no head), no cache, nothing kept.
- scan: all criteria, all spans, all token choices, anatomy.
- reference: written the way the official LLM-Streamline script works: all hidden states of all samples kept, then for ONE n a
  T x T cosine matrix per sample and candidate, of which the diagonal is read.

Memory is the peak resident size above the model, in a fresh process per case (Linux only; elsewhere it is left out). The whole
takes about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

N_LAYERS, HIDDEN, LENGTH, BATCH, N_BATCHES, REFERENCE_N = 24, 512, 256, 2, 3, 6
REFERENCE_EVERY = 5  # The reference runs once in so many rounds.
CASES = ("plain", "scan", "reference")
SHAPE = dict(hidden_size=HIDDEN, intermediate_size=1376, num_hidden_layers=N_LAYERS, num_attention_heads=8, vocab_size=512)


def random_model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=8, max_position_embeddings=LENGTH, **SHAPE)).eval()


def random_batches(n_batches: int, *, batch: int = BATCH) -> list[Any]:
    from shoal.words.types import Batch

    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(0, SHAPE["vocab_size"], (batch, LENGTH), generator=generator) for _ in range(n_batches)]
    return [Batch(one, None, index) for index, one in enumerate(ids)]


@torch.no_grad()
def plain(model: Any, batches: list[Any]) -> None:
    for batch in batches:
        model.model(input_ids=batch.ids_BT, use_cache=False)


def full_scan(view: Any, batches: list[Any]) -> Any:
    from shoal.measure.scan import scan
    from shoal.words.records import Provenance

    made = dict(model="random", model_hash="", data="random", data_hash="", dtype="float32", seed=1)
    source = Provenance(n_samples=0, n_tokens=0, length=LENGTH, **made)
    return scan(view, batches, provenance=source)


@torch.no_grad()
def reference(model: Any, batches: list[Any]) -> list[float]:
    """Mean over samples of the diagonal of a T x T cosine matrix, for spans of one length."""
    samples: list[Any] = []
    for batch in batches:
        states = model.model(input_ids=batch.ids_BT, use_cache=False, output_hidden_states=True).hidden_states
        samples += [[state[row] for state in states] for row in range(len(batch.ids_BT))]
    means = []
    for start in range(N_LAYERS - REFERENCE_N + 1):
        total = 0.0
        for states in samples:
            first, last = states[start], states[start + REFERENCE_N]
            norms = first.norm(dim=-1, keepdim=True) @ last.norm(dim=-1, keepdim=True).T
            total += float(torch.diagonal(0.5 + 0.5 * (first @ last.T) / norms).mean())
        means.append(total / len(samples))
    return means


def cpu_seconds(work: Any, *args: Any) -> float:
    """Processor time of this process: what others do on the machine shows less in it than in wall time."""
    before = time.process_time()
    work(*args)
    return time.process_time() - before


def time_all(rounds: int) -> dict[str, Any]:
    from shoal.engine.view import DecoderView

    model, batches = random_model(), random_batches(N_BATCHES)
    view = DecoderView(model)
    contestants: dict[str, tuple[Any, Any]] = {"scan": (full_scan, view), "reference": (reference, model)}
    for work, subject in contestants.values():  # The first call warms up.
        work(subject, batches)
    ratios: dict[str, list[float]] = {"scan": [], "reference": []}
    for turn in range(rounds):
        name = "reference" if turn % REFERENCE_EVERY == REFERENCE_EVERY - 1 else "scan"
        work, subject = contestants[name]
        before = cpu_seconds(plain, model, batches)
        mine = cpu_seconds(work, subject, batches)
        after = cpu_seconds(plain, model, batches)
        ratios[name].append(2 * mine / (before + after))
        print(f"round {turn + 1}: plain {before:.2f} s, {name} {mine:.2f} s, plain {after:.2f} s", file=sys.stderr)
    return {
        "scan_over_plain": summary(ratios["scan"]),
        "reference_one_n_over_plain": summary(ratios["reference"]),
        "tokens_per_run": BATCH * LENGTH * N_BATCHES,
        "ratios": ratios,
    }


def summary(ratios: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"median": middle, "quartile_low": low, "quartile_high": high, "rounds": len(ratios)}


def extra_mb(case: str, n_batches: int) -> float:
    """Peak resident size of one case above the model and its inputs, in a fresh process."""
    command = [sys.executable, __file__, "--case", case, "--batches", str(n_batches)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run_case(case: str, n_batches: int) -> float:
    from shoal.engine.view import DecoderView

    model, batches = random_model(), random_batches(n_batches)
    view = DecoderView(model)
    plain(model, random_batches(1, batch=1))  # The process needs this for any forward.
    before = resident_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # The peak counts from here.
    if case == "scan":
        full_scan(view, batches)
    else:
        {"plain": plain, "reference": reference}[case](model, batches)
    return resident_mb("VmHWM") - before


def resident_mb(field: str) -> float:
    """A size from /proc/self/status: VmRSS now, VmHWM its peak (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(field))) / 1024


def measure_memory() -> dict[str, Any]:
    few, many = 4, 24
    extra = {f"{case}_{n}_batches": extra_mb(case, n) for case in CASES for n in (few, many)}
    growth = {case: (extra[f"{case}_{many}_batches"] - extra[f"{case}_{few}_batches"]) / (many - few) for case in CASES}
    return {
        "peak_above_model_mb": extra,
        "all_states_of_one_batch_mb": (N_LAYERS + 1) * BATCH * LENGTH * HIDDEN * 4 / 2**20,
        "scan_above_plain_mb": extra[f"scan_{few}_batches"] - extra[f"plain_{few}_batches"],
        "growth_mb_per_batch": growth,
    }


def machine() -> dict[str, Any]:
    return {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__, "load": os.getloadavg()[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "scan.json")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--batches", type=int, default=N_BATCHES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.case:
        print(run_case(options.case, options.batches))
        return
    setup = {"layers": N_LAYERS, "hidden": HIDDEN, "length": LENGTH, "batch": BATCH, "batches": N_BATCHES, "dtype": "float32"}
    if options.rounds < 2 * REFERENCE_EVERY:
        parser.error(f"--rounds {options.rounds} is too few: the reference runs in every {REFERENCE_EVERY}th, and needs two")
    result = {"machine": machine(), "setup": setup, "time": time_all(options.rounds)}
    if Path("/proc/self/clear_refs").exists():
        result["memory"] = measure_memory()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    ratio, other = result["time"]["scan_over_plain"], result["time"]["reference_one_n_over_plain"]
    print(f"scan / plain forward: {ratio['median']:.3f} (quartiles {ratio['quartile_low']:.3f}..{ratio['quartile_high']:.3f})")
    print(f"reference for one n / plain forward: {other['median']:.3f}; the scan does all {N_LAYERS} n at once")
    memory = result.get("memory")
    if memory is None:
        return
    print(f"scan memory above plain: {memory['scan_above_plain_mb']:.0f} MB; all states of one batch are", end=" ")
    print(f"{memory['all_states_of_one_batch_mb']:.0f} MB")
    growth = ", ".join(f"{case} {mb:.2f} MB" for case, mb in memory["growth_mb_per_batch"].items())
    print(f"growth per further batch: {growth}")


if __name__ == "__main__":
    main()
