"""Files that somebody else wrote, read with limits: regular files, bounded size, bounded JSON, names that stay in a folder.

A file can be anything: a pipe that never ends, JSON nested a thousand deep, a number of 5,000 digits, a name that leads out of
its folder. Everything here ends in one ``ValueError`` that says which file and why.
"""

import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MOST_JSON = 64 * 2**20  # The largest tokenizer files and scans have a tenth of so many bytes.
MOST_FOLDERS = 200  # This bounds a path; the longest that systems take has 4,096 bytes.
MOST_DEPTH = 100  # This bounds nested lists and objects; configs and records nest less than ten deep.
HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")  # This is an escape of a surrogate, which may stand alone.
AGAIN = "download or write it again"


def refuse_irregular(path: Path) -> None:
    """Raises ValueError unless ``path`` is, after links, a file that is there and can end: no folder, pipe or device."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ValueError(f"{path} is not there; {AGAIN}") from None
    except (OSError, ValueError) as error:  # The name is too long, is a link to itself or holds a zero byte.
        raise ValueError(f"{shortened(str(path))} cannot be read ({reason_of(error)})") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise ValueError(f"{path} is {kind}, a file is needed; put the file there")


def refuse_other_than_plan(path: Path, hint: str) -> None:
    """Raises ValueError for a path that an option names as a plan and that is none: not there, a folder, or a pipe.

    Args:
        hint: what to do where nothing is there.
    """
    if not os.path.exists(path):
        raise ValueError(f"no plan at {shortened(str(path))}; {hint}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, and a plan is a file; give the plan.json of a run folder")
    refuse_irregular(path)


def refuse_other_than_run(path: Path) -> None:
    """Raises ValueError for a path that an option names as the folder of a run and that is no folder."""
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder; give the folder of shoal compress, run, curve, scan or plan (its --out)")


def refuse_long_path(path: Path) -> None:
    """Raises ValueError for a path of more folders than anybody has, where Python would run out of stack."""
    if len(path.parts) > MOST_FOLDERS:
        raise ValueError(f"{shortened(str(path))} goes through {len(path.parts):,} folders; give a shorter path")


def at_home(path: Path) -> Path:
    """The path with a ``~`` at its start as the folder it stands for, which a shell leaves as it is in ``--out=~/x``.

    Raises:
        ValueError: nobody of that name has a home here.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        said, user = shortened(str(path)), shortened(path.parts[0][1:] or "nobody")
        raise ValueError(
            f"{said} begins with the home of {user!r}, which is not known here; give the whole path, or ./{said} for a name "
            "that begins so"
        ) from None


def read_bytes(path: Path, *, most: int = MOST_JSON) -> bytes:
    """The bytes of a regular file.

    Args:
        most: bytes that may be read.
    Raises:
        ValueError: no such file, not a file, no permission, or larger than ``most``.
    """
    path = Path(path)
    refuse_irregular(path)
    size = path.stat().st_size
    if size > most:
        raise ValueError(f"{path} has {size:,} bytes, at most {most:,} are read of such a file; {AGAIN}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({reason_of(error)}); check the file and its permissions") from None


def parse_json(raw: bytes | str, where: str, *, unique: bool = False) -> Any:
    """What a JSON text says.

    Args:
        where: the file, for messages.
        unique: refuse an object that has one key twice.
    Raises:
        ValueError: not JSON; nested deeper than 100; a number that is too long; half a character; a key twice.
    """
    pairs = (lambda found: _without_doubles(found, where)) if unique else None
    try:
        content = json.loads(raw, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError(f"{where} is nested deeper than {MOST_DEPTH} lists and objects; {AGAIN}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not valid JSON ({error}); {AGAIN}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not valid JSON (no UTF-8 text: {error.reason}); {AGAIN}") from None
    except DoubleKey:
        raise
    except ValueError:  # The interpreter limits the digits of a number.
        raise ValueError(f"{where} holds a number of too many digits; {AGAIN}") from None
    _refuse_deep(content, where)
    if HALF_CHARACTER.search(raw.encode("utf-8", "replace") if isinstance(raw, str) else raw):
        _refuse_half_characters(content, where)
    return content


def read_json(path: Path, *, unique: bool = False) -> dict[str, Any]:
    """A JSON object from a file. Raises ValueError in one line when it is none, as :func:`read_bytes`, :func:`parse_json`."""
    content = parse_json(read_bytes(path), str(path), unique=unique)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, an object is needed; {AGAIN}")
    return content


class DoubleKey(ValueError):
    """An object that states one key twice, so that two readers may read two things."""


def _without_doubles(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise DoubleKey(f"{where} states {shortened(double)!r} twice; {AGAIN}")
    return found


def _refuse_deep(content: Any, where: str) -> None:
    level = [content]
    for _ in range(MOST_DEPTH):
        level = [one for value in level for one in _below(value)]
        if not level:
            return
    raise ValueError(f"{where} is nested deeper than {MOST_DEPTH} lists and objects; {AGAIN}")


def _refuse_half_characters(content: Any, where: str) -> None:
    waiting = [content]
    while waiting:
        value = waiting.pop()
        texts = [value] if isinstance(value, str) else list(value) if isinstance(value, dict) else []
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError(f"{where} holds half a character (a lone surrogate); {AGAIN}") from None
        waiting.extend(_below(value))


def _below(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def plain_name(name: Any, where: str) -> str:
    """A file name that a record gives, with no folder in it.

    Raises:
        ValueError: no text, empty, a path, or a name that no file can have.
    """
    if not isinstance(name, str) or not name or len(name) > 255 or name in (".", "..") or re.search(r"[/\\\0]", name):
        raise ValueError(f"{where} names {shortened(repr(name))}, which is not the name of a file beside it; {AGAIN}")
    return name


def inside(folder: Path, name: str, where: str) -> Path:
    """The path of a file or folder that a record names, relative to ``folder``.

    Raises:
        ValueError: the name is empty, absolute, leads out of the folder, or reaches out of it through a link.
    """
    target, root = folder / name, folder.resolve()
    try:
        within = (
            bool(name) and not Path(name).is_absolute() and target.resolve().is_relative_to(root) and target.resolve() != root
        )
    except (OSError, ValueError, RuntimeError):  # The name is too long, is a link to itself or holds a zero byte.
        within = False
    if not within or any(part == ".." or len(part.encode("utf-8", "replace")) > 255 for part in Path(name).parts):
        raise ValueError(
            f"{where} names {shortened(repr(name))}, which is not inside {folder}; nothing outside a run folder is read or "
            "removed: take the link away, or give another --out"
        )
    return target


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Turn whatever a foreign library raises about a file into one ``ValueError``; memory that runs out stays what it is.

    Libraries raise every kind of error for a damaged config or tokenizer (TypeError, AttributeError, ZeroDivisionError, bare
    Exception), so all of them are meant here.

    Args:
        what: the file or folder and what failed, e.g. ``"m/config.json cannot be read"``.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # The parser of tokenizers raises errors of any class.
        if type(error).__name__ == "OutOfMemoryError":
            raise
        raise ValueError(f"{what}: {type(error).__name__}: {reason_of(error)}") from None


def reason_of(error: BaseException) -> str:
    """What an error says, in one short line without control characters."""
    said = getattr(error, "strerror", None) or str(error)
    return shortened(" ".join(str(said).split()) or type(error).__name__, 300)


def shortened(text: str, most: int = 80) -> str:
    """A text for a message; where it is longer than ``most`` its middle is left out, because the end of a path says most."""
    if len(text) <= most:
        return text
    n_start = (most - 3) // 2
    return f"{text[:n_start]}...{text[len(text) - (most - 3 - n_start) :]}"
