"""The engines by name: what each reads, how it is installed, and where its interpreter is found."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from shoal.words.records import nearest

HERE = Path(__file__).parent
HOME = ".prove"  # where environments of engines lie unless $SHOAL_ENGINES says otherwise


@dataclass(frozen=True)
class Engine:
    """One engine.

    Attributes:
        package: the distribution that holds it, with the version that was proved; None: Shoal's own environment has it.
        reads: ``folder``, ``file`` (GGUF), or both.
        script: what runs it; it imports nothing of Shoal.
        n_positions: distributions that are compared; each costs a call where an engine gives one at a time.
    """

    name: str
    about: str
    package: str | None
    reads: frozenset[str]
    script: str
    n_positions: int = 64

    @property
    def install(self) -> str:
        """The commands that install it where it is looked for."""
        return f"python -m venv {HOME}/{self.name} && {HOME}/{self.name}/bin/pip install {self.package} numpy"

    def interpreter(self) -> str | None:
        """The interpreter that can run it: an environment of its own, else this one where it has the package; or None."""
        own = Path(os.environ.get("SHOAL_ENGINES", HOME)) / self.name / "bin" / "python"
        if own.is_file():
            return str(own.absolute())
        if self.package is None:
            return sys.executable
        name, _, version = self.package.split()[0].partition("==")
        try:
            found = importlib.metadata.version(name.partition("[")[0])
        except importlib.metadata.PackageNotFoundError:
            return None
        return sys.executable if found.split(".")[0] == version.split(".")[0] else None


ENGINES: dict[str, Engine] = {
    one.name: one
    for one in (
        Engine(
            name="transformers",
            about="transformers of this environment; GGUF files are unpacked",
            package=None,
            reads=frozenset({"folder", "file"}),
            script="run_transformers.py",
        ),
        Engine(
            name="transformers-4",
            about="transformers before version 5, which knows the old names of a config only",
            package="transformers==4.57.6 torch",
            reads=frozenset({"folder"}),
            script="run_transformers.py",
        ),
        Engine(
            name="llama.cpp",
            about="llama.cpp as the xllamacpp package holds it",
            package="xllamacpp==2026.10.11549",
            reads=frozenset({"file"}),
            script="run_llama_cpp.py",
            n_positions=24,
        ),
        Engine(
            name="mlx",
            about="MLX-LM, on the CPU under Linux",
            package="mlx-lm==0.32.2 mlx[cpu]==0.32.4",
            reads=frozenset({"folder"}),
            script="run_mlx.py",
        ),
    )
}


def engine_named(name: str) -> Engine:
    """Raises ValueError for an unknown engine; names the known ones."""
    if name not in ENGINES:
        raise ValueError(f"unknown engine {name!r}; {nearest(name, ENGINES)}")
    return ENGINES[name]
