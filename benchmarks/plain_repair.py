"""A quantised model out of its blocks, cut and repaired, against the model it was quantised from, cut and repaired.

    python benchmarks/plain_repair.py SMOLLM2-FOLDER [--work DIR] [--results FILE]

SMOLLM2-FOLDER is what `make smollm2` writes. bitsandbytes (`pip install 'shoal[quant]'`) quantises it (NF4), `shoal export
plain` takes it out of its blocks, and `shoal compress --drop 25%layers --effort low` in single precision cuts and repairs what
comes of it, and the folder itself. The same layers are also taken out of the quantised checkpoint file to file, which repairs
nothing, and the repaired ones are quantised. Every checkpoint is opened by plain transformers, with no weight missing or left
over, and measured against the folder on 2,048 tokens of the bundled sample that nothing was fitted to. A row that stands in the
results is not run again. Results: benchmarks/results/plain_repair.json, and the table in docs/sources.md.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
import transformers
from heal_tables import write_between
from plain import KINDS, quantised
from transformers import AutoModelForCausalLM, AutoTokenizer

from shoal.export.exporter import find_student
from shoal.text.corpus import bundled_text, open_corpus
from shoal.words.structure import runs_said

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "plain_repair.json"
SHOAL = [sys.executable, "-c", "from shoal.cli import main; main()"]
# In single precision, because processors without instructions for bfloat16 take five times as long in it.
REPAIR = "--drop 25%layers --effort low --samples 16 --length 128 --fit-tokens 8192 --dtype float32 --no-speed".split()
N_SAMPLES, LENGTH = 16, 128
NF4 = "nf4, products in bfloat16"
ITSELF, PACKED, PLAIN = "in bfloat16", "in NF4", "out of NF4"


def shoal(*words: object) -> str:
    """Run the command; what it prints."""
    ran = subprocess.run([*SHOAL, *map(str, words)], stdout=subprocess.PIPE, text=True)
    if ran.returncode:
        sys.exit(ran.returncode)
    return ran.stdout


def n_layers(folder: Path) -> int:
    """As its config says."""
    return int(json.loads((folder / "config.json").read_text())["num_hidden_layers"])


def checkpoints(source: Path, work: Path) -> Iterator[tuple[str, Path, list[int]]]:
    """Name, folder and the source's layers in it, of each; made where it is not there, and what was stopped goes on."""
    whole = list(range(n_layers(source)))
    packed, plain = quantised(source, work / "nf4", KINDS[NF4]), work / "nf4-plain"
    if not plain.exists():
        shoal("export", "plain", packed, "--out", plain)
    for name, folder in ((ITSELF, source), (PACKED, packed), (PLAIN, plain)):
        yield name, folder, whole
    for name, folder, removed_from in ((ITSELF, source, source), (PLAIN, plain, packed)):
        run, cut = work / f"{folder.name}-repaired", work / f"{removed_from.name}-cut"
        if not (run / "report.html").exists():
            shoal("compress", folder, *REPAIR, "--out", run)
        structure = find_student(run).structure
        assert structure is not None
        kept = [slot.like for slot in structure]
        if not cut.exists():
            shoal("apply", removed_from, "--keep", ",".join(map(str, kept)), "--out", cut)
        yield f"{ITSELF if removed_from == source else PACKED}, cut", cut, kept
        yield f"{name}, cut and repaired", run / "model", kept
        yield f"{name}, cut, repaired, into NF4", quantised(run / "model", work / f"{run.name}-nf4", KINDS[NF4]), kept


@torch.no_grad()
def log_probabilities(folder: Path, ids_BT: torch.Tensor, n: int) -> torch.Tensor:
    """Of the next token, by plain transformers in single precision; no weight may be missing or left over."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), (folder, info)
    assert model.config.num_hidden_layers == n, folder
    return torch.cat([model(input_ids=row_T[None], use_cache=False).logits.log_softmax(-1) for row_T in ids_BT])


class Measure:
    """The text, and what the model as it is says of it."""

    def __init__(self, source: Path) -> None:
        text = open_corpus(bundled_text(), AutoTokenizer.from_pretrained(source), seed=0)
        self._ids_BT = torch.as_tensor(text.samples("evaluation", n=N_SAMPLES, length=LENGTH).ids_NT)
        self._reference_BTV = log_probabilities(source, self._ids_BT, n_layers(source))

    def of(self, folder: Path, n: int) -> dict[str, float]:
        """Perplexity, and how close the next tokens are to those of the model as it is."""
        found_BTV = log_probabilities(folder, self._ids_BT, n)
        nll = -found_BTV[:, :-1].gather(2, self._ids_BT[:, 1:, None]).double().mean()
        kl_BT = (self._reference_BTV.exp() * (self._reference_BTV - found_BTV)).sum(-1)
        same = (self._reference_BTV.argmax(-1) == found_BTV.argmax(-1)).double().mean()
        return {"perplexity": float(nll.exp()), "kl": float(kl_BT.double().mean()), "same_top": float(same)}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line per checkpoint."""
    yield "| checkpoint | layers kept | MB | perplexity | KL to the model as it is | same top token |"
    yield "|---|---|---:|---:|---:|---:|"
    for one in rows:
        figures = f"{one['perplexity']:.1f} | {one['kl']:.3f} | {one['same_top']:.0%}"
        yield f"| {one['name']} | {one['kept']} | {one['bytes'] / 1e6:.0f} | {figures} |"


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("smollm2", type=Path, help="folder that make smollm2 writes")
    parser.add_argument("--work", type=Path, default=ROOT / ".prove" / "quantised", help="where models are kept")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where rows are kept")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    source = given.smollm2.resolve()
    rows = json.loads(given.results.read_text())["rows"] if given.results.exists() else []
    versions = {"bitsandbytes": bitsandbytes.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    measure: Measure | None = None
    for name, folder, kept in checkpoints(source, given.work):
        if any(one["name"] == name and one["versions"] == versions for one in rows):
            continue
        measure = measure or Measure(source)
        size = sum(one.stat().st_size for one in folder.glob("*.safetensors"))
        found = {"name": name, "kept": runs_said(kept), "bytes": size, **measure.of(folder, len(kept)), "versions": versions}
        rows = [one for one in rows if one["name"] != name] + [found]
        content = {
            "about": (__doc__ or "").split("\n")[0],
            "command": "python benchmarks/plain_repair.py SMOLLM2-FOLDER",
            "model": "SmolLM2-135M-Instruct",
            "rows": rows,
        }
        half = given.results.with_suffix(".part")
        half.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(half, given.results)
        print(json.dumps(rows[-1]), flush=True)
    if given.results == RESULTS:
        write_between(ROOT / "docs" / "sources.md", "plain repair", list(table(rows)))


if __name__ == "__main__":
    main()
