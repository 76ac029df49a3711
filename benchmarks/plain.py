"""A real quantised model out of its blocks: what `shoal export plain` makes of it, against the quantised model's own forward.

    python benchmarks/plain.py SMOLLM2-FOLDER [--kinds NAME ...] [--work DIR] [--results FILE]

SMOLLM2-FOLDER is what `make smollm2` writes. It is quantised here by bitsandbytes (`pip install 'shoal[quant]'`), written as a
checkpoint and taken out of its blocks. Weights are compared with what the package itself unpacks; distributions of the next
token with the quantised model's, on the same 96 token ids of the bundled sample, both on a processor. A row that stands in the
results is not run again, so a run that was killed goes on where it was. Results: benchmarks/results/plain.json.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from shoal.export.engines.table import ENGINES
from shoal.export.exporter import Options
from shoal.export.prove import prove
from shoal.export.table import export

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "plain.json"
NF4: dict[str, Any] = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
KINDS: dict[str, dict[str, Any]] = {
    "nf4, products in float32": {**NF4, "bnb_4bit_compute_dtype": torch.float32},
    "nf4, products in bfloat16": {**NF4, "bnb_4bit_compute_dtype": torch.bfloat16},
    "8 bits": {"load_in_8bit": True},
}
BESIDE = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def quantised(source: Path, folder: Path, how: dict[str, Any]) -> Path:
    """The source as bitsandbytes stores it, made where it is not there."""
    if not folder.exists():
        half = folder.with_name(folder.name + ".part")
        shutil.rmtree(half, ignore_errors=True)
        model = AutoModelForCausalLM.from_pretrained(
            source, quantization_config=BitsAndBytesConfig(**how), device_map={"": "cpu"}
        )
        model.save_pretrained(half)
        for name in BESIDE:
            shutil.copy(source / name, half)
        os.replace(half, folder)
    return folder


def weights_against_the_package(packed: Path, plain: Path) -> dict[str, Any]:
    """Every packed weight as the package unpacks it, against ours; the difference is in units of the largest weight."""
    ours, most, n = load_file(plain / "model.safetensors"), 0.0, 0
    model = AutoModelForCausalLM.from_pretrained(packed, dtype=torch.float32)
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if type(weight).__name__ == "Params4bit":
            theirs = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        elif type(weight).__name__ == "Int8Params":
            theirs = bitsandbytes.functional.int8_vectorwise_dequant(weight.data, weight.SCB)
        else:
            continue
        n += 1
        most = max(most, float((ours[f"{name}.weight"] - theirs.float()).abs().max() / theirs.abs().max()))
    return {"n_maps": n, "largest_weight_difference": most}


def row(name: str, source: Path, work: Path) -> dict[str, Any]:
    """One kind: written, unpacked, compared."""
    stem = name.replace(" ", "-").replace(",", "")
    packed, plain = quantised(source, work / stem, KINDS[name]), work / f"{stem}-plain"
    checked = export("plain", packed, plain, Options(kind="f32", overwrite=True)).checked
    proof = next(iter(prove(plain, packed, [ENGINES["transformers"]])))
    if proof.found is None:
        sys.exit(f"{name}: {proof.verdict}")
    sizes = {
        key: sum(one.stat().st_size for one in folder.glob("*.safetensors"))
        for key, folder in (("packed_bytes", packed), ("plain_bytes", plain))
    }
    return {"kind": name, **sizes, **weights_against_the_package(packed, plain), "checked": checked, **proof.found.to_dict()}


def main() -> None:
    """Run the kinds that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("smollm2", type=Path, help="folder that make smollm2 writes")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="some of them")
    parser.add_argument("--work", type=Path, default=ROOT / ".prove" / "quantised", help="where models are kept")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where rows are kept")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    rows = json.loads(given.results.read_text())["rows"] if given.results.exists() else []
    versions = {"bitsandbytes": bitsandbytes.__version__, "transformers": transformers.__version__}
    for name in given.kinds:
        if any(one["kind"] == name and one["versions"] == versions for one in rows):
            continue
        found = row(name, given.smollm2.resolve(), given.work) | {"versions": versions}
        rows = [one for one in rows if one["kind"] != name] + [found]
        rows.sort(key=lambda one: list(KINDS).index(one["kind"]))
        content = {
            "about": (__doc__ or "").split("\n")[0],
            "command": "python benchmarks/plain.py SMOLLM2-FOLDER",
            "model": "SmolLM2-135M-Instruct",
            "rows": rows,
        }
        half = given.results.with_suffix(".part")
        half.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(half, given.results)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
