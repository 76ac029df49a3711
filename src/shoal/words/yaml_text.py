"""YAML that somebody else wrote: bounded in depth, length and what its anchors multiply to, before anything is made of it."""

from pathlib import Path
from typing import Any

import yaml

from shoal.words.reading import read_bytes, reason_of

MOST_BYTES = 2**20
MOST_DEPTH = 50
MOST_NODES = 50_000  # The whole text counts, with every anchor written out where it is used.


def parse_yaml(text: str, where: str) -> Any:
    """What a YAML text says.

    Args:
        where: the file or option, for messages.
    Raises:
        ValueError: not YAML, nested deeper than 50, more than 50,000 values once anchors are written out, or a value that
            cannot be (a date that does not exist, a number of 5,000 digits).
    """
    _refuse_deep(text, where)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_many(root, where)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not YAML: {reason_of(error)}") from None
    except Refused:
        raise
    except (ValueError, OverflowError, TypeError) as error:  # A value looks like a date or a number and is none.
        raise ValueError(f"{where} holds a value that cannot be: {reason_of(error)}; put it in quotation marks") from None


def read_yaml(path: Path) -> Any:
    """What a YAML file says. Raises ValueError as :func:`parse_yaml`, and where the file cannot be read."""
    try:
        text = read_bytes(path, most=MOST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not YAML: no UTF-8 text ({error.reason})") from None
    return parse_yaml(text, str(path))


class Refused(ValueError):
    """A text that is YAML and beyond the limits."""


def _refuse_deep(text: str, where: str) -> None:
    """Raises ValueError for deep nesting, which shows in the events of the text: reading these needs no recursion."""
    depth = n_events = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            n_events += 1
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_DEPTH or n_events > 2 * MOST_NODES:
                what = f"is nested deeper than {MOST_DEPTH}" if depth > MOST_DEPTH else f"has more than {MOST_NODES:,} values"
                raise Refused(f"{where} {what}; no recipe or option is")
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not YAML: {reason_of(error)}") from None
    except RecursionError:
        raise Refused(f"{where} is nested deeper than {MOST_DEPTH}; no recipe or option is") from None


def _refuse_many(root: yaml.Node | None, where: str) -> None:
    """Raises ValueError where anchors hold themselves, or multiply to too many values."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, above: tuple[int, ...]) -> int:
        if id(node) in above:
            raise Refused(f"{where} has an anchor that holds itself; write it out")
        if id(node) not in sizes:
            children = node.value if isinstance(node, yaml.SequenceNode) else []
            if isinstance(node, yaml.MappingNode):
                children = [child for pair in node.value for child in pair]
            sizes[id(node)] = 1 + sum(size(child, (*above, id(node))) for child in children)
        return sizes[id(node)]

    if root is not None and size(root, ()) > MOST_NODES:
        raise Refused(f"{where} has anchors that multiply to more than {MOST_NODES:,} values; write out what is meant")
