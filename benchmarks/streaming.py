"""A model that is read layer by layer, against the same work in memory and against disk offload.

    python benchmarks/streaming.py [--gigabytes 6] [--samples 8] [--length 128] [--rounds 3] [--skip-compress] [--out FILE]

A random Llama (bfloat16, sharded) is written to a temporary folder and removed at the end. Each case runs in a fresh process
with a warm file cache, and keeps freed memory as the command does:

- scan: all spans of the model, resident and with ``--resident 1``, in turns; the ratio is of the fastest of each, since other
  work on the machine can only slow them, and the ratio of every round is kept beside it;
- offload: transformers with accelerate's disk offload, a plain forward of the same batches and of twice as many;
- compress: scan, a trained layer in place of the cut, checkpoint; resident, and with ``--resident 1``, evaluation too.

Memory is the peak of the resident size (VmHWM, set back after the imports; mapped pages count), less that of a process with the
same imports that does nothing. What a streamed case may take: embeddings and head, 2.5 layers, the states it may keep,
activations, and where it trains what a trained layer costs. Activations are what the resident scan takes beyond its weights.
A trained layer costs 22 bytes per parameter: fp32 masters, gradients and two moments, and in bfloat16 the start, the copy that
is measured and the best values so far.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HIDDEN, FFN, HEADS, VOCAB = 1536, 4096, 12, 8192
LAYER_PARAMETERS = 4 * HIDDEN * HIDDEN + 3 * HIDDEN * FFN + 2 * HIDDEN
LAYER_BYTES = 2 * LAYER_PARAMETERS
OUTSIDE_BYTES = 2 * (2 * VOCAB * HIDDEN + HIDDEN)
TRAINED_BYTES = 4 + 4 + 8 + 3 * 2  # Each parameter of the trained layer takes so many bytes.
STATE_BYTES = 64 << 20  # A streamed case may keep so many bytes of hidden states in memory.

CASE = """
import json, sys, threading, time
from pathlib import Path
import torch, transformers, accelerate
import transformers.models.llama.modeling_llama
from transformers import AutoModelForCausalLM
import shoal.run.compress, shoal.run.job, shoal.measure.scan, shoal.train.train_plan
import shoal.evaluate.evaluation, shoal.checkpoint.verify
from shoal.show.chart_files import can_draw
from shoal.cli.malloc import keep_freed_memory
from shoal.engine.view import DecoderView
from shoal.engine.open import load_strictly
from shoal.engine.streamed import Streamed, open_streamed
from shoal.words.records import Provenance
from shoal.words.types import Batch
case, folder, samples, length, states = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
keep_freed_memory()
can_draw()  # loads matplotlib

made = Streamed.__init__
Streamed.__init__ = lambda self, *given, **named: made(self, *given, **{**named, "state_bytes": states})

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

sampled = {"RssAnon": 0, "RssFile": 0}
def sample():
    while True:
        for field in sampled:
            sampled[field] = max(sampled[field], memory(field))
        time.sleep(0.02)

base = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
threading.Thread(target=sample, daemon=True).start()
read, passes = None, None
started = opened = time.perf_counter()
n_batches = max(1, samples // 2) * (2 if case == "offload_twice" else 1)
generator = torch.Generator().manual_seed(0)
batches = [Batch(torch.randint(0, 8192, (2, length), generator=generator), None, i) for i in range(n_batches)]
if case.startswith("offload"):
    from accelerate.utils.offload import OffloadedWeightsLoader
    read = 0
    def counted(self, key, get=OffloadedWeightsLoader.__getitem__):
        global read
        value = get(self, key)
        read += value.numel() * value.element_size()
        return value
    OffloadedWeightsLoader.__getitem__ = counted
    outside = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", device_map={**outside, "model.layers": "disk"}, offload_folder=sys.argv[6])
    opened, read = time.perf_counter(), 0
    with torch.no_grad():
        for batch in batches:
            model.model(input_ids=batch.ids_BT, use_cache=False)
elif case.startswith("scan"):
    if case == "scan_streamed":
        model, residency = open_streamed(folder, n_resident=1)
        view = DecoderView(model.model, residency=residency)
        with residency.layer(view.n_layers - 1):  # so that the pass begins with nothing of the front read
            pass
        before = residency.bytes_read
    else:
        view = DecoderView(load_strictly(folder))
    opened = time.perf_counter()
    facts = Provenance(model="random", model_hash="", data="random", data_hash="", n_samples=0, n_tokens=0, length=length,
                       seed=0, dtype="bfloat16")
    shoal.measure.scan.scan(view, batches, provenance=facts)
    if case == "scan_streamed":
        read = residency.bytes_read - before
elif case.startswith("compress"):
    from shoal import compress, load_recipe
    text = dict(sources=[str(folder / "text.jsonl")], samples=samples, length=length, selection=4, evaluation=4)
    train = dict(tokens=4 * length, batch=2, micro_batch=2, eval_every=100)
    recipe = load_recipe("default", dict(model=str(folder), drop="4", replace="layer", guard=1, text=text, train=train))
    if case == "compress":  # The checkpoint is written before the evaluation, whose decoding takes long and is not streamed.
        import dataclasses
        from shoal.run.stages.table import STAGES
        def enough(*args, **options):
            raise InterruptedError
        STAGES["evaluation"] = dataclasses.replace(STAGES["evaluation"], run=enough)
    try:
        from shoal.engine.opening import Opening
        compress(recipe, sys.argv[6], opening=Opening(resident="1" if case == "compress_streamed" else "all"))
    except InterruptedError:
        pass
seconds, peak = time.perf_counter() - opened, memory("VmHWM")
print(json.dumps({"open_s": opened - started, "work_s": seconds, "peak": peak - base, "base": base, "read": read, **sampled}))
"""


def run(case: str, folder: Path, args: argparse.Namespace, work: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", CASE, case, folder, args.samples, args.length, STATE_BYTES, work]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    print(case, done.stdout.splitlines()[-1], flush=True)
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


def write_text(folder: Path) -> None:
    """A tokenizer of numbered words, and documents of them."""
    import random

    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"<eos>": 0, **{f"w{i}": i for i in range(1, VOCAB)}}, unk_token="<eos>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", unk_token="<eos>").save_pretrained(folder)
    draw = random.Random(0)
    rows = [{"text": " ".join(f"w{draw.randrange(1, VOCAB)}" for _ in range(300))} for _ in range(200)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def digests(folder: Path) -> dict[str, str]:
    """Of every file of a checkpoint but the card, which states measured speeds."""
    files = (file for file in sorted(folder.iterdir()) if file.name != "README.md")
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def account(streamed: dict[str, Any], scan: dict[str, Any], *, model_bytes: int, training: int = 0) -> dict[str, Any]:
    """What a streamed case took against what it may take, beside the base process; ``scan``: the resident one."""
    parts = {
        "embeddings_and_head": OUTSIDE_BYTES,
        "two_and_a_half_layers": int(2.5 * LAYER_BYTES),
        "states": STATE_BYTES,
        "activations": max(0, scan["peak"] - model_bytes),
        "training": training,
    }
    allowed = sum(parts.values())
    return {
        **parts,
        "allowed": allowed,
        "peak": streamed["peak"],
        "peak_over_allowed": streamed["peak"] / allowed,
        "peak_over_model": streamed["peak"] / model_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3, help="of the two scans, which are timed against each other")
    parser.add_argument("--skip-compress", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "streaming.json")
    args = parser.parse_args()
    n_layers = max(8, math.ceil((args.gigabytes * 1e9 - OUTSIDE_BYTES) / LAYER_BYTES))
    names = ["idle", "scan_resident", "scan_streamed", "offload", "offload_twice"]
    names += [] if args.skip_compress else ["compress_resident", "compress_streamed"]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as temporary:
        folder = Path(temporary) / "model"
        folder.mkdir()
        write_model(folder, n_layers)
        write_text(folder)
        n_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        pairs = []
        for number in range(1, args.rounds):
            order = ("scan_streamed", "scan_resident") if number % 2 else ("scan_resident", "scan_streamed")
            pairs.append({case: run(case, folder, args, Path(temporary) / case) for case in order})
        cases = {case: run(case, folder, args, Path(temporary) / case) for case in names}
        pairs.append({case: cases[case] for case in ("scan_resident", "scan_streamed")})
        same = None
        if not args.skip_compress:
            ours, theirs = (digests(Path(temporary) / case / "model") for case in ("compress_streamed", "compress_resident"))
            same = ours == theirs
    scan, resident = cases["scan_streamed"], cases["scan_resident"]
    figures: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/streaming.py", *sys.argv[1:]]),
        "layers": n_layers,
        "model_bytes": n_bytes,
        "layer_bytes": LAYER_BYTES,
        "tokens": args.samples * args.length,
        "cases": cases,
        "scan": account(scan, resident, model_bytes=n_bytes),
        "layer_bytes_read_over_stored": scan["read"] / (n_layers * LAYER_BYTES),
        "streamed_over_resident_pass": min(one["scan_streamed"]["work_s"] for one in pairs)
        / min(one["scan_resident"]["work_s"] for one in pairs),
        "streamed_over_resident_pass_of_each_round": [
            round(one["scan_streamed"]["work_s"] / one["scan_resident"]["work_s"], 3) for one in pairs
        ],
        "offload_over_streamed_pass": cases["offload"]["work_s"] / scan["work_s"],
        "offload_bytes_read_over_stored": cases["offload"]["read"] / (n_layers * LAYER_BYTES),
        "offload_twice_bytes_read_over_stored": cases["offload_twice"]["read"] / (n_layers * LAYER_BYTES),
    }
    if not args.skip_compress:
        whole = cases["compress_resident"]
        training = TRAINED_BYTES * LAYER_PARAMETERS
        figures["compress"] = account(cases["compress_streamed"], resident, model_bytes=n_bytes, training=training)
        figures["compress_streamed_over_resident"] = cases["compress_streamed"]["work_s"] / whole["work_s"]
        figures["checkpoints_are_equal_bytes"] = same
    for name, value in figures.items():
        if isinstance(value, dict) and name != "cases":
            print(f"{name}:", ", ".join(f"{k} {v:,.3f}" if isinstance(v, float) else f"{k} {v:,}" for k, v in value.items()))
        elif name != "cases":
            print(f"{name:36} {value:,.3f}" if isinstance(value, float) else f"{name:36} {value}")
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
