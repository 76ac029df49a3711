"""A scan of a model that is read layer by layer, against the same scan in memory and against disk offload.

    python benchmarks/streaming.py [--gigabytes 6] [--samples 8] [--length 128] [--out FILE]

A random Llama (bfloat16, sharded) is written to a temporary folder. Each case runs in a fresh process with a warm file cache:
its wall time, its peak resident size above an idle process that has the same libraries, and the weight bytes it read.

- resident: all layers in memory; streamed: one layer, the next one read ahead.
- offload: transformers with accelerate's disk offload; a plain forward of the same batches, no scan.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HIDDEN, FFN, HEADS, VOCAB = 2048, 5504, 16, 8192
LAYER_BYTES = 2 * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * FFN + 2 * HIDDEN)

CASE = """
import json, sys, time
from pathlib import Path
import torch, transformers, accelerate
from transformers import AutoModelForCausalLM
from shoal.decoder import DecoderView
from shoal.decoder.open import load_strictly
from shoal.decoder.streamed import Streamed, skeleton
from shoal.scan import scan
from shoal.types import Batch, Provenance
case, folder, samples, length = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
base = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
generator = torch.Generator().manual_seed(0)
batches = [Batch(torch.randint(0, 8192, (2, length), generator=generator), None, i) for i in range(samples // 2)]
facts = Provenance(model="random", model_hash="", data="random", data_hash="", n_samples=0, n_tokens=0, length=length,
                   seed=0, dtype="bfloat16")
started = time.perf_counter()
read = None
if case == "offload":
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map={"model.embed_tokens": "cpu", "model.norm":
        "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu", "model.layers": "disk"}, offload_folder=str(folder / "offload"))
    opened = time.perf_counter()
    with torch.no_grad():
        for batch in batches:
            model.model(input_ids=batch.ids_BT, use_cache=False)
elif case == "idle":
    opened = started
else:
    if case == "streamed":
        config = transformers.AutoConfig.from_pretrained(folder)
        model = skeleton(config, dtype=torch.bfloat16)
        residency = Streamed(model, folder, n_resident=1)
        view = DecoderView(model, residency=residency)
    else:
        view = DecoderView(load_strictly(folder))
    opened = time.perf_counter()
    found = scan(view, batches, provenance=facts)
    if case == "streamed":
        read = residency.bytes_read  # the view's probe of layer 0 included
peak = memory("VmHWM")
print(json.dumps({"open_s": opened - started, "pass_s": time.perf_counter() - opened, "peak": peak - base, "read": read}))
"""


def run(case: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-c", CASE, case, str(folder), str(args.samples), str(args.length)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def write_model(folder: Path, n_layers: int) -> None:
    """Random weights straight to shards, one layer each, so that the writer needs no more memory than a layer."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    sizes = dict(hidden_size=HIDDEN, intermediate_size=FFN, num_attention_heads=HEADS, num_key_value_heads=HEADS)
    config = LlamaConfig(**sizes, num_hidden_layers=n_layers, vocab_size=VOCAB, dtype="bfloat16")
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    shapes = {f"self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
    shapes |= {f"mlp.{name}_proj.weight": (FFN, HIDDEN) for name in ("gate", "up")} | {"mlp.down_proj.weight": (HIDDEN, FFN)}
    ones = {f"{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    places: dict[str, str] = {}
    for index in range(-1, n_layers):
        file = f"model-{index + 2:05d}-of-{n_layers + 1:05d}.safetensors"
        torch.manual_seed(index)
        if index < 0:
            tensors = {name: torch.randn(VOCAB, HIDDEN).mul_(0.02) for name in ("model.embed_tokens.weight", "lm_head.weight")}
            tensors["model.norm.weight"] = torch.ones(HIDDEN)
        else:
            tensors = {f"model.layers.{index}.{name}": torch.randn(shape).mul_(0.02) for name, shape in shapes.items()}
            tensors |= {f"model.layers.{index}.{name}": torch.ones(shape) for name, shape in ones.items()}
        save_file({name: value.bfloat16() for name, value in tensors.items()}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "streaming.json")
    args = parser.parse_args()
    n_layers = max(4, round(args.gigabytes * 1e9 / LAYER_BYTES))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_model(folder, n_layers)
        n_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        cases = {case: run(case, folder, args) for case in ("idle", "resident", "streamed", "offload")}
    outside = 2 * 2 * VOCAB * HIDDEN
    streamed, resident = cases["streamed"], cases["resident"]
    figures = {
        "layers": n_layers,
        "model_bytes": n_bytes,
        "layer_bytes": LAYER_BYTES,
        "tokens": args.samples * args.length,
        "cases": cases,
        "peak_over_model": streamed["peak"] / n_bytes,
        "peak_in_layers_beside_embeddings": (streamed["peak"] - outside) / LAYER_BYTES,
        "layer_bytes_read_over_stored": streamed["read"] / (n_layers * LAYER_BYTES),
        "streamed_over_resident_pass": streamed["pass_s"] / resident["pass_s"],
        "offload_over_streamed_pass": cases["offload"]["pass_s"] / streamed["pass_s"],
    }
    for name, value in figures.items():
        if name != "cases":
            print(f"{name:34} {value:,.3f}" if isinstance(value, float) else f"{name:34} {value:,}")
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
