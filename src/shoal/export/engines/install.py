"""Engines into environments of their own: ``python -m shoal.export.engines.install NAME ...``, ``all`` for every one.

Their pins exclude one another and Shoal's, so each has an environment under ``.prove``. What an engine needs of torch or
transformers it takes from this environment, where the versions fit; nothing is installed into this one.
"""

import subprocess
import sys
import sysconfig
import venv

from shoal.export.engines.table import ENGINES, UNFINISHED, Engine

LINK = "zz_shoal.pth"  # The link is read last, so that what the engine has of its own goes first.
COMMON = ("numpy",)
LINES_SHOWN = 3


def install(engine: Engine) -> bool:
    """Make the environment of an engine, unless this version stands there; True where something was installed.

    Raises:
        ValueError: one line: the package index cannot be reached, or has no such package for this machine.
    """
    if not engine.packages or _stands(engine):
        return False
    mark, python = engine.home / UNFINISHED, engine.home / "bin" / "python"
    venv.create(engine.home, with_pip=True, clear=True)
    mark.touch()
    try:
        _pip(engine, "install", "--quiet", *engine.packages, *COMMON)
        if engine.unwanted:
            _pip(engine, "uninstall", "--quiet", "--yes", *engine.unwanted)
    except ValueError as error:
        mark.write_text(f"{error}\n", encoding="utf-8")  # Whoever asks for the engine later is told.
        raise
    if engine.beside:
        asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        theirs = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        with open(f"{theirs}/{LINK}", "w") as file:
            file.write(sysconfig.get_path("purelib") + "\n")
    (engine.home / "packages.txt").write_text("\n".join(engine.packages) + "\n")
    mark.unlink()
    return True


def _stands(engine: Engine) -> bool:
    stated = engine.home / "packages.txt"
    is_whole = stated.is_file() and not (engine.home / UNFINISHED).exists()
    return is_whole and stated.read_text().split() == list(engine.packages)


def _pip(engine: Engine, *words: str) -> None:
    """pip of an engine's environment; without the pins of this one, which are about other packages."""
    ran = subprocess.run(
        [str(engine.home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", *words],
        capture_output=True,
        text=True,
    )
    if ran.returncode != 0:
        lines = (
            [line for line in ran.stderr.splitlines() if line.startswith("ERROR")] or ran.stderr.splitlines() or ["no reason"]
        )
        raise ValueError(f"{engine.name} cannot be installed: {'; '.join(lines[:LINES_SHOWN])}")


def main(names: list[str]) -> int:
    """Install engines; 2 where one could not be, with one line for each."""
    failed = False
    try:
        wanted = list(ENGINES.values()) if names == ["all"] else [ENGINES.named(name) for name in names]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if not wanted:
        print(f"say which engines: {', '.join(ENGINES)}, or all", file=sys.stderr)
        return 2
    for engine in wanted:
        try:
            said = "installed" if install(engine) else "is there"
        except (ValueError, OSError, subprocess.SubprocessError) as error:
            print(error, file=sys.stderr)
            failed = True
        else:
            print(f"{engine.name}: {said}")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
