"""What the parts of ``gpu.py`` share: what was asked for, with the results so far; clocks and peaks of a card; a model."""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

LARGE = dict(
    hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8, vocab_size=32000,
    num_hidden_layers=32, max_position_embeddings=4096,
)  # fmt: skip
TINY = dict(
    hidden_size=64, intermediate_size=160, num_attention_heads=4, num_key_value_heads=2, vocab_size=512,
    num_hidden_layers=12, max_position_embeddings=256,
)  # fmt: skip


class Asked:
    """What the command line said, and the results so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device, self.tiny, self.out = torch.device(args.device), bool(args.tiny), Path(args.out)
        self.ends, self.repair_seconds = time.monotonic() + args.seconds, float(args.repair_seconds)
        self.fit_tokens = 4096 if args.tiny else int(args.fit_tokens)
        self.shape = TINY if args.tiny else LARGE
        self.length = 128 if args.tiny else 2048
        self.dtype = torch.float32 if args.tiny else torch.bfloat16
        self.scratch = Path(args.scratch)
        self.results: dict[str, Any] = {"command": " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]])}

    @property
    def seconds_left(self) -> float:
        return self.ends - time.monotonic()

    def say(self, part: str, **found: Any) -> None:
        print(f"[{part}]", json.dumps(found, default=str), flush=True)

    def keep(self, name: str, value: Any) -> None:
        self.results[name] = value
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(self.results, indent=2, default=str) + "\n")


def wait(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(device: torch.device, work: Callable[[], object]) -> float:
    started = wait(device)
    work()
    return wait(device) - started


@contextmanager
def peak_of(device: torch.device, into: dict[str, Any], name: str = "peak_gb") -> Iterator[None]:
    """The most that was allocated on the card while the block ran, in GB."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        into[name] = round(torch.cuda.max_memory_allocated(device) / 1e9, 2)


def forget(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def random_model(asked: Asked) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(**asked.shape)
    with torch.device(asked.device):
        model = AutoModelForCausalLM.from_config(config, dtype=asked.dtype).eval()
    # A loaded model has this table of rotary frequencies: computed on the card its last bits differ.
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(asked.device)
    return model


def random_batches(asked: Asked, *, n_tokens: int, per_batch: int) -> list[Any]:
    from shoal.words.types import Batch

    draw = torch.Generator().manual_seed(1)
    n_batches = max(1, n_tokens // (per_batch * asked.length))
    shape = (per_batch, asked.length)
    return [
        Batch(torch.randint(0, asked.shape["vocab_size"], shape, generator=draw), None, index) for index in range(n_batches)
    ]


def scanned(view: Any, batches: list[Any]) -> Any:
    from shoal.measure.scan import scan
    from shoal.words.records import Provenance

    made = dict(model="random", model_hash="", data="random", data_hash="", dtype=str(view.dtype), seed=1)
    return scan(view, batches, provenance=Provenance(n_samples=0, n_tokens=0, length=batches[0].ids_BT.shape[1], **made))


def digest(found: Any) -> str:
    """Of every table of a scan."""
    tables = sorted(found.tables.items())
    return hashlib.sha256(b"".join(name.encode() + table.values.tobytes() for name, table in tables)).hexdigest()[:16]


def equal_bytes(a: Path, b: Path) -> bool | None:
    """None where neither is there."""
    if not a.exists() and not b.exists():
        return None
    return a.exists() and b.exists() and a.read_bytes() == b.read_bytes()


def largest_difference(a: Path, b: Path) -> float:
    """Over all tensors, relative to the largest entry of each."""
    from safetensors.torch import load_file

    ours, theirs = load_file(a), load_file(b)
    return max(float((ours[name] - theirs[name]).abs().max() / ours[name].abs().max().clamp(min=1e-30)) for name in ours)


def solves(asked: Asked) -> dict[str, Any]:
    """Seconds of what a solve of the widest map does, in fp64."""
    n, d = asked.shape["intermediate_size"] + 1, asked.shape["hidden_size"]
    draw = torch.Generator(asked.device).manual_seed(0)
    h_NE = torch.randn(2 * n, n, generator=draw, device=asked.device)
    hh_EE = (h_NE.mT @ h_NE).double()
    hh_EE.diagonal().add_(1.0)
    hr_ED = torch.randn(n, d, generator=draw, device=asked.device).double()
    root_EE = torch.linalg.cholesky(hh_EE)
    found: dict[str, Any] = {"inputs": n, "outputs": d}
    parts: dict[str, Callable[[], object]] = {
        "cholesky": lambda: torch.linalg.cholesky_ex(hh_EE),
        "cholesky_solve": lambda: torch.cholesky_solve(hr_ED, root_EE),
        "product": lambda: hh_EE @ hr_ED,
        "eigvalsh": lambda: torch.linalg.eigvalsh(hh_EE),
    }
    for name, work in parts.items():
        found[name] = round(timed(asked.device, work), 3)
        asked.say("repair", **{f"{name}_seconds": found[name]})
    return found
