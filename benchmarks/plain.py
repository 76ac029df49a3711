"""A real quantised model out of its blocks: what `shoal export plain` makes of it, against the quantised model's own forward.

    python benchmarks/plain.py SMOLLM2-FOLDER [--kinds NAME ...] [--work DIR] [--results FILE]

SMOLLM2-FOLDER is what `make smollm2` writes. It is quantised here by bitsandbytes (`pip install 'shoal[quant]'`), written as a
checkpoint and taken out of its blocks. Weights are compared with what the package itself unpacks; distributions of the next
token, on the same 96 token ids of the bundled sample and on a processor, with the quantised model's, whose kernels multiply in
half precision or in eight bits, and with those of the plain model in bfloat16. A row that stands in the results is not run
again, so a run that was killed goes on where it was. Results: benchmarks/results/plain.json, and the table in docs/sources.md.
"""

import argparse
import gzip
import json
import os
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
import transformers
from heal_tables import write_between
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from shoal.export.agreement import Agreement, compare
from shoal.export.exporter import Options
from shoal.export.table import export

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "plain.json"
NF4: dict[str, Any] = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
KINDS: dict[str, dict[str, Any]] = {
    "nf4, products in float32": {**NF4, "bnb_4bit_compute_dtype": torch.float32},
    "nf4, products in bfloat16": {**NF4, "bnb_4bit_compute_dtype": torch.bfloat16},
    "8 bits": {"load_in_8bit": True},
}
N_TOKENS = 96
NOTHING: dict[str, Any] = {"greedy": [], "tokens": None}
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


@torch.no_grad()
def weights_against(theirs: Any, maps: dict[str, Any]) -> dict[str, Any]:
    """Every packed weight as the package unpacks it in single precision, against ours.

    Returns:
        the number of maps, and the largest difference in units of the largest weight of a map.
    """
    most, n = 0.0, 0
    for name, module in theirs.named_modules():
        weight = getattr(module, "weight", None)
        if type(weight).__name__ == "Params4bit":
            weight.quant_state.dtype, kept = torch.float32, weight.quant_state.dtype
            exact = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
            weight.quant_state.dtype = kept
        elif type(weight).__name__ == "Int8Params":
            exact = bitsandbytes.functional.int8_vectorwise_dequant(weight.data, weight.SCB).float()
        else:
            continue
        n += 1
        most = max(most, float((maps[name].weight - exact).abs().max() / exact.abs().max()))
    return {"n_maps": n, "largest_weight_difference": most}


@torch.no_grad()
def log_probabilities(model: Any, ids_BT: torch.Tensor) -> Any:
    """Of the next token at every position, as an array of (positions, vocabulary)."""
    return model(input_ids=ids_BT, use_cache=False).logits[0].double().log_softmax(-1).float().numpy()


def row(name: str, source: Path, work: Path) -> dict[str, Any]:
    """One kind: written, unpacked, compared; beside it what products in bfloat16 do to the plain model itself."""
    stem = name.replace(" ", "-").replace(",", "")
    packed, plain = quantised(source, work / stem, KINDS[name]), work / f"{stem}-plain"
    shutil.rmtree(plain, ignore_errors=True)
    checked = export("plain", packed, plain, Options(kind="f32")).checked
    theirs, ours = (AutoModelForCausalLM.from_pretrained(one, dtype=torch.float32).eval() for one in (packed, plain))
    weights = weights_against(theirs, dict(ours.named_modules()))  # The first forward packs 4-bit weights for its kernels.
    with gzip.open(resources.files("shoal") / "assets" / "sample.txt.gz") as file:
        text = file.read(8000).decode("utf-8", "ignore")
    ids_BT = torch.tensor([AutoTokenizer.from_pretrained(source).encode(text)[:N_TOKENS]])
    reference = log_probabilities(ours, ids_BT)
    found = compare(reference, log_probabilities(theirs, ids_BT), NOTHING, NOTHING)
    half = compare(reference, log_probabilities(ours.bfloat16(), ids_BT), NOTHING, NOTHING)
    sizes = {
        key: sum(one.stat().st_size for one in folder.glob("*.safetensors"))
        for key, folder in (("packed_bytes", packed), ("plain_bytes", plain))
    }
    figures = {"quantised": figures_of(found), "plain in bfloat16": figures_of(half)}
    return {"kind": name, **sizes, **weights, "checked": checked, "against plain in float32": figures}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line per kind."""
    both = "KL, same top: quantised model | KL, same top: plain in bfloat16"
    yield f"| kind | bytes, packed and plain (f32) | maps | largest difference of weights | {both} |"
    yield "|---|---:|---:|---:|---:|---:|"
    for one in rows:
        cells = [f"{found['kl']:.1e}, {found['same_top']:.0%}" for found in one["against plain in float32"].values()]
        sizes = f"{one['packed_bytes']:,} and {one['plain_bytes']:,}"
        yield f"| {one['kind']} | {sizes} | {one['n_maps']} | {one['largest_weight_difference']:.1g} | {' | '.join(cells)} |"


def figures_of(found: Agreement) -> dict[str, Any]:
    """What is compared here: distributions of the next token."""
    return {key: getattr(found, key) for key in ("kl", "kl_most", "same_top", "lead_moved", "lead_lost", "n_positions")}


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
    if given.results == RESULTS:
        write_between(ROOT / "docs" / "sources.md", "plain", list(table(rows)))


if __name__ == "__main__":
    main()
