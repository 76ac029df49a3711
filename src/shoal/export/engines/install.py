"""Engines into environments of their own: ``python -m shoal.export.engines.install NAME ...``, ``all`` for every one.

Their pins exclude one another and Shoal's, so each has an environment under ``.prove``. What an engine needs of torch or
transformers it takes from this environment, where the versions fit; nothing is installed into this one.
"""

import shutil
import subprocess
import sys
import sysconfig
import venv

from shoal.export.engines.table import ENGINES, STATED, UNFINISHED, Engine

LINK = "zz_shoal.pth"  # The link is read last, so that what the engine has of its own goes first.
COMMON = ("numpy",)
LINES_SHOWN = 3
UNREACHED = "after connection broken by"  # pip warns so before every further try.


def install(engine: Engine) -> bool:
    """Make the environment of an engine, unless this version stands there; True where something was installed.

    Raises:
        ValueError: one line: the package index cannot be reached, or has no such package for this machine.
    """
    if not engine.packages:
        return False
    if engine.stands:
        _link(engine)  # The packages it takes from Shoal's environment may have moved: engines may lie outside the clone.
        return False
    mark = engine.home / UNFINISHED
    engine.home.mkdir(parents=True, exist_ok=True)
    # The mark comes first and is the only thing that stays, so an installation that is killed anywhere is no engine.
    mark.write_text(f"{engine.name} is half installed: its installation was stopped; {engine.install}\n", encoding="utf-8")
    for left in engine.home.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        elif left != mark:
            left.unlink()
    try:
        venv.create(engine.home, with_pip=True)
        _pip(engine, "install", "--quiet", *engine.packages, *COMMON)
        if engine.unwanted:
            _pip(engine, "uninstall", "--quiet", "--yes", *engine.unwanted)
        _link(engine)
    except (ValueError, OSError, subprocess.SubprocessError) as error:
        said = str(error).partition("\n")[0]
        said = said if isinstance(error, ValueError) else f"{engine.name} cannot be installed: {said}"
        mark.write_text(f"{said}\n", encoding="utf-8")  # Whoever asks for the engine later is told.
        raise ValueError(said) from None
    (engine.home / STATED).write_text("\n".join(engine.packages) + "\n")
    mark.unlink()
    return True


def _link(engine: Engine) -> None:
    """Let an engine import what it needs beside its own packages from this environment."""
    if engine.beside:
        asked = [str(engine.home / "bin" / "python"), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        theirs = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        with open(f"{theirs}/{LINK}", "w") as file:
            file.write(sysconfig.get_path("purelib") + "\n")


def _pip(engine: Engine, *words: str) -> None:
    """pip of an engine's environment; without the pins of this one, which are about other packages."""
    ran = subprocess.run(
        [str(engine.home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", *words],
        capture_output=True,
        text=True,
    )
    if ran.returncode != 0:
        said = ran.stderr.splitlines()
        lines = [line for line in said if line.startswith("ERROR")] or said or ["no reason"]
        if any(UNREACHED in line for line in said):  # pip ends with "no matching distribution" then, which is not the reason.
            lines.insert(0, "the connection to the package index broke")
        raise ValueError(f"{engine.name} cannot be installed: {'; '.join(lines[:LINES_SHOWN])}")


def main(names: list[str]) -> int:
    """Install engines; 2 where one could not be, with one line for each; 130 where it was stopped by hand."""
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
        except KeyboardInterrupt:
            print(f"\n{engine.missing}", file=sys.stderr)
            return 130
        else:
            print(f"{engine.name}: {said}; its python: {engine.interpreter()}", flush=True)
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
