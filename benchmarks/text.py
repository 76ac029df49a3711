"""Time and memory to take 100 samples from a large folder of text: what is read, tokenised and held does not grow with it.

Run: python benchmarks/text.py [--gigabytes 2] [--out benchmarks/results/text.json]

Writes folders of JSON lines and of parquet files (with a column that is not text) of pseudo-words to a temporary place, asks a
corpus for 100 samples of 2048 tokens of the calibration slice in a process of its own for each, and prints seconds and peak
memory beside those of a folder 50 times smaller. Reading every document of the large folder once, without tokenising, is
timed for comparison.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import random
import shutil
import tempfile
import time
from pathlib import Path

ASSETS = Path(__file__).parent.parent / "src" / "shoal" / "assets"
N_FILES = 8
SMALLER = 50


def write_folder(folder: Path, *, n_bytes: int, kind: str, seed: int = 0) -> None:
    """Documents of about 4000 characters, in eight files."""
    import numpy as np
    import pyarrow
    import pyarrow.parquet

    draw = random.Random(seed)
    words = ["".join(draw.choice("etaoinshrdlucmfwypvbgk") for _ in range(draw.randrange(2, 10))) for _ in range(5000)]
    folder.mkdir(parents=True)
    for number in range(N_FILES):
        rows: list[str] = []
        written = 0
        pool = [" ".join(draw.choices(words, k=80)) for _ in range(2000)]
        path = folder / f"{number}.{kind}"
        writer = open(path, "w") if kind == "jsonl" else None
        table = None
        while written < n_bytes // N_FILES or rows:
            text = f"{number} {written} " + ". ".join(draw.choices(pool, k=8))
            written += len(text)
            rows.append(text)
            if len(rows) == 1000 or written >= n_bytes // N_FILES:
                if writer is not None:
                    writer.write("".join(json.dumps({"text": row}) + "\n" for row in rows))
                else:
                    numbers = pyarrow.array(list(np.random.default_rng(0).random((len(rows), 256), dtype=np.float32)))
                    chunk = pyarrow.table({"text": rows, "embedding": numbers})
                    table = table or pyarrow.parquet.ParquetWriter(path, chunk.schema)
                    table.write_table(chunk)
                rows = []
        if writer is not None:
            writer.close()
        if table is not None:
            table.close()


def peak_bytes() -> int:
    """Most memory of this process so far, as the system counts it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def take(folder: str) -> dict[str, float]:
    """100 samples, in a process of its own."""
    from transformers import AutoTokenizer

    from shoal.text.corpus import open_corpus

    tokenizer = AutoTokenizer.from_pretrained(str(ASSETS / "books-16l"))
    before, started = peak_bytes(), time.monotonic()
    found = open_corpus(folder, tokenizer).samples("calibration", n=100, length=2048)
    seconds = time.monotonic() - started
    assert found.n_tokens == 100 * 2048
    return {"seconds": seconds, "added_bytes": peak_bytes() - before}


def read_all(folder: str) -> dict[str, float]:
    """Every document, in a process of its own."""
    from shoal.text.sources import TextSource

    started = time.monotonic()
    n = sum(len(document.text) for document in TextSource(folder, chat=str).documents())
    return {"seconds": time.monotonic() - started, "characters": n}


def alone(function, folder: Path) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, (str(folder),))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result: dict[str, object] = {"gigabytes": options.gigabytes, "python": platform.python_version()}
    with tempfile.TemporaryDirectory() as temporary:
        for kind in ("jsonl", "parquet"):
            sizes = {"large": int(options.gigabytes * 1e9), "small": int(options.gigabytes * 1e9) // SMALLER}
            for name, n_bytes in sizes.items():
                write_folder(Path(temporary) / kind / name, n_bytes=n_bytes, kind=kind)
            found = {name: alone(take, Path(temporary) / kind / name) for name in sizes}
            found["all of it read once"] = alone(read_all, Path(temporary) / kind / "large")
            result[kind] = found
            ratio = found["large"]["seconds"] / found["small"]["seconds"]
            print(f"{kind}: 100 samples of 2048 tokens from {options.gigabytes:g} GB in {found['large']['seconds']:.2f} s")
            print(f"  {ratio:.2f} x the time from {sizes['small'] / 1e6:.3g} MB")
            for name in sizes:
                print(f"  {name}: {found[name]['added_bytes'] / 1e6:.0f} MB of memory added")
            print(f"  reading all documents once: {found['all of it read once']['seconds']:.1f} s")
            shutil.rmtree(Path(temporary) / kind)
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
