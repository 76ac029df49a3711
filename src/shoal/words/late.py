"""Functions that are named now and imported when they are first called.

Recipes, the command's help and the planner read the tables of entries, and start fast because those tables need no torch.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def late(where: str) -> Callable[..., Any]:
    """The function (or class) ``package.module:name``, imported at its first call.

    Raises:
        ImportError, AttributeError: when it is called and there is no such module or name; every entry of a table is called
            by the tests.
    """
    module, _, name = where.partition(":")

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(import_module(module), name)(*args, **kwargs)

    return call
