"""What the start token changes: one model cut and measured with and without it, the reading as the only difference.

    python benchmarks/start_token.py MODEL TEXT [--drop 2] [--fit-tokens 60000] [--out results/start_token.json]

The model's tokenizer must have a BOS. Two copies of the folder differ in the tokenizer alone: one adds BOS in front of a text,
as those of Llama and Gemma do, and one does not, so that blocks begin with any word, as all blocks did until now. Each copy is
cut with the same options; then both students are measured against the teacher both ways, on the same evaluation documents.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from shoal import compress, load_recipe
from shoal.run.job import versions
from shoal.run.measuring import evaluate_pair
from shoal.words.records import write_atomically

HERE = Path(__file__).parent
WAYS = ("without", "with")


def copy_with_start(model: Path, folder: Path, *, adds: bool) -> Path:
    """A copy of a checkpoint whose tokenizer adds BOS in front of a text, or nothing."""
    shutil.copytree(model, folder)
    bos, bos_id = (getattr(AutoTokenizer.from_pretrained(model), name) for name in ("bos_token", "bos_token_id"))
    inner = Tokenizer.from_file(str(folder / "tokenizer.json"))
    front = [bos] if adds else []
    inner.post_processor = processors.TemplateProcessing(single=" ".join([*front, "$A"]), special_tokens=[(bos, bos_id)])
    inner.save(str(folder / "tokenizer.json"))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--drop", default="2")
    parser.add_argument("--fit-tokens", type=int, default=60_000)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "start_token.json")
    args = parser.parse_args()
    text = {"sources": [str(args.text)]}
    changes: dict[str, Any] = {"drop": args.drop, "guard": 1, "fit": {"tokens": args.fit_tokens}, "text": text}
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        copies = {way: copy_with_start(args.model, Path(scratch) / way, adds=way == "with") for way in WAYS}
        for chosen in WAYS:
            student = compress(
                load_recipe("default", {**changes, "model": str(copies[chosen])}), Path(scratch) / f"run-{chosen}"
            )
            for read in WAYS:
                recipe = load_recipe("default", {"model": str(copies[read]), "text": text})
                found = evaluate_pair(recipe, str(student.model))
                first = found.by_position.octaves[:4] if found.by_position else ()  # These are positions 0..7.
                n_first = sum(one.n_tokens for one in first)
                row = {
                    "cut_and_repaired": chosen,
                    "measured": read,
                    "removed": list(student.plan.removed_layers),
                    "perplexity": [found.teacher.perplexity.value, found.student.perplexity.value],
                    "kl": found.quality.kl,
                    "kl_first_8_tokens": sum(one.kl * one.n_tokens for one in first) / n_first,
                }
                rows.append(row)
                print(json.dumps(row), flush=True)
    content = {"versions": versions(), "model": args.model.name, "text": args.text.name, **changes, "rows": rows}
    content["text"] = args.text.name
    write_atomically(args.out, (json.dumps(content, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
