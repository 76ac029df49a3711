"""Refusals: errors that shoal raises on purpose. Their text says all that a user needs, so no traceback has to stand above it.

The command prints it as one line, and so does a notebook for the doors of the library: IPython asks an exception for
``_render_traceback_`` before it formats the frames (IPython's docs, "Integrating your objects", custom exception tracebacks).
The frames stay on the exception: ``%debug`` and any other shell show them.
"""

import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

HERE = Path(__file__).parent.parent
STOPPED = "stopped; a run goes on from its last finished stage when the same call is made again"

Given = ParamSpec("Given")
Result = TypeVar("Result")


def is_refusal(error: BaseException) -> bool:
    """True for what the user can mend: an extra that is missing, or an error that shoal raised on purpose.

    An error from deep inside a library is a fault to be reported.
    """
    if isinstance(error, ImportError):
        return "shoal[" in str(error)
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, ValueError) and bool(frames) and HERE in Path(frames[-1].filename).parents


def in_one_line(door: Callable[Given, Result]) -> Callable[Given, Result]:
    """The same function; what it refuses, and that it was interrupted, is one line in a notebook."""

    @wraps(door)
    def through(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        __tracebackhide__ = True  # IPython leaves this frame out of the errors that it does format.
        try:
            return door(*args, **kwargs)
        except KeyboardInterrupt as stop:
            _show(stop, STOPPED)
            raise
        except Exception as error:
            if is_refusal(error):
                _show(error, str(error))
            raise

    return through


def _show(error: Any, text: str) -> None:
    """Have IPython show an error as one line."""
    line = f"{type(error).__name__}: {' '.join(text.split())}"
    error._render_traceback_ = lambda: [line]
