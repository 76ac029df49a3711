"""Names for others of what lies on this machine: a card is published, and nobody is told where its author keeps things."""

import re
import shlex
from pathlib import PurePosixPath, PureWindowsPath

IS_LOCAL = re.compile(r"[/\\~]|\.{1,2}[/\\]|[A-Za-z]:[/\\]")
"""How a path begins that is no hub id: at the root, at home, beside this folder, on a drive."""


def without_folders(data: str) -> str:
    """The name of a text with the folders of paths left out: ``0.7*/home/me/a.txt+0.3*hub:b`` is ``0.7*a.txt+0.3*hub:b``."""
    return "".join(_last(part) for part in re.split(r"( and |[*=]|\+(?=[\d.]+\*))", data))


def command_for_others(command: str) -> str:
    """A command line with the folders of local paths left out; one that cannot be split is left out whole."""
    try:
        arguments = shlex.split(command)
    except ValueError:
        return ""
    return shlex.join(without_folders(one) for one in arguments)


def sentence_for_others(text: str) -> str:
    """A sentence with the folders of local paths left out, word by word."""
    return re.sub(r"\S+", lambda word: _last(word[0]), text)


def _last(path: str) -> str:
    """The last part of a local path; anything else as it is."""
    if not IS_LOCAL.match(path):
        return path
    pure = PureWindowsPath(path) if "\\" in path or path[1:2] == ":" else PurePosixPath(path)
    return pure.name or path
