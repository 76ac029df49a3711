"""What other libraries say about themselves while they are imported and used does not reach the people who use the command.

Their warnings are for programmers (an extension that was not compiled, an argument that will be renamed); a run says what
matters itself. Errors stay. Who runs with ``-W`` or ``PYTHONWARNINGS``, or sets a library's own variable, gets all of it.
"""

import io
import logging
import os
import sys
import warnings
from typing import TextIO

from shoal.engine.workers import join

VERBOSITY = ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY")
"""Read by libraries that set up their own loggers, whatever was set before they were imported."""

LOGGERS = ("torchao", "torch", "datasets", "huggingface_hub", "accelerate", "bitsandbytes", "peft", "lm_eval", "gguf")

_show_all = warnings.showwarning


def silence_libraries() -> None:
    """Keep what libraries log and warn of, short of errors, away from stderr; to be called before they are imported."""
    if sys.warnoptions:
        return
    for name in VERBOSITY:
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def write_in_any_encoding() -> None:
    """Let stdout and stderr replace what their encoding has no sign for: a ± must not end a run on an ASCII terminal."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """In place of ``warnings.showwarning``: what Shoal warns of is one line for people, what others warn of is not shown."""
    if category.__module__.split(".")[0] == "shoal":
        if join().is_first:
            print(f"shoal: {message}", file=sys.stderr)
    elif sys.warnoptions:
        _show_all(message, category, filename, lineno, file, line)
