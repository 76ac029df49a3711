"""The replacements by name. ``none`` is not one of them: it means plain removal, a ``Drop`` in the plan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shoal.replace.base import Replacement
from shoal.replace.layer import LayerReplacement
from shoal.types import nearest

REPLACEMENTS: dict[str, type[LayerReplacement]] = {LayerReplacement.name: LayerReplacement}


def replacement_named(name: str, options: Mapping[str, Any] | None = None) -> Replacement:
    """The description of a named replacement with its options.

    Raises:
        ValueError: unknown name or option, or a value out of range; says the nearest and what is allowed.
    """
    if name not in REPLACEMENTS:
        raise ValueError(f"unknown replacement {name!r}; {nearest(name, REPLACEMENTS)} (or none: plain removal)")
    kind = REPLACEMENTS[name]
    unknown = set(options or {}) - set(kind.model_fields)
    if unknown and not kind.model_fields:
        raise ValueError(f"replacement {name!r} has no options, got {', '.join(sorted(unknown))}")
    return kind.from_json(json.dumps(dict(options or {})), where=f"options of replacement {name!r}")
