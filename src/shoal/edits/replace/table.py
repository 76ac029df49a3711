"""The replacements by name: the one list that recipes, plans, budgets, tests, help and documents read.

``none`` is not one of them: it means plain removal, a ``Drop`` in the plan. Options are written behind the name:
``swiglu:width=1024``, ``linear:rank=64,layout=code``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shoal.edits.replace.contract import Replacement
from shoal.edits.replace.described import StreamReplacement
from shoal.edits.replace.ffn import FfnReplacement
from shoal.edits.replace.free import FreeReplacement
from shoal.edits.replace.hadamard import HadamardReplacement
from shoal.edits.replace.layer import LayerReplacement
from shoal.edits.replace.linear import LinearReplacement
from shoal.edits.replace.swiglu import SwigluReplacement
from shoal.words.records import nearest
from shoal.words.yaml_text import parse_yaml

REPLACEMENTS: dict[str, type[LayerReplacement] | type[StreamReplacement]] = {
    kind.name: kind
    for kind in (
        LayerReplacement,
        FfnReplacement,
        SwigluReplacement,
        LinearReplacement,
        FreeReplacement,
        HadamardReplacement,
    )
}


def replacement_named(name: str, options: Mapping[str, Any] | None = None) -> Replacement:
    """The description of a named replacement with its options.

    Raises:
        ValueError: unknown name or option, or a value out of range; says the nearest and what is allowed.
    """
    if name not in REPLACEMENTS:
        raise ValueError(f"unknown replacement {name!r}; {nearest(name, REPLACEMENTS)} (or none: plain removal)")
    found: Replacement = REPLACEMENTS[name].from_json(json.dumps(dict(options or {})), where=f"options of replacement {name!r}")
    return found


def parse_replacement(text: str) -> Replacement | None:
    """``none``, ``NAME`` or ``NAME:option=value,option=value`` as a description; None for ``none``.

    Raises:
        ValueError: as :func:`replacement_named`; not of this form.
    """
    name, _, rest = text.strip().partition(":")
    options: dict[str, Any] = {}
    for part in rest.split(",") if rest else ():
        option, equals, value = part.partition("=")
        if not equals or not option.strip() or not value.strip() or option.strip() in options:
            raise ValueError(f"replace {text!r}: {part!r} is no option; write NAME:option=value,option=value")
        options[option.strip()] = parse_yaml(value, f"replace {text!r}")
    if name == "none":
        if options:
            raise ValueError(f"replace {text!r}: plain removal has no options; write none")
        return None
    return replacement_named(name, options)
