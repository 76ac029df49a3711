"""Times as people write them: ``90s``, ``10m``, ``1.5h``."""

import re

from shoal.words.reading import shortened

SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_time(text: str) -> float:
    """Seconds of ``90s``, ``10m``, ``1.5h``.

    Raises:
        ValueError: another form, or not above 0.
    """
    found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*(s|m|min|h)\s*", text)
    if not found or float(found[1]) <= 0:
        raise ValueError(f"{shortened(text)!r} is no time; it needs a number and s, m or h, such as 10m")
    return float(found[1]) * SECONDS[found[2]]
